"""The exported folder: whole, self-contained, with what the session answers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from explore.test_server import unpack
from levljepa_hf.explore import export as module
from levljepa_hf.explore.export import export
from levljepa_hf.explore.search import search_scores
from levljepa_hf.explore.session import Session


@pytest.fixture
def quick(monkeypatch) -> None:
    """Few shapes and steps."""
    monkeypatch.setattr("levljepa_hf.explore.session.SHAPES", ("ring", "heavy tails"))
    monkeypatch.setattr(module, "_STEPS", (0, 1, 3))


def read(folder: Path, name: str):
    """The value that a file of data puts."""
    text = (folder / "data" / f"{name}.js").read_text("utf-8")
    found = re.fullmatch(r"LV\.put\(\"([\w-]+)\", (.*)\);\n", text, re.DOTALL)
    assert found[1] == name
    return json.loads(found[2])


def test_the_folder_holds_what_the_session_answers(quick, seen, photos, cache, tmp_path) -> None:
    session = Session([seen["a"], seen["b"]], photos, ["run"], ["an owl", "a red fox"], cache)
    page = export(session, tmp_path / "explored", show_progress=False)
    folder = page.parent
    state = read(folder, "state")
    assert state["static"] is True and state["prompts"] == ["an owl", "a red fox"] and state["runs"] == []
    for method in state["methods"]:
        assert unpack(read(folder, f"space-{method}")["models"][1]["points"]).shape == (24, 2)
    found = read(folder, "search")[1]["models"][0]
    assert found["indices"] == search_scores(seen["a"], "a red fox").topk(24).indices.tolist()
    near = unpack(read(folder, "neighbours")["models"][0]["indices"])
    assert near.shape == (24, 23) and not (near == np.arange(24)[:, None]).any()
    assert unpack(read(folder, "prompts")["models"][1]["nearest"]).shape == (24,)
    assert unpack(read(folder, "agreement")["values"]).shape == (24,)
    shape = read(folder, "sigreg-heavy-tails")
    assert shape["steps"] == [0, 1, 3] and len(shape["frames"]) == len(shape["values"]) == 3
    assert {"directions-0-image_embeds", "directions-1-cls"} <= {path.stem for path in folder.glob("data/*.js")}
    assert len(list(folder.glob("thumbnails/0/*.webp"))) == 24
    assert "sdk: static" in (folder / "README.md").read_text()


def test_the_page_asks_no_other_host(quick, seen, photos, cache, tmp_path) -> None:
    folder = export(
        Session([seen["tower"]], photos, cache_dir=cache), tmp_path / "explored", show_progress=False
    ).parent
    page = (folder / "index.html").read_text()
    assert 'data-static="yes"' in page and page.index("core.js") < page.index("data/state.js") < page.index("app.js")
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert (folder / name).is_file(), name
    for path in folder.rglob("static/*"):
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", path.read_text("utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path  # a name, which nothing fetches
    assert not (folder / "data" / "search.js").exists()  # no text tower


def test_nothing_is_overwritten_and_no_part_is_left(quick, session, tmp_path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(ValueError, match="holds something: name another folder"):
        export(session, tmp_path / "mine")
    monkeypatch.setattr(module, "_neighbours", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(session, tmp_path / "explored", show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
