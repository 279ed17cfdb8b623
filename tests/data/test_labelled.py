"""Labelled data: every data set of the catalogue on a tiny copy of its schema, any other source, the scenes.

The schemas are written out here, with columns that are not to be mistaken for those wanted, so that a wrong name in
the table fails. Image `i` is grey with value `10 i`, by which the tests tell which one they hold.
"""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from levljepa_hf.data import labelled as datasets_module
from levljepa_hf.data import sources
from levljepa_hf.data.catalogue import BACKGROUND_ROLES, DATASETS, PROMPTS
from levljepa_hf.data.images import open_image
from levljepa_hf.data.labelled import EvaluationSplit, dataset_id
from levljepa_hf.data.loading import column_addresses
from levljepa_hf.evaluation.task import TASKS, declarations, load_split, serves
from levljepa_hf.evaluation.zero_shot import PROMPT_ENSEMBLES, ZeroShotProtocol, evaluate_zero_shot
from levljepa_hf.scenes.dataset import BackgroundScenes, SceneDataset
from levljepa_hf.scenes.scene import CLASS_NAMES

KITS = Path(__file__).parents[3] / "shared" / "data"
STRING, INT = Value("string"), Value("int64")


def png(array, mode=None) -> dict:
    buffer = io.BytesIO()
    array = np.asarray(array, dtype=np.uint8)
    PILImage.fromarray(array, mode).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def picture(i: int, height: int = 6, width: int = 8) -> dict:
    return png(np.full((height, width, 3), 10 * i))


def shown(images) -> list[int]:
    """Which pictures these are."""
    return [int(np.asarray(open_image(image))[0, 0, 0]) // 10 for image in images]


def table(features: dict, **columns) -> Dataset:
    return Dataset.from_dict(columns, features=Features(features))


def save(folder: Path, **splits: Dataset) -> Path:
    DatasetDict(splits).save_to_disk(folder)
    return folder


def folders(root: Path, files: dict[str, int]) -> Path:
    """Pictures as files, by path."""
    for name, i in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(i)["bytes"])
    return root


# ------------------------------------------------------------------------------------------------- the catalogue


def image_labels(names, labels, first=0, label="label", **more) -> Dataset:
    features = {"image": Image(), label: ClassLabel(names=names), **{name: kind for name, (kind, _) in more.items()}}
    columns = {"image": [picture(first + i) for i in range(len(labels))], label: labels}
    return table(features, **columns, **{name: values for name, (_, values) in more.items()})


def imagenet(folder: Path) -> Path:
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    return save(
        folder,
        train=image_labels(names, [0, 0, 1]),
        validation=image_labels(names, [1, 0], first=5),
        test=image_labels(names, [-1, -1], first=9),
    )


def places365(folder: Path) -> Path:
    save(folder / "Places365-custom", train=image_labels(["bus/indoor", "zoo", "airfield"], [0, 1, 2], label="labels"))
    names = ["airfield", "bus-indoor", "zoo"]
    save(folder / "Places365-Validation", train=image_labels(names, [0, 1, 2], first=5))
    return folder


def aircraft(folder: Path) -> Path:
    names, more = ["A340-300", "707-320"], {"family": (ClassLabel(names=["A340", "707"]), [1, 0])}
    save(folder / "FGVC_Aircraft_train", train=image_labels(names, [0, 1], **more))
    save(folder / "FGVC_Aircraft_test", test=image_labels(names, [1, 1], first=5, **more))
    return folder


def pets(folder: Path) -> Path:
    names, kinds = ["abyssinian", "american_bulldog"], ClassLabel(names=["cat", "dog"])
    more = {"image_id": (STRING, ["a_1", "b_2"]), "label_cat_dog": (kinds, [1, 0])}
    return save(folder, train=image_labels(names, [0, 1], **more), test=image_labels(names, [1, 1], first=5, **more))


def captions(folder: Path) -> Path:
    rows = table(
        {"jpg": Image(), "txt": STRING, "__key__": STRING, "__url__": STRING},
        jpg=[picture(0), picture(1)],
        txt=["a dog\na brown dog \n\nit runs", "a cat"],
        __key__=["0", "1"],
        __url__=["x.tar", "x.tar"],
    )
    return save(folder, test=rows)


def imagenet9(folder: Path) -> Path:
    classes = ["00_dog", "01_bird", "02_wheeled vehicle", "03_reptile", "04_carnivore", "05_insect"]
    classes += ["06_musical instrument", "07_primate", "08_fish"]
    for number, part in enumerate(("original/train", *(f"{role}/val" for role in BACKGROUND_ROLES))):
        folders(folder / "bg_challenge" / part, {f"{one}/a.png": number for one in classes})
    return folder


def ade20k(folder: Path) -> Path:
    scenes = ClassLabel(names=["airport_terminal", "art_gallery"])

    def rows(first: int) -> Dataset:
        return table(
            {"image": Image(), "annotation": Image(), "scene_category": scenes},
            image=[picture(first)],
            annotation=[png([[0, 1, 150], [2, 2, 2]])],
            scene_category=[1],
        )

    # Images of the masks' size.
    def small(first: int) -> Dataset:
        return rows(first).map(lambda row: {"image": picture(first, 2, 3)}, features=rows(first).features)

    return save(folder, train=small(0), validation=small(5), test=small(9))


