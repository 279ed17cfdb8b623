"""Fetches the common tests of the installed transformers: they are in its source distribution and not in its wheel.

`python tests/peer/fetch.py` asks pip for that distribution, checks that it is the code that is installed, and puts
its `tests/*.py` into `.peer/transformers-VERSION/transformers_tests/`, where `conftest.py` finds them. What is there
already is kept.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".peer"
PACKAGE = "transformers_tests"
NEEDED = (
    "test_backbone_common.py",
    "test_configuration_common.py",
    "test_image_processing_common.py",
    "test_modeling_common.py",
    "test_processing_common.py",
)
COMPARED = ("__init__.py", "configuration_utils.py", "modeling_utils.py", "processing_utils.py")


def fetched_folder() -> Path:
    """The folder that holds (or will hold) the package of common tests of the installed transformers."""
    return CACHE / f"transformers-{version('transformers')}"


def is_fetched() -> bool:
    return all((fetched_folder() / PACKAGE / name).is_file() for name in NEEDED)


def download(folder: Path) -> Path:
    """The source distribution of the installed transformers, downloaded by pip (which checks the index's digest).

    Raises:
        RuntimeError: if pip cannot get it; the message ends with what pip said.
    """
    requirement = f"transformers=={version('transformers')}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "transformers"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode or len(archives) != 1:
        raise RuntimeError(
            f"pip found no source distribution of {requirement} (a development version has none; offline, fetch once "
            f"where there is a network):\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return archives[0]


def extract(archive: Path, folder: Path) -> None:
    """Writes `tests/*.py` of the source distribution to `folder`, and nothing else of it.

    Raises:
        RuntimeError: if the archive is not the source of the installed package, or lacks the common tests.
    """
    installed = Path(find_spec("transformers").origin).parent
    with tarfile.open(archive) as tar:
        files = {name.partition("/")[2]: name for name in tar.getnames()}
        for name in COMPARED:
            source = tar.extractfile(files[f"src/transformers/{name}"]).read()
            if source != (installed / name).read_bytes():
                raise RuntimeError(
                    f"{archive.name} is not the source of {installed}: {name} differs. Reinstall transformers."
                )
        tests = [name for name in files if name.startswith("tests/test_") and name.count("/") == 1]
        missing = [name for name in NEEDED if f"tests/{name}" not in tests]
        if missing:
            raise RuntimeError(f"{archive.name} lacks {', '.join(missing)}: this transformers ships no common tests.")
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        for name in tests:
            (folder / Path(name).name).write_bytes(tar.extractfile(files[name]).read())


def main() -> None:
    if is_fetched():
        print(f"{fetched_folder()} is there already.")
        return
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        archive = download(Path(temporary))
        extract(archive, Path(temporary) / "new" / PACKAGE)
        shutil.rmtree(fetched_folder(), ignore_errors=True)  # an incomplete one
        (Path(temporary) / "new").replace(fetched_folder())
    print(f"Fetched the common tests of transformers {version('transformers')} to {fetched_folder()}.")


if __name__ == "__main__":
    main()
