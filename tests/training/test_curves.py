"""The curves of runs: logs read from where they are, panels, overlays, smoothing, the command and its errors."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from transformers import TrainerCallback

from levljepa_hf import cli
from levljepa_hf.training.curves import PANELS, plot_runs, read_run
from levljepa_hf.training.log_file import LogFile
from test_trainer import samples, trainer


def line(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "loss": 2.0 / step, "learning_rate": 1e-3 * step, **figures}


def health(step: int, **figures: Any) -> dict[str, Any]:
    ranks = {"effective_rank_vision": 9.0 + step, "effective_rank_text": 7.0}
    sigreg = {"sigreg_vision": 3.0, "sigreg_text": 2.0, "sigreg_floor": 1.0, "sigreg_ceiling": 50.0}
    return line(step, **ranks, **sigreg, health_warnings=0, **figures)


def evaluation(step: int) -> dict[str, Any]:
    return {"step": step, "eval_loss": 1.0, "eval_text_to_image_R@1": 0.1, "eval_text_to_image_R@5": 0.3}


def write(folder: Path, *entries: dict[str, Any], name: str = "trainer_state.json", **state: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"log_history": list(entries), "global_step": 0, "max_steps": 40, **state}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    probes = {"step": 20, "probe_linear_top1": 0.3, "probe_linear_top5": 0.6}
    return write(tmp_path / "run", line(10, prediction_loss=0.5), health(20), evaluation(20), probes, health(30))


def titles(figure: Any) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


def curves(figure: Any, title: str) -> list[tuple[list[float], list[float]]]:
    (axis,) = [axis for axis in figure.axes if axis.get_title() == title]
    return [(list(curve.get_xdata()), list(curve.get_ydata())) for curve in axis.lines]


# Reading


def test_a_finished_run_is_read(run: Path) -> None:
    log = read_run(run)
    assert (log.name, log.step, log.max_steps) == ("run", 30, 40)
    assert log.series("loss") == ([10, 20, 30], [0.2, 0.1, pytest.approx(2 / 30)])
    assert log.series("eval_loss") == ([20], [1.0]) and log.series("nothing") == ([], [])
    assert {"loss", "sigreg_floor", "probe_linear_top1"} <= set(log.names()) and "step" not in log.names()


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    entries = [line(1), {**line(2), "loss": float("nan")}, {**line(3), "loss": "?"}, {**line(4), "loss": True}]
    assert read_run(write(tmp_path, *entries)).series("loss") == ([1], [2.0])


def test_the_newest_log_of_a_run_that_goes_on_is_read(tmp_path: Path) -> None:
    run = write(tmp_path / "checkpoint-10", line(10)).parent
    write(tmp_path / "checkpoint-9", line(9))
    assert read_run(run).step == 10 and read_run(run).max_steps == 40
    assert read_run(tmp_path / "checkpoint-9").step == 9, "a checkpoint by itself"
    file = LogFile(run)
    file.begin([line(10)])
    file.add(line(20))
    with (run / "log.jsonl").open("a") as half:
        half.write('{"step": 30, "lo')
    assert read_run(run).step == 20 and read_run(run).max_steps == 40
    (tmp_path / "checkpoint-30").mkdir()
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text('{"log_history": [{"st')  # half written
    assert read_run(run).step == 20
    assert read_run(write(run, line(20), line(30))).step == 30


def test_a_real_run_is_read_while_it_goes_on(tmp_path: Path, processor) -> None:
    seen: list[tuple[int, list[str]]] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                seen.append((read_run(tmp_path).step, titles(plot_runs([read_run(tmp_path)]))))

    options = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": samples(4), "health_steps": 2}
    run = trainer(tmp_path, processor, max_steps=5, callbacks=[Look()], **options)
    run.train()
    ((step, panels),) = seen
    assert step == 4
    assert {"Loss and terms", "SIGReg", "Effective rank", "Retrieval", "Samples a second", "Learning rate"} <= {
        *panels
    }
    assert "Other terms" not in panels and "Zero-shot and probes" not in panels


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "nowhere is no folder: give the output folder of a run"),
        ("empty", "empty holds no log of a run .*log.jsonl, trainer_state.json, or a checkpoint"),
        ("", r"holds no log of a run.* There are runs below it: .*/one, .*/run\."),
    ],
)
def test_a_folder_without_a_log(run: Path, tmp_path: Path, folder: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    LogFile(tmp_path / "one").begin([line(1)])
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path / folder)


# Drawing


def test_panels_are_those_that_the_run_has(run: Path, tmp_path: Path) -> None:
    figure = plot_runs([read_run(run)], tmp_path / "curves.png")
    assert titles(figure) == [
        "Loss and terms", "SIGReg", "Effective rank", "Retrieval", "Zero-shot and probes", "Learning rate",
    ]  # fmt: skip
    assert ([10, 20, 30], read_run(run).series("loss")[1]) in curves(figure, "Loss and terms")
    assert len(curves(figure, "Loss and terms")) == 3 and len(curves(figure, "SIGReg")) == 4
    assert curves(figure, "Retrieval") == [([20], [0.1])], "R@1 and R@10"
    with PIL.Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 300


def test_runs_lie_over_one_another_by_name(run: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", *(line(step) for step in (5, 15)))
    figure = plot_runs([read_run(run), read_run(other)])
    assert [text.get_text() for text in figure.legends[0].texts] == ["run", "other"]
    assert [steps for steps, _ in curves(figure, "Learning rate")] == [[10, 20, 30], [5, 15]]
    axis = figure.axes[titles(figure).index("Learning rate")]
    assert len({curve.get_color() for curve in axis.lines}) == 2
    same = write(tmp_path / "b" / "run", line(1))
    figure = plot_runs([read_run(run), read_run(same)])
    assert [text.get_text() for text in figure.legends[0].texts] == [str(run), str(same)]


def test_terms_that_are_not_known_have_a_panel(tmp_path: Path) -> None:
    """Those of another objective, or of a model of one's own."""
    entries = [
        line(step, contrastive_loss=3.0, temperature=0.07, skipped_images=1, **{"samples/photos": step})
        for step in (1, 2)
    ]
    figure = plot_runs([read_run(write(tmp_path, *entries))])
    assert titles(figure) == ["Loss and terms", "Samples drawn, by dataset", "Learning rate", "Other terms"]
    assert len(curves(figure, "Loss and terms")) == 2 and curves(figure, "Other terms") == [([1, 2], [0.07, 0.07])]