def coco_stuff(folder: Path) -> Path:
    for number, part in enumerate(("train2017", "val2017")):
        for place in (folder / part, folder / "stuffthingmaps" / part):
            place.mkdir(parents=True)
        (folder / part / "000000000009.jpg").write_bytes(picture(number, 2, 3)["bytes"])
        mask = png([[0, 12, 181], [255, 24, 26]])["bytes"]
        (folder / "stuffthingmaps" / part / "000000000009.png").write_bytes(mask)
    return folder


VQA_FEATURES = {
    "question_type": STRING,
    "multiple_choice_answer": STRING,
    "answers": List({"answer": STRING, "answer_confidence": STRING, "answer_id": INT}),
    "image_id": INT,
    "answer_type": STRING,
    "question_id": INT,
    "question": STRING,
    "image": Image(),
}


def vqa(first: int, answered: bool = True) -> Dataset:
    answers = [
        [{"answer": "yes", "answer_confidence": "maybe", "answer_id": i + 1} for i in range(9)]
        + [{"answer": "no", "answer_confidence": "yes", "answer_id": 10}],
        [{"answer": "2", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)],
        [{"answer": "red", "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)],
    ]
    return table(
        VQA_FEATURES,
        question_type=["is this", "how many", "what color"],
        multiple_choice_answer=["yes", "2", "red"],
        answers=answers if answered else [[], [], []],
        image_id=[7, 3, 7],
        answer_type=["yes/no", "number", "other"],
        question_id=[70, 30, 71],
        question=["Is it?", "How many?", "What color?"],
        image=[picture(first), picture(first + 1), picture(first)],
    )


def vqav2(folder: Path) -> Path:
    return save(folder, train=vqa(0), validation=vqa(5), test=vqa(9, answered=False))


def gqa(folder: Path) -> Path:
    types = {"structural": STRING, "semantic": STRING, "detailed": STRING}
    for number, split in enumerate(("train", "testdev")):
        rows = table(
            {
                "id": STRING,
                "imageId": STRING,
                "question": STRING,
                "answer": STRING,
                "fullAnswer": STRING,
                "types": types,
            },
            id=["q1", "q2", "q3"],
            imageId=["n5", "n1", "n5"],
            question=["Who?", "Is it?", "Where?"],
            answer=["man", "yes", "left"],
            fullAnswer=["It is a man.", "Yes, it is.", "On the left."],
            types=[
                {"structural": "query", "semantic": "rel", "detailed": "relS"},
                {"structural": "verify", "semantic": "obj", "detailed": "exist"},
                {"structural": "query", "semantic": "rel", "detailed": "relS"},
            ],
        )
        images = table(
            {"id": STRING, "image": Image()},
            id=["n0", "n1", "n5"],
            image=[picture(5 * number + i) for i in range(3)],
        )
        save(folder / f"{split}_balanced_instructions", **{split: rows})
        save(folder / f"{split}_balanced_images", **{split: images})
    return folder


def pope(folder: Path) -> Path:
    names = ("id", "question_id", "question", "answer", "image_source", "category")
    rows = table(
        {**dict.fromkeys(names, STRING), "image": Image()},
        id=["0", "1"],
        question_id=["1", "2"],
        question=["Is there a dog?", "Is there a cat?"],
        answer=["yes", "no"],
        image_source=["COCO_val2014_000000000001"] * 2,
        category=["random", "adversarial"],
        image=[picture(5), picture(5)],
    )
    save(folder, test=rows)
    save(folder / "vqa_v2", train=vqa(0))
    return folder


SCHEMAS = {
    "imagenet": imagenet,
    "places365": places365,
    "aircraft": aircraft,
    "pets": pets,
    "flickr30k": captions,
    "coco_captions": captions,
    "imagenet9": imagenet9,
    "ade20k": ade20k,
    "coco_stuff": coco_stuff,
    "vqav2": vqav2,
    "gqa": gqa,
    "pope": pope,
}


def test_every_entry_has_a_schema_and_every_task_data():
    drawn = {"scenes", "scenes_pope", "scenes_background", "scenes_position"}
    assert SCHEMAS.keys() | drawn == DATASETS.keys()
    assert {task for name in DATASETS for task in tasks_of(name)} == TASKS.keys()
    for name, entry in DATASETS.items():
        assert entry.licence and entry.home and set(entry.unfit_for) <= TASKS.keys()
        for task in tasks_of(name):
            assert entry.sources.keys() >= set(TASKS[task].roles), (name, task)


CLASSIFICATION = {"zero-shot", "linear-probe", "knn", "attentive-probe"}


@pytest.mark.parametrize(
    "names, tasks",
    [
        ("imagenet places365 aircraft pets", CLASSIFICATION),
        ("flickr30k coco_captions", {"retrieval"}),
        ("imagenet9", {"background"}),
        ("ade20k coco_stuff", {"segmentation"}),
        ("vqav2 gqa pope scenes_pope", {"vlm"}),
        ("scenes_background scenes_position", {"linear-probe", "knn"}),
        ("scenes", {*CLASSIFICATION, "retrieval", "background", "segmentation", "vlm"}),
    ],
)
def test_a_data_set_serves_the_tasks_whose_splits_and_columns_it_has(names, tasks):
    for name in names.split():
        assert set(tasks_of(name)) == tasks


def tasks_of(dataset: str) -> list[str]:
    return [task for task in declarations() if serves(dataset, task)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_table_names_columns_that_are_there(name, tmp_path, monkeypatch):
    path = SCHEMAS[name](tmp_path)
    opened = []
    find = datasets_module._find_columns
    monkeypatch.setattr(
        datasets_module,
        "_find_columns",
        lambda rows, *args, **options: opened.append(rows) or find(rows, *args, **options),
    )
    for role, source in DATASETS[name].sources.items():
        split = load_split(name, tasks_of(name)[0], role, path=str(path))
        assert len(split.images) > 0 and split.transform == DATASETS[name].transform
        assert source.columns and set(source.columns.values()) <= set(column_addresses(opened[-1].features))


CLASSIFIED = {  # role: (pictures, labels); names
    "imagenet": (
        {"train": ([0, 1, 2], [0, 0, 1]), "test": ([5, 6], [1, 0])},
        ("tench, Tinca tinca", "goldfish, Carassius auratus"),
        "imagenet",
    ),
    "aircraft": ({"train": ([0, 1], [1, 0]), "test": ([5, 6], [0, 0])}, ("707-320", "A340-300"), "aircraft"),
    "pets": ({"train": ([0, 1], [0, 1]), "test": ([5, 6], [1, 1])}, ("abyssinian", "american_bulldog"), "pets"),
}


@pytest.mark.parametrize("name", CLASSIFIED)
def test_classification_sets(name, tmp_path):
    path, (roles, names, prompt) = SCHEMAS[name](tmp_path), CLASSIFIED[name]
    for role, (pictures, labels) in roles.items():
        split = load_split(name, "linear-probe", role, path=str(path))
        assert shown(split.images) == pictures and list(split.labels) == labels
        assert split.class_names == names and split.prompts == (PROMPTS[prompt],)
        assert split.transform == "evaluation" and split.dropped == 0
        assert isinstance(split.images[0], dict)  # still encoded


def test_classes_of_two_repositories_are_numbered_alike(tmp_path):
    """They order them in their own ways, and write them in their own ways."""
    path = places365(tmp_path)
    train, test = (load_split("places365", "knn", role, path=str(path)) for role in ("train", "test"))
    assert (shown(train.images), train.labels) == ([0, 1, 2], [1, 2, 0])
    assert (shown(test.images), test.labels) == ([5, 6, 7], [0, 1, 2])
    assert train.class_names == ("airfield", "bus/indoor", "zoo")
    assert test.class_names == ("airfield", "bus-indoor", "zoo")
    assert (train.name, test.name) == ("places365/train", "places365/validation")


def test_a_folder_of_all_splits_serves_as_well(tmp_path):
    files = {"train/airfield/a.png": 1, "train/beach/b.png": 2, "val/airfield/c.png": 3, "val/beach/d.png": 4}
    path = folders(tmp_path / "places365", files)
    test = load_split("places365", "zero-shot", "test", path=str(path))
    assert (test.name, shown(test.images), test.labels) == ("places365/validation", [3, 4], [0, 1])
    assert load_split("places365", "knn", "train", path=str(path)).class_names == ("airfield", "beach")


def test_a_split_of_the_catalogue_can_be_named_by_its_own_name(tmp_path):
    path = str(imagenet(tmp_path))
    assert load_split("imagenet", "zero-shot", "validation", path=path).name == "imagenet/validation"
    assert load_split("imagenet", "zero-shot", "test", path=path).name == "imagenet/validation"
    with pytest.raises(ValueError, match=r"no split 'dev': it has train, validation, test"):
        load_split("imagenet", "zero-shot", "dev", path=path)


@pytest.mark.parametrize("name", ["flickr30k", "coco_captions"])
def test_captions_are_the_lines(name, tmp_path):
    split = load_split(name, "retrieval", "test", path=str(captions(tmp_path)))
    assert shown(split.images) == [0, 1] and split.name == f"{name}/test"
    assert split.captions == [("a dog", "a brown dog", "it runs"), ("a cat",)]


def test_imagenet9(tmp_path):
    path = str(imagenet9(tmp_path))
    for number, role in enumerate(("train", *BACKGROUND_ROLES)):
        split = load_split("imagenet9", "background", role, path=path)
        assert shown(split.images) == [number] * 9 and split.labels == list(range(9))
        assert split.class_names[0] == "dog" and split.class_names[2] == "wheeled vehicle"
    assert split.name == "imagenet9/mixed_rand/val"


def test_halves_of_imagenet9_are_disjoint_and_by_class(tmp_path):
    files = {f"{c:02}_class/{i}.png": 2 * c + i % 2 for c in range(9) for i in range(6)}
    folders(tmp_path / "original" / "val", files)
    folders(tmp_path / "mixed_same" / "val", files)
    options = {"path": str(tmp_path), "config_name": "halves"}
    train, test = (load_split("imagenet9", "background", role, **options) for role in ("train", "original"))
    paths = [{image["path"] for image in split.images} for split in (train, test)]
    assert not paths[0] & paths[1] and len(paths[0] | paths[1]) == 54
    assert np.bincount(train.labels).tolist() == np.bincount(test.labels).tolist() == [3] * 9
    assert train.name == "imagenet9/original/train (halves)"
    assert len(load_split("imagenet9", "background", "mixed_same", **options).images) == 54
    with pytest.raises(ValueError, match="--dataset_config halves trains on half"):
        load_split("imagenet9", "background", "train", path=str(tmp_path))
    with pytest.raises(ValueError, match="has none but 'halves'"):
        load_split("imagenet9", "background", "train", path=str(tmp_path), config_name="thirds")


def test_ade20k_has_no_class_for_zero(tmp_path):
    path = str(ade20k(tmp_path))
    train, split = (load_split("ade20k", "segmentation", role, path=path) for role in ("train", "test"))
    assert train.masks[0].tolist() == split.masks[0].tolist() == [[255, 0, 149], [1, 1, 1]]
    assert shown(split.images) == [5] and split.void == 255 and split.transform == "default"
    assert len(split.class_names) == len(DATASETS["ade20k"].class_names) == 150
    assert (split.class_names[0], split.class_names[149]) == ("wall", "flag")


def test_the_official_archive_of_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for kind in ("images", "annotations"):
        (root / kind / "validation").mkdir(parents=True)
    (root / "images" / "validation" / "ADE_1.jpg").write_bytes(picture(4, 1, 2)["bytes"])
    (root / "annotations" / "validation" / "ADE_1.png").write_bytes(png([[0, 13]])["bytes"])
    split = load_split("ade20k", "segmentation", "test", path=str(tmp_path))
    assert split.masks[0].tolist() == [[255, 12]] and shown(split.images) == [4]
    (root / "images" / "validation" / "ADE_2.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images of .* have no mask in .*, such as ADE_2.jpg"):
        load_split("ade20k", "segmentation", "test", path=str(tmp_path))


def test_coco_stuff_leaves_out_the_ids_that_were_never_used(tmp_path):
    path = str(coco_stuff(tmp_path))
    split = load_split("coco_stuff", "segmentation", "test", path=path)
    assert split.masks[0].tolist() == [[0, 11, 170], [255, 23, 24]] and shown(split.images) == [1]
    assert len(split.class_names) == 171
    assert [split.class_names[i] for i in (0, 11, 23, 24, 79, 80, 170)] == [
        "person",
        "stop sign",
        "giraffe",
        "backpack",
        "toothbrush",
        "banner",
        "wood",
    ]
    assert shown(load_split("coco_stuff", "segmentation", "train", path=path).images) == [0]
    ids = {10: "traffic light", 27: "backpack", 46: "wine glass", 67: "dining table", 70: "toilet", 72: "tv"}
    ids |= {31: "handbag", 84: "book", 90: "toothbrush", 92: "banner", 93: "blanket", 182: "wood"}  # as COCO has them
    entry = DATASETS["coco_stuff"]
    assert all(entry.class_names[entry.mask_values[one - 1]] == name for one, name in ids.items())
    assert [one for one in range(1, 183) if entry.mask_values[one - 1] == 255] == [
        *(12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
    ]


def test_vqav2(tmp_path):
    path = str(vqav2(tmp_path))
    split = load_split("vqav2", "vlm", "test", path=path)
    assert shown(split.images) == [5, 6] and split.name == "vqav2/validation"
    assert [(q.image, q.text, q.kind) for q in split.questions] == [
        (0, "Is it?", "yes/no"),
        (1, "How many?", "number"),
        (0, "What color?", "other"),
    ]
    assert split.questions[0].answers == ("yes",) * 9 + ("no",) and split.questions[2].answers == ("red",) * 10
    with pytest.raises(ValueError, match="no split 'testdev': it has train, validation, test"):
        load_split("vqav2", "vlm", "testdev", path=path)


def test_gqa_joins_its_images(tmp_path):
    path = gqa(tmp_path)
    for role, name, first in (("train", "train", 0), ("test", "testdev", 5)):
        split = load_split("gqa", "vlm", role, path=str(path))
        assert shown(split.images) == [first + 2, first + 1] and split.name == f"gqa/{name}"
        assert [(q.image, q.text, q.answers, q.kind) for q in split.questions] == [
            (0, "Who?", ("man",), "query"),
            (1, "Is it?", ("yes",), "verify"),
            (0, "Where?", ("left",), "query"),
        ]
    assert pickle.loads(pickle.dumps(split)).questions == split.questions


def test_pope_learns_from_vqav2(tmp_path):
    path = str(pope(tmp_path))
    train, test = (load_split("pope", "vlm", role, path=path) for role in ("train", "test"))
    assert train.name == "vqav2/train" and shown(train.images) == [0, 1] and len(train.questions) == 3
    assert test.name == "pope/test" and shown(test.images) == [5]
    assert [(q.image, q.answers, q.kind) for q in test.questions] == [
        (0, ("yes",), "random"),
        (0, ("no",), "adversarial"),
    ]


def test_where_data_come_from():
    assert dataset_id("imagenet") == "ILSVRC/imagenet-1k"
    assert dataset_id("imagenet9") == "MadryLab/backgrounds_challenge"
    assert dataset_id("someone/something") == "someone/something"
    assert dataset_id(str(Path(__file__).parent)) == "data"
    assert dataset_id("folder/rows.parquet") == "rows.parquet"


# ----------------------------------------------------------------------------------------------------- any source


def labelled(path: Path, **columns) -> str:
    features = {"image": Image(), **{name: kind for name, (kind, _) in columns.items()}}
    count = len(next(iter(columns.values()))[1])
    values = {name: values for name, (_, values) in columns.items()}
    return str(save(path, test=table(features, image=[picture(i) for i in range(count)], **values)))


def load(path, task="zero-shot", split="test", **options):
    return load_split(str(path), task, split, **options)


@pytest.mark.parametrize("column", ["label", "labels", "fine_label", "cls"])
def test_usual_names_of_labels_are_found(column, tmp_path):
    split = load(labelled(tmp_path, **{column: (INT, [0, 2])}))
    assert split.labels == [0, 2] and split.class_names is None and split.transform == "evaluation"


def test_texts_as_labels_are_numbered_by_the_names(tmp_path):
    path = labelled(tmp_path / "data", label=(STRING, ["dog", "cat", "dog"]))
    split = load(path)
    assert split.labels == [1, 0, 1] and split.class_names == ("cat", "dog")
    names = tmp_path / "names.txt"
    names.write_text("dog\n\ncow\ncat\n")
    split = load(path, class_names=str(names))
    assert split.labels == [0, 2, 0] and split.class_names == ("dog", "cow", "cat")
    names.write_text("dog\ncow\n")
    with pytest.raises(ValueError, match=r"no class names, 1 such as 'cat': the names begin with 'dog', 'cow'"):
        load(path, class_names=str(names))


@pytest.mark.parametrize("text", ['["x", "y"]', '{"names": ["x", "y"], "other": 1}'])
def test_class_names_of_a_json_file(text, tmp_path):
    path = labelled(tmp_path / "data", label=(ClassLabel(names=["a", "b"]), [1, 0]))
    (tmp_path / "names.json").write_text(text)
    split = load(path, class_names=str(tmp_path / "names.json"))
    assert split.class_names == ("x", "y") and split.labels == [1, 0]


def test_class_names_that_do_not_fit(tmp_path):
    path = labelled(tmp_path / "data", label=(ClassLabel(names=["a", "b"]), [1, 0]))
    names = tmp_path / "names.json"
    names.write_text('["x", "y", "z"]')
    with pytest.raises(ValueError, match=r"3 class names, and the column 'label' of data/test has 2 classes.*--class"):
        load(path, class_names=str(names))
    names.write_text('{"classes": 3}')
    with pytest.raises(ValueError, match="is to be a JSON list of names"):
        load(path, class_names=str(names))
    with pytest.raises(ValueError, match="does not open"):
        load(path, class_names=str(tmp_path / "none.txt"))
    names.write_text('["x", "y"]')
    with pytest.raises(ValueError, match=r"go up to 2, and there are 2 class names: labels count from 0"):
        load(labelled(tmp_path / "more", label=(INT, [0, 2])), class_names=str(names))


def test_wordnet_ids_become_words(tmp_path):
    path = folders(tmp_path / "in", {"train/n01440764/a.png": 1, "val/n01440764/b.png": 2, "val/n01443537/c.png": 3})
    split = load(path)
    assert split.name == "in/validation" and shown(split.images) == [2, 3]
    assert split.class_names == ("tench, Tinca tinca", "goldfish, Carassius auratus")


def test_samples_without_a_label_are_counted_and_splits_without_any_refused(tmp_path, caplog):
    some = load(labelled(tmp_path / "some", label=(INT, [1, -1, 0, None])))
    assert some.labels == [1, 0] and shown(some.images) == [0, 2] and some.dropped == 2
    with pytest.raises(ValueError, match=r"split none/test has no labels.*--test_split, such as validation"):
        load(labelled(tmp_path / "none", label=(INT, [-1, -1])))
    with pytest.raises(ValueError, match=r"are to be integers or names, and some are list"):
        load(labelled(tmp_path / "lists", label=(List(INT), [[1], [0, 2]])))
    with pytest.raises(ValueError, match=r"some are float"):
        load(labelled(tmp_path / "floats", label=(Value("float32"), [0.5, 1.0])))


def test_columns_are_named_or_listed(tmp_path):
    path = labelled(tmp_path, kind=(STRING, ["x", "y"]), meta=({"species": STRING}, [{"species": s} for s in "ba"]))
    assert load(path, columns={"label": "kind"}).class_names == ("x", "y")
    nested = load(path, columns={"label": "meta.species"})
    assert nested.labels == [1, 0] and nested.class_names == ("a", "b")
    with pytest.raises(
        ValueError, match=r"Which column of .*/test holds the labels\? Name it with --label_column.*'kind'"
    ):
        load(path)
    with pytest.raises(
        ValueError, match=r"no column 'kinds' of labels. Did you mean 'kind'\?.*--label_column.*'meta'"
    ):
        load(path, columns={"label": "kinds"})
    with pytest.raises(ValueError, match="--image_column"):
        load(path, columns={"label": "kind", "image": "picture"})


def test_a_wrong_column_of_the_catalogue_is_no_guess(tmp_path):
    with pytest.raises(ValueError, match="no column 'species' of labels"):
        load_split("pets", "knn", "test", path=str(pets(tmp_path)), columns={"label": "species"})


def test_the_roles_of_a_source_that_is_not_in_the_table(tmp_path):
    rows = image_labels(["a", "b"], [0, 1])
    path = save(tmp_path / "data", train=rows, validation=image_labels(["a", "b"], [1], first=5))
    assert load(path).name == "data/validation" and load(path, "knn", "train").name == "data/train"
    path = save(tmp_path / "only", train=rows)
    with pytest.raises(
        ValueError, match=r"has no split 'test': it has train. Choose with --train_split and --test_split"
    ):
        load(path)
    assert load(path, split="train").labels == [0, 1] and load(path, split="train[50%:]").labels == [1]
    rows.to_parquet(tmp_path / "rows.parquet")
    assert shown(load(tmp_path / "rows.parquet", split="train[1:]").images) == [1]
    with pytest.raises(ValueError, match=r"rows.parquet has no split 'test': it has train"):
        load(tmp_path / "rows.parquet")


def test_only_the_files_of_the_split_are_read(tmp_path, monkeypatch):
    """`load_dataset` would fetch those of all splits, 150 GB of ImageNet for its validation split."""
    (tmp_path / "data").mkdir()
    image_labels(["a", "b"], [1, 0]).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"not to be read")
    build = sources.load_dataset_builder
    monkeypatch.setattr(sources, "load_dataset_builder", lambda name, config: build(str(tmp_path)))
    split = load("owner/name")
    assert split.name == "name/validation" and split.class_names == ("a", "b") and split.labels == [1, 0]
    assert shown(load("owner/name", split="validation[1:]").images) == [1]


def test_max_samples_draws_the_same_samples_at_random(tmp_path):
    path = labelled(tmp_path, label=(INT, sorted(i % 5 for i in range(25))))
    first, again = (load(path, max_samples=10) for _ in range(2))
    other = load(path, max_samples=10, seed=1)
    assert len(first.images) == len(first.labels) == 10 and shown(first.images) == shown(again.images)
    assert shown(first.images) == sorted(shown(first.images)) != shown(other.images)
    assert len(set(first.labels)) > 2  # not the first so many
    assert [i // 5 for i in shown(first.images)] == first.labels
    assert len(load(path, max_samples=100).images) == 25
    with pytest.raises(ValueError, match="max_samples=0"):
        load(path, max_samples=0)


def test_max_samples_of_questions_counts_questions(tmp_path):
    split = load_split("gqa", "vlm", "test", path=str(gqa(tmp_path)), max_samples=1, seed=2)
    assert len(split.questions) == len(split.images) == 1 and split.questions[0].image == 0
    expected = {"Who?": 7, "Is it?": 6, "Where?": 7}
    assert shown(split.images) == [expected[split.questions[0].text]]


def test_captions_of_any_source(tmp_path):
    path = labelled(tmp_path / "a", captions=(List(STRING), [["a", "b"], [], ["c"]]))
    assert load(path, "retrieval").captions == [("a", "b"), (), ("c",)]
    assert load(labelled(tmp_path / "b", text=(STRING, ["one", None])), "retrieval").captions == [("one",), ()]
    with pytest.raises(ValueError, match="no caption in its column 'text'"):
        load(labelled(tmp_path / "c", text=(STRING, ["", None])), "retrieval")
    with pytest.raises(ValueError, match=r"Captions are to be texts.*--caption_column"):
        load(labelled(tmp_path / "d", captions=(List(INT), [[1], [2]])), "retrieval")


def segmented(path: Path, masks: list, image=(2, 3), **columns) -> str:
    rows = table(
        {"image": Image(), "mask": Image()},
        image=[picture(i, *image) for i in range(len(masks))],
        mask=[png(mask) if isinstance(mask, list) else mask for mask in masks],
    )
    return str(save(path, test=rows))


def test_masks_of_any_source(tmp_path):
    (tmp_path / "names.txt").write_text("sky\nsea\nland\n")
    grey = np.repeat(np.array([[2, 1, 0], [255, 0, 0]])[..., None], 3, axis=2)
    palette = PILImage.fromarray(np.array([[0, 1, 2], [2, 2, 255]], dtype=np.uint8), "P")
    palette.putpalette([0, 0, 0, 90, 80, 70] * 128)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    masks = [[[0, 1, 2], [255, 2, 0]], png(grey), {"bytes": buffer.getvalue(), "path": None}]
    split = load(segmented(tmp_path / "data", masks), "segmentation", class_names=str(tmp_path / "names.txt"))
    assert [mask.tolist() for mask in split.masks] == [
        [[0, 1, 2], [255, 2, 0]],
        [[2, 1, 0], [255, 0, 0]],
        [[0, 1, 2], [2, 2, 255]],
    ]
    assert split.class_names == ("sky", "sea", "land") and split.void == 255 and split.transform == "default"
    loaded = DataLoader(split.masks, batch_size=None, num_workers=1)
    assert [mask.tolist() for mask in loaded][0] == [[0, 1, 2], [255, 2, 0]]


def test_masks_that_do_not_fit(tmp_path):
    (tmp_path / "names.txt").write_text("sky\nsea\n")
    names = {"class_names": str(tmp_path / "names.txt")}
    good = [[0, 1, 1], [1, 0, 0]]
    split = load(segmented(tmp_path / "a", [good, [[0, 7, 1], [0, 0, 0]]]), "segmentation", **names)
    assert split.masks[0].tolist() == good
    with pytest.raises(
        ValueError, match=r"Mask 1 of a/test has the value 7: they go from 0 to 1, and 255 is void.*--class"
    ):
        split.masks[1]
    split = load(segmented(tmp_path / "b", [good], image=(3, 2)), "segmentation", **names)
    with pytest.raises(ValueError, match=r"Mask 0 of b/test is 2 x 3 \(height x width\), and its image 3 x 2"):
        split.masks[0]
    colours = png(np.arange(18).reshape(2, 3, 3))
    split = load(segmented(tmp_path / "c", [colours]), "segmentation", **names)
    with pytest.raises(ValueError, match=r"uint8 \(2, 3, 3\).*colours stand for classes, save the numbers instead"):
        split.masks[0]


def test_a_rotated_photo_has_the_size_that_it_is_opened_with(tmp_path):
    photo, buffer = PILImage.new("RGB", (2, 3)), io.BytesIO()
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(buffer, "JPEG", exif=exif)
    rows = table(
        {"image": Image(), "mask": Image()},
        image=[{"bytes": buffer.getvalue(), "path": None}],
        mask=[png([[0, 1, 1], [1, 0, 0]])],
    )
    split = load(save(tmp_path, test=rows), "segmentation")
    assert open_image(split.images[0]).size == (3, 2) and split.masks[0].shape == (2, 3)


def test_questions_of_any_source(tmp_path):
    path = labelled(tmp_path / "a", question=(STRING, ["a?", "b?", "c?"]), answer=(STRING, ["x", None, "z"]))
    split = load(path, "vlm")
    assert [(q.image, q.text, q.answers, q.kind) for q in split.questions] == [
        (0, "a?", ("x",), None),
        (1, "c?", ("z",), None),
    ]
    assert shown(split.images) == [0, 2] and split.dropped == 1
    by_field = {"answer": List(STRING), "answer_id": List(INT)}
    path = labelled(
        tmp_path / "b", question=(STRING, ["a?"]), answers=(by_field, [{"answer": ["x", "y"], "answer_id": [1, 2]}])
    )
    assert load(path, "vlm").questions[0].answers == ("x", "y")
    path = labelled(tmp_path / "c", question=(STRING, ["a?"]), answers=(List(STRING), [[]]))
    with pytest.raises(ValueError, match=r"split c/test has no answers in its column 'answers'.*--test_split"):
        load(path, "vlm")


def test_a_question_about_no_image(tmp_path):
    path = gqa(tmp_path)
    images = table({"id": STRING, "image": Image()}, id=["n1"], image=[picture(1)])
    save(tmp_path / "other" / "testdev_balanced_images", testdev=images)
    (path / "testdev_balanced_instructions").rename(tmp_path / "other" / "testdev_balanced_instructions")
    with pytest.raises(ValueError, match="asks about 1 images that are not there, such as 'n5'"):
        load_split("gqa", "vlm", "test", path=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("pets", "retrieval", "test"),
            {},
            "pets is no data for retrieval: it serves zero-shot, .*retrieval: flickr30k",
        ),
        (("pets", "retrival", "test"), {}, "Unknown task 'retrival'"),
        (("pets", "knn", "test"), {"path": "nowhere"}, "--dataset_path nowhere does not exist"),
        (("mine", "knn", "test"), {"path": "."}, r"give the folder as --dataset \."),
        (
            ("imagenet9", "background", "train"),
            {},
            "Get it from https://github.com/MadryLab.*--dataset_path.*mixed_same",
        ),
        (("coco_stuff", "segmentation", "test"), {"path": "."}, "is no copy of coco_stuff .*stuffthingmaps"),
        (("scenes", "knn", "test"), {"columns": {"label": "x"}}, "drawn on the spot: it takes no column"),
        (("scenes", "knn", "test"), {"config_name": "large"}, "side of the images in pixels"),
        (("scenes", "knn", "test"), {"config_name": "32:0.2"}, "64 or 64:0.2-0.3"),
        (("scenes", "knn", "test"), {"config_name": "32:0.6-0.2"}, r"scale_range=\(0.6, 0.2\)"),
        (("scenes_position", "zero-shot", "test"), {}, "scenes_position is no data for zero-shot"),
        (("scenes", "knn", "dev"), {}, "Unknown split 'dev'"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_split(*arguments, **options)


def test_what_is_not_within_reach_says_how_to_get_it():
    with pytest.raises(
        OSError, match=r"No data set 'imagnet'.*Did you mean 'imagenet'\? Known by name: imagenet, places"
    ):
        load_split("imagnet", "knn", "test")
    with pytest.raises(OSError, match=r"imagenet \(ILSVRC/imagenet-1k\).*accept its terms at .*--dataset_path"):
        load_split("imagenet", "knn", "test")
    with pytest.raises(
        OSError, match=r"pets \(timm/oxford-iiit-pet\) is not within reach: .* To mend it, name a local"
    ):
        load_split("pets", "knn", "test")


def test_what_a_split_lacks():
    split = EvaluationSplit("x/test", images=[])
    with pytest.raises(ValueError, match="x/test has no class names: name where they are with --class_names"):
        split.require("class_names")
    with pytest.raises(ValueError, match="no captions: name where they are with --caption_column"):
        split.require("captions")


def test_a_set_of_prompts_by_name(encoder):
    split = load_split("scenes", "zero-shot", "test", max_samples=3, config_name="32")
    result = evaluate_zero_shot(encoder, split, ZeroShotProtocol(prompts=["imagenet_7"]), show_progress=False)
    assert result.details["prompts"] == list(PROMPT_ENSEMBLES["imagenet_7"]) and len(result.details["prompts"]) == 7


@pytest.fixture
def encoder(model, processor):
    from levljepa_hf.encoders.encoders import LeVLJEPAEncoder

    return LeVLJEPAEncoder("debug", model, processor)


# ---------------------------------------------------------------------------------------------------------- scenes


def same(images, scenes, key="image") -> bool:
    return all(np.array_equal(image, scenes[i][key]) for i, image in enumerate(images))


def test_scenes_with_labels():
    split = load_split("scenes", "zero-shot", "test")
    assert len(split.images) == len(split.labels) == 1000 and split.transform == "default"
    scenes = SceneDataset("test", 20, 48, pair_fraction=0)
    assert same(list(split.images[i] for i in range(20)), scenes)
    assert split.labels[:20] == [scenes[i]["label"] for i in range(20)]
    assert split.prompts == ("a photo of {}.",) and len(split.class_names) == 60
    assert split.class_names[CLASS_NAMES.index("apple")] == "an apple"
    train = load_split("scenes", "linear-probe", "train", config_name="32")
    assert len(train.images) == 4000 and train.images[0].size == (32, 32) and train.name == "scenes/train (32)"
    few = load_split("scenes", "knn", "test", max_samples=7)
    assert len(few.images) == len(few.labels) == 7 and few.labels != split.labels[:7]
    index = next(i for i in range(1000) if np.array_equal(split.images[i], few.images[0]))
    assert split.labels[index] == few.labels[0]


def test_scenes_with_other_labels_and_sizes():
    few = SceneDataset("test", 30, 32, pair_fraction=0, scale_range=(0.2, 0.3))
    splits = {
        name: load_split(name, "knn", "test", config_name="32:0.2-0.3")
        for name in ("scenes", "scenes_background", "scenes_position")
    }
    for name, split in splits.items():
        assert same([split.images[i] for i in range(30)], few) and split.name == f"{name}/test (32:0.2-0.3)"
    things = [few.scene(i) for i in range(30)]
    assert splits["scenes"].labels[:30] == [one.objects[0].label for one in things]
    assert splits["scenes_background"].labels[:30] == [one.background for one in things]
    assert splits["scenes_position"].labels[:30] == [one.objects[0].position for one in things]
    assert all(0.2 <= one.objects[0].scale <= 0.3 for one in things)
    assert [len(split.class_names) for split in splits.values()] == [60, 48, 9]
    assert splits["scenes_background"].class_names[1] == "a plain orange background"
    mixed = load_split("scenes", "background", "mixed_rand", config_name="32:0.2-0.3")
    assert same([mixed.images[0]], BackgroundScenes("test", 1, 32, variant="mixed_rand", scale_range=(0.2, 0.3)))


def test_scenes_with_captions_and_masks():
    scenes = SceneDataset("test", 5, 48, pair_fraction=0)
    split = load_split("scenes", "retrieval", "test")
    assert split.captions[:5] == [tuple(scenes[i]["captions"]) for i in range(5)]
    split = load_split("scenes", "segmentation", "test")
    assert same([split.masks[i] for i in range(5)], scenes, "mask") and same(
        [split.images[i] for i in range(5)], scenes
    )
    assert split.class_names == ("background", *CLASS_NAMES) and split.void is None
    again = pickle.loads(pickle.dumps(split))
    assert np.array_equal(again.masks[3], split.masks[3])


def test_scenes_with_mixed_backgrounds():
    splits = {role: load_split("scenes", "background", role) for role in ("train", *BACKGROUND_ROLES)}
    for role, split in splits.items():
        variant = "original" if role == "train" else role
        scenes = BackgroundScenes("train" if role == "train" else "test", 5, 48, variant=variant)
        assert same([split.images[i] for i in range(5)], scenes) and split.name == f"scenes/{role}"
    assert splits["original"].labels == splits["mixed_same"].labels == splits["mixed_rand"].labels
    assert len(splits["train"].images) == 4000 and splits["train"].labels[:1000] != splits["original"].labels


def test_scenes_with_questions():
    split = load_split("scenes", "vlm", "test")
    assert len(split.images) == 1000 and len(split.questions) == 6000
    assert {q.kind for q in split.questions} == {"yes/no", "number", "other"}
    assert all(len(q.answers) == 10 and len(set(q.answers)) == 1 for q in split.questions)
    counts = [q.answers[0] for q in split.questions if q.kind == "number"]
    assert 0.4 < counts.count("2") / len(counts) < 0.6
    assert same([split.images[i] for i in range(3)], SceneDataset("test", 3, 48, pair_fraction=0.5))
    small, few = (load_split("scenes", "vlm", "test", max_samples=n, config_name="16") for n in (None, 5))
    assert len(few.questions) == 5 and {q.image for q in few.questions} == set(range(len(few.images)))
    number = {np.asarray(image).tobytes(): i for i, image in enumerate(small.images)}
    asked = {(q.text, q.image, q.answers) for q in small.questions}
    assert all((q.text, number[np.asarray(few.images[q.image]).tobytes()], q.answers) in asked for q in few.questions)


def test_scenes_in_the_form_of_pope():
    split = load_split("scenes_pope", "vlm", "test")
    answers = [q.answers for q in split.questions]
    assert len(answers) == 2000 and answers.count(("yes",)) == answers.count(("no",)) == 1000
    assert {q.kind for q in split.questions} == {"random"}


# ------------------------------------------------------------------------------------------------ real data, if here


@pytest.mark.skipif(not KITS.is_dir(), reason="the photos to try things on are not there")
def test_real_kits():
    split = load(KITS / "imagenette-500", split="validation")
    assert len(split.images) == 200 and np.bincount(split.labels).tolist() == [20] * 10
    assert split.class_names[0] == "French_horn"
    names = str(KITS / "coco-stuff-100" / "classes.json")
    split = load(KITS / "coco-stuff-100", "segmentation", class_names=names)
    assert len(split.class_names) == 129 and split.masks[0].max() == 255 and split.name == "coco-stuff-100/validation"
    shares = [np.mean(split.masks[i] == 255) for i in range(0, 100, 5)]
    assert 0.05 < np.mean(shares) < 0.15
    split = load(KITS / "flickr8k-800", "retrieval")
    assert len(split.images) == 100 and {len(one) for one in split.captions} == {5}
    assert open_image(split.images[0]).size[0] > 60
