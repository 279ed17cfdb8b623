"""`levljepa explore`: the session it builds, and what it says to bad input."""

import json
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest

from explore.conftest import photo
from levljepa_hf import cli
from levljepa_hf.explore import command
from levljepa_hf.explore.command import ExploreArguments, build_session
from levljepa_hf.explore.server import bind


@pytest.fixture
def options(folder, cache) -> list[str]:
    return ["--dataset", str(folder), "--cache_dir", str(cache), "--no_open_browser", "--port", "0"]


def run_command(*words, capsys) -> str:
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["explore", *map(str, words)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


def test_the_page_is_served_with_both_models_and_their_runs(
    checkpoints, options, capsys, monkeypatch, tmp_path
) -> None:
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").write_text('{"global_step": 2, "log_history": []}')
    shutil.copytree(checkpoints["a"], tmp_path / "run", dirs_exist_ok=True)
    served, opened = [], []
    monkeypatch.setattr(command, "serve", lambda session, listening, host: served.append((session, host)))
    monkeypatch.setattr(command.webbrowser, "open", opened.append)
    models = [str(tmp_path / "run"), str(checkpoints["tower"])]
    assert cli.main(["explore", *models, *options, "--open_browser", "--prompts", "a fox", "--max_photos", "10"]) == 0
    ((session, host),) = served
    assert session.labels == ["run", "tower"] and len(session.photos) == 10 and session.prompts == ["a fox"]
    assert session.runs == [str(tmp_path / "run")] and host == "127.0.0.1"
    printed = capsys.readouterr().out
    assert opened[0].startswith("http://127.0.0.1:") and opened[0] in printed and "no password" not in printed
    assert cli.main(["explore", models[1], *options, "--host", "0.0.0.0"]) == 0
    assert "no password" in capsys.readouterr().out and len(opened) == 1


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(checkpoints, options) -> None:
    words = [sys.executable, "-m", "levljepa_hf.cli", "explore", str(checkpoints["a"]), *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(f"{address}/api/state") as answer:
            assert json.load(answer)["photos"]["count"] == 24
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in error


def test_an_export_serves_nothing(checkpoints, options, monkeypatch, tmp_path, capsys) -> None:
    written = []
    monkeypatch.setattr(command, "export", lambda session, target: written.append(target) or target / "index.html")
    monkeypatch.setattr(command, "serve", lambda *_: pytest.fail("served"))
    assert cli.main(["explore", str(checkpoints["a"]), *options, "--export", str(tmp_path / "x")]) == 0
    assert written == [tmp_path / "x"] and "index.html" in capsys.readouterr().out


def test_bad_input_is_one_line(checkpoints, options, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(command, "serve", lambda *_: pytest.fail("served"))
    model, rest = checkpoints["a"], options[2:]
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    for words, error in (
        ([model, "--dataset", tmp_path / "empty", *rest], "holds no images"),
        ([model, "--dataset", tmp_path / "nowhere", *rest], "is no folder or file here"),
        ([model, "--dataset", tmp_path / "broken", *rest], "None of the 1 images"),
        ([tmp_path / "no-model", *options], "no-model is no folder here"),
        (["owner/none", *options], "owner/none is no folder here, and as a Hub id it is not within reach"),
        ([model, model, model, *options], "one model or two, not 3: levljepa explore MODEL [MODEL_B]"),
        ([model, *options, "--max_photos", "0"], "max_photos=0"),
        ([model, *options[:-1], "70000"], "port=70000"),
        ([model, *options, "--export", tmp_path], "holds something"),
    ):
        assert error in run_command(*words, capsys=capsys)
    with bind("127.0.0.1", 0) as listening:
        line = run_command(model, *options[:-1], listening.getsockname()[1], capsys=capsys)
    assert "cannot be served" in line and "--port" in line


def test_broken_photos_are_counted(checkpoints, tmp_path, capsys) -> None:
    for i in range(4):
        photo(i).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    arguments = ExploreArguments(dataset=str(tmp_path), cache_dir=str(tmp_path / "cache" / "features"))
    session = build_session([str(checkpoints["a"])], arguments)
    assert "1 images do not decode and are left out, such as 2.png" in capsys.readouterr().out
    assert session.state()["photos"]["broken"][0][0] == "2.png" and len(session.photos) == 3


def test_the_missing_extra_is_said(capsys, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("levljepa_hf.explore.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "starlette"] or ["starlette"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["explore", "random"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("levljepa explore: This needs the package 'starlette'")
    assert error.endswith('Run: pip install "levljepa_hf[app]"\n')
