"""What a user can mend ends every command with status 2 and one line that names it, before any work."""

from pathlib import Path

import pytest

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, cli

PRETRAIN = ["--recipe", "flickr8k", "--dataset", "photos", "--max_steps", "1", "--output_dir", "out"]
CALLS = [
    (["pretrain", "--dataset", "none/x*.tar", "--streaming"], "No file matches 'none/x*.tar'"),
    (["pretrain", "--dataset", "none/x*.tar"], "No file matches 'none/x*.tar'"),
    (["pretrain", "--gradient_accumulation_steps", "0"], "gradient_accumulation_steps=0"),
    (["pretrain", "--crop_scale", "-1", "1"], "crop_scale=[-1.0, 1.0]"),
    (["pretrain", "--pad_to_multiple_of", "0"], "pad_to_multiple_of=0"),
    (["pretrain", "--max_train_samples", "0"], "max_samples=0"),
    (["pretrain", "--config", "vision_config.drop_path_rate=2"], "drop_path_rate=2"),
    (["pretrain", "--config", "projection_dim=-3"], "projection_dim"),
    (["pretrain", "--load_best_model_at_end"], "needs --eval_split"),
    (["pretrain", "--eval_split", "validation", "--metric_for_best_model", "accuracy"], "accuracy is no figure"),
    (["pretrain", "--resume_from_checkpoint", "true"], "no complete checkpoint"),
    (["pretrain", "--resume_from_checkpoint", "nowhere"], "no such folder"),
    (["pretrain", "--output_dir", "file/out"], "file"),
    (["pretrain", "--lr_scheduler_kwargs", '{"nope": 1}'], "lr_scheduler_kwargs={'nope': 1}"),
    (["pretrain", "--recipe", "flicker8k"], "Did you mean 'flickr8k'?"),
    (["finetune", "classify", "--help"], "no task 'classify'. Did you mean 'classification'?"),
    (["recipes", "show", "demos"], "No recipe 'demos'. Did you mean 'demo'?"),
    (["recipes", "show"], "takes the name of a recipe"),
    (["pretrian"], "no command 'pretrian'. Did you mean 'pretrain'?"),
    (["convert", "nowhere", "target"], "nowhere"),
    (["convert", "empty", "target"], "holds no checkpoint"),
    (["convert", "checkpoint", "file"], "is there already"),
    (["convert", "checkpoint", "file/target"], "file"),
    (["demo", "--steps", "0"], "steps=0"),
    (["demo", "--scenes", "99999999999"], "scenes=99999999999"),
    (["demo", "--output-dir", "checkpoint"], "holds a run already"),
    (["demo", "--output-dir", "file/demo"], "file"),
    (["card", "empty"], "empty"),
    (["evaluate", "knn", "--model", "empty", "--dataset", "scenes"], "empty"),
    (["evaluate", "knn", "--model", "checkpoint", "--dataset", "scenes", "--max_samples", "0"], "max_samples=0"),
    (["embed", "--model", "checkpoint", "--dataset", "photos", "--output", "file/out"], "file"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, images) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "file").write_text("a file")
    (folder / "empty").mkdir()
    LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")).save_pretrained(folder / "checkpoint")
    LeVLJEPAProcessor.from_image_size(32).save_pretrained(folder / "checkpoint")
    for split in ("train", "validation"):
        photos = folder / "photos" / split
        photos.mkdir(parents=True)
        lines = []
        for i in range(130 if split == "train" else 4):  # a batch of the recipe's
            images[i % 4].resize((24, 24)).save(photos / f"{i}.png")
            lines.append(f'{{"file_name": "{i}.png", "captions": ["photo {i}"]}}')
        (photos / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(("call", "message"), CALLS, ids=lambda value: " ".join(value)[:60])
def test_a_bad_call_ends_with_a_line_and_status_2(call, message, place, monkeypatch, capsys) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(place / "cache"))
    before = {path for path in place.rglob("*") if "cache" not in path.parts}
    command, *argv = call
    if command == "pretrain":
        argv = [*PRETRAIN, "--use_cpu", "--report_to", "none", "--cache_dir", str(place / "cache"), *argv]
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(cli.main([command, *argv]))
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and message in last, last
    left = {path for path in place.rglob("*") if "cache" not in path.parts} - before
    assert not any(path.name.endswith((".safetensors", ".json")) for path in left), left