def test_warnings_are_drawn_where_there_were_any(tmp_path: Path) -> None:
    entries = [health(1), {**health(2), "health_warnings": 2}]
    assert curves(plot_runs([read_run(write(tmp_path, *entries))]), "Health warnings") == [([1, 2], [0, 2])]


def test_figures_by_name_and_pattern(run: Path) -> None:
    figure = plot_runs([read_run(run)], figures=["loss", "effective_rank_*"])
    assert titles(figure) == ["loss", "effective_rank_*"]
    assert [len(curves(figure, title)) for title in titles(figure)] == [1, 2]
    with pytest.raises(ValueError, match="No run has logged 'los'. Did you mean 'loss'[?] There are .*sigreg_floor"):
        plot_runs([read_run(run)], figures=["los"])


def test_smoothing(tmp_path: Path) -> None:
    """The first value stays; each counts half of the next; the curve itself and evaluations are drawn as they are."""
    entries = [{**line(step), "loss": float(loss)} for step, loss in ((1, 4), (2, 1), (3, 0))]
    log = read_run(write(tmp_path, *entries, {"step": 3, "eval_loss": 7.0}, {"step": 4, "eval_loss": 9.0}))
    raw, smoothed, evaluated = curves(plot_runs([log], smooth=0.5), "Loss and terms")
    assert raw[1] == [4.0, 1.0, 0.0] and smoothed[1] == pytest.approx([4, (2 + 1) / 1.5, (1 + 0.5) / 1.75])
    assert evaluated[1] == [7.0, 9.0]
    assert len(curves(plot_runs([log], smooth=0.5), "Learning rate")) == 1
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"smooth={wrong} must be between 0 and 1"):
            plot_runs([log], smooth=wrong)


def test_no_runs_and_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run to draw"):
        plot_runs([])
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_runs([read_run(write(tmp_path))])


def test_every_panel_is_drawn_once() -> None:
    patterns = [pattern for patterns in PANELS.values() for pattern in patterns]
    assert len(patterns) == len(set(patterns))


# The command


def test_the_command(run: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(["plot", str(run)]) == 0
    assert (
        capsys.readouterr().out == f"{run}: 30 of 40 steps\n{run / 'curves.png'}\n" and (run / "curves.png").exists()
    )
    LogFile(tmp_path / "other").begin([line(7)])
    options = ["--output", str(tmp_path / "new" / "both.png"), "--smooth", "0.6", "--figures", "loss"]
    assert cli.main(["plot", str(run), str(tmp_path / "other"), *options]) == 0
    assert f"{tmp_path / 'other'}: 7 steps" in capsys.readouterr().out and (tmp_path / "new" / "both.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "levljepa plot: nowhere is no folder"),
        (["run", "--figures", "los"], "levljepa plot: No run has logged 'los'"),
        (["run", "--smooth", "2"], "levljepa plot: smooth=2.0 must be"),
    ],
)
def test_errors_of_the_command(run: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plot", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(run.glob("*.png")), "nothing half done"
