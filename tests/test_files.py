"""Files and folders that are whole or not there."""

from pathlib import Path

import pytest

from levljepa_hf.files import whole_folder, write_whole


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "a").write_text("new")


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, lambda part: part.write_text("old"))

    def half(part: Path) -> None:
        part.write_text("ne")
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        write_whole(path, half)
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "another's"])
def test_a_folder_is_whole_and_the_first_one_stays(tmp_path: Path, there: str) -> None:
    folder = tmp_path / "some" / "where"
    with whole_folder(folder) as part:
        assert not folder.exists() and not part.exists()
        fill(part)
        if there != "nothing":
            folder.mkdir()
        if there == "another's":
            (folder / "a").write_text("another's")
    assert (folder / "a").read_text() == ("another's" if there == "another's" else "new")
    assert [one.name for one in folder.parent.iterdir()] == ["where"]


def test_nothing_is_left_of_a_folder_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no room"), whole_folder(tmp_path / "where") as part:
        fill(part)
        raise RuntimeError("no room")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), whole_folder(tmp_path / "file") as part:
        fill(part)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
