"""The catalogue of the data sets that are known by name: one table, `DATASETS`, of where their splits and columns are.

Only repositories of data files are in it (`datasets` 5 runs no loading scripts). Where none is known, the official
archive is read from its folder (`--dataset_path`). The repositories of the four classification sets are those of the
official zero-shot evaluation, ADE20K's is that of the reproduction.

This file has facts and no machinery, which is in `labelled` and `sources`. Which tasks of the evaluation a data set
serves follows from its splits and columns.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..scenes.scene import PROMPT_TEMPLATE

# The official evaluation's prompt for each dataset, and the one of its evaluation during training.
PROMPTS = {
    "imagenet": "a photo of a {}.",
    "imagenet_online": "a photo of a {}",
    "places365": "a photo of a {}.",
    "aircraft": "a photo of a {}, a type of aircraft.",
    "pets": "a photo of a {}, a type of pet.",
}

BACKGROUND_ROLES = ("original", "mixed_same", "mixed_rand")


@dataclass(frozen=True)
class Join:
    """Images that are in a configuration of their own, by id."""

    config: str
    id_column: str = "id"
    image_column: str = "image"


@dataclass(frozen=True)
class Source:
    """Where a split is.

    Args:
        repo: Hub id, or where the official archive comes from.
        split: Name of the split; of a folder layout, the folder.
        columns: By role: image, label, caption, mask, question, answer; also `kind` (of question or answer) and
            `image_id` (the same for all questions about an image). Fields of nested columns with dots. Of a data set
            that is drawn on the spot the roles alone count.
        config: Configuration of the repository.
        local_split: What the split is called in a folder that holds all of the data set, where not as in `repo`.
        images: Where the images are, if not in the rows.
        borrowed: The data set that it belongs to, if another one: POPE has no training split.
    """

    repo: str
    split: str
    columns: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None
    local_split: str | None = None
    images: Join | None = None
    borrowed: str | None = None


@dataclass(frozen=True)
class CatalogueEntry:
    """What is known of a data set.

    Args:
        sources: By role of the task: train, test; of the task `background` train, original, mixed_same, mixed_rand.
        licence: In short; the data sets' own terms hold.
        home: Where it comes from.
        on_hub: Whether `Source.repo` is on the Hub. If not, a folder is needed.
        generated: Whether it is drawn on the spot.
        gated: Whether the Hub wants its terms accepted.
        unfit_for: Tasks that its columns would allow, and that mean nothing on it.
        class_names: Where the data do not say them.
        sort_classes: Number the classes by their sorted names, as the splits come from repositories that each number
            them in their own way.
        prompts: Of zero-shot classification, the official ones.
        transform: How images are prepared, see `EvaluationSplit`.
        mask_values: The class of each value of the mask files, `void` for none.
        void: Of masks, the value of no class.
        layout: Which folder of the official archive `--dataset_path` can be: a name of `sources.LAYOUTS`.
        layout_help: What that folder holds.
    """

    sources: Mapping[str, Source]
    licence: str
    home: str
    on_hub: bool = True
    generated: bool = False
    gated: bool = False
    unfit_for: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    sort_classes: bool = False
    prompts: tuple[str, ...] = (PROMPTS["imagenet"],)
    transform: str = "evaluation"
    mask_values: tuple[int, ...] | None = None
    void: int | None = 255
    layout: str | None = None
    layout_help: str = ""

    def gives(self, columns: Collection[str], roles: Collection[str]) -> bool:
        """Whether it has a split for each of the roles, with all of these columns."""
        return all(role in self.sources and {*columns} <= {*self.sources[role].columns} for role in roles)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split(",") if name.strip())


_ADE20K_CLASSES = _names("""
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
    door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
    field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
    signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
    stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table,
    toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television
    receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster,
    stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket,
    waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal,
    bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan,
    pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
""")

# 80 things, then 91 kinds of stuff, in the order of their ids.
_COCO_STUFF_CLASSES = _names("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet,
    cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain,
    desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower,
    fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
    mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform,
    playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper,
    snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable,
    wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops,
    window-blind, window-other, wood
""")
# The files have COCO's ids less one, 0 to 181; these eleven were never used.
_COCO_STUFF_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
_COCO_STUFF_USED = [value for value in range(182) if value not in _COCO_STUFF_UNUSED]

_IMAGENET9_CLASSES = _names(
    "dog, bird, wheeled vehicle, reptile, carnivore, insect, musical instrument, primate, fish"
)

_VQAV2 = {"image": "image", "question": "question", "answer": "answers", "kind": "answer_type", "image_id": "image_id"}
_GQA = {"question": "question", "answer": "answer", "kind": "types.structural", "image_id": "imageId"}
_POPE = {"image": "image", "question": "question", "answer": "answer", "kind": "category", "image_id": "image_source"}
_CLASSES = {"image": "image", "label": "label"}
_CAPTIONS = {"image": "jpg", "caption": "txt"}  # webdatasets; the captions of an image are lines


def _gqa(split: str) -> Source:
    config = f"{split}_balanced_instructions"
    return Source("lmms-lab/GQA", split, _GQA, config, images=Join(f"{split}_balanced_images"))


def _scenes(*columns: str, roles: Collection[str] = ("train", "test")) -> dict[str, Source]:
    return {role: Source("levljepa_hf/scenes", "test", {one: one for one in ("image", *columns)}) for role in roles}


DATASETS: dict[str, CatalogueEntry] = {
    "imagenet": CatalogueEntry(
        sources={
            "train": Source("ILSVRC/imagenet-1k", "train", _CLASSES),
            "test": Source("ILSVRC/imagenet-1k", "validation", _CLASSES),  # its own test split has no labels
        },
        # The names are the data's, all synonyms of a synset, as in the official evaluation. Names curated for CLIP are
        # better for zero-shot classification: --class_names.
        licence="non-commercial research and education",
        home="https://image-net.org",
        gated=True,
    ),
    "places365": CatalogueEntry(
        sources={
            "train": Source("Andron00e/Places365-custom", "train", {"image": "image", "label": "labels"}),
            "test": Source("dpdl-benchmark/Places365-Validation", "train", _CLASSES, local_split="validation"),
        },
        sort_classes=True,
        licence="non-commercial research and education",
        home="http://places2.csail.mit.edu",
    ),
    "aircraft": CatalogueEntry(
        sources={
            "train": Source("Multimodal-Fatima/FGVC_Aircraft_train", "train", _CLASSES),
            "test": Source("Multimodal-Fatima/FGVC_Aircraft_test", "test", _CLASSES),
        },
        sort_classes=True,
        prompts=(PROMPTS["aircraft"],),
        licence="non-commercial research",
        home="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft (100 variants)",
    ),
    "pets": CatalogueEntry(
        sources={
            "train": Source("timm/oxford-iiit-pet", "train", _CLASSES),
            "test": Source("timm/oxford-iiit-pet", "test", _CLASSES),
        },
        prompts=(PROMPTS["pets"],),
        licence="CC BY-SA 4.0",
        home="https://www.robots.ox.ac.uk/~vgg/data/pets (37 breeds)",
    ),
    "flickr30k": CatalogueEntry(
        sources={"test": Source("clip-benchmark/wds_flickr30k", "test", _CAPTIONS)},
        licence="images: Flickr's terms, non-commercial research and education",
        home="https://shannon.cs.illinois.edu/DenotationGraph (Karpathy's 1,000 test images)",
    ),
    "coco_captions": CatalogueEntry(
        sources={"test": Source("clip-benchmark/wds_mscoco_captions", "test", _CAPTIONS)},
        licence="annotations CC BY 4.0, images Flickr's terms",
        home="https://cocodataset.org (Karpathy's 5,000 test images of COCO 2014)",
    ),
    "imagenet9": CatalogueEntry(
        sources={
            "train": Source("MadryLab/backgrounds_challenge", "original/train", _CLASSES),
            **{
                role: Source("MadryLab/backgrounds_challenge", f"{role}/val", _CLASSES)
                for role in ("original", "mixed_same", "mixed_rand")
            },
        },
        class_names=_IMAGENET9_CLASSES,
        licence="images of ImageNet: non-commercial research and education",
        home="https://github.com/MadryLab/backgrounds_challenge",
        on_hub=False,
        layout="imagenet9",
        layout_help=(
            "original/train/00_dog/*, original/val/..., mixed_same/val/... and mixed_rand/val/... original/train is a "
            "download of its own; without it, --dataset_config halves trains on half of the images of original/val, "
            "drawn by class, and tests on the other half; the mixed images are not halved, so foregrounds of training "
            "images may recur among them and the drops may come out too small"
        ),
    ),
    "ade20k": CatalogueEntry(
        sources={
            "train": Source("merve/scene_parse_150", "train", {"image": "image", "mask": "annotation"}),
            "test": Source("merve/scene_parse_150", "validation", {"image": "image", "mask": "annotation"}),
        },
        class_names=_ADE20K_CLASSES,
        mask_values=(255, *range(150)),  # the files have 0 for void, and classes from 1
        transform="default",
        licence="BSD 3-Clause; images for non-commercial research and education",
        home="http://sceneparsing.csail.mit.edu",
        layout="ade20k",
        layout_help="images/{training,validation} and annotations/{training,validation}, as in ADEChallengeData2016",
    ),
    "coco_stuff": CatalogueEntry(
        sources={
            "train": Source("nightrome/cocostuff", "train2017", {"image": "image", "mask": "mask"}),
            "test": Source("nightrome/cocostuff", "val2017", {"image": "image", "mask": "mask"}),
        },
        class_names=_COCO_STUFF_CLASSES,
        mask_values=tuple(_COCO_STUFF_USED.index(v) if v in _COCO_STUFF_USED else 255 for v in range(182)),
        transform="default",
        licence="annotations CC BY 4.0, images Flickr's terms",
        home="https://github.com/nightrome/cocostuff",
        on_hub=False,
        layout="coco_stuff",
        layout_help=(
            "train2017/ and val2017/ of the COCO images, and stuffthingmaps/train2017, stuffthingmaps/val2017 of "
            "stuffthingmaps_trainval2017.zip"
        ),
    ),
    "vqav2": CatalogueEntry(
        sources={
            "train": Source("pingzhili/vqa_v2", "train", _VQAV2),
            "test": Source("pingzhili/vqa_v2", "validation", _VQAV2),  # its own test split has no answers
        },
        transform="default",
        licence="annotations CC BY 4.0, images Flickr's terms",
        home="https://visualqa.org",
    ),
    "gqa": CatalogueEntry(
        sources={
            "train": _gqa("train"),
            "test": _gqa("testdev"),
        },
        transform="default",
        licence="images of Visual Genome, CC BY 4.0",
        home="https://cs.stanford.edu/people/dorarad/gqa",
    ),
    "pope": CatalogueEntry(
        sources={
            "train": Source("pingzhili/vqa_v2", "train", _VQAV2, borrowed="vqav2"),
            "test": Source("lmms-lab/POPE", "test", _POPE),
        },
        transform="default",
        licence="questions MIT, images of COCO: Flickr's terms",
        home="https://github.com/RUCAIBox/POPE (its training split is VQAv2's)",
    ),
    # Drawn on the spot. --dataset_config is the images' side, by default 48 pixels, on which the demo trains.
    "scenes": CatalogueEntry(
        sources=_scenes("label", "caption", "mask", "question", "answer", roles=("train", "test", *BACKGROUND_ROLES)),
        generated=True,
        prompts=(PROMPT_TEMPLATE,),
        transform="default",
        void=None,
        licence="CC BY-SA 4.0 (OpenMoji's drawings)",
        home="levljepa_hf.scenes; questions in the form of VQAv2",
    ),
    **{
        f"scenes_{what}": CatalogueEntry(
            sources=_scenes("label"),
            generated=True,
            # A place or a ground is not what a prompt asks for, and the attentive probe's crops and flips change it.
            unfit_for=("zero-shot", "attentive-probe"),
            transform="default",
            licence="CC BY-SA 4.0 (OpenMoji's drawings)",
            home=f"levljepa_hf.scenes; the labels are the {what}s",
        )
        for what in ("background", "position")
    },
    "scenes_pope": CatalogueEntry(
        sources=_scenes("question", "answer"),
        generated=True,
        transform="default",
        licence="CC BY-SA 4.0 (OpenMoji's drawings)",
        home="levljepa_hf.scenes; yes-or-no questions in the form of POPE, setting random",
    ),
}


__all__ = ["BACKGROUND_ROLES", "CatalogueEntry", "DATASETS", "Join", "PROMPTS", "Source"]
