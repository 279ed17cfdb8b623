"""Executes notebooks in place, each from a clean kernel of this Python, and prints the time and the size of each.

    python notebooks/execute.py                                 # all of them
    python notebooks/execute.py notebooks/1_features.ipynb

What depends on the machine is not saved: times of execution, progress bars, the folder of the project. Pictures are
saved with 256 colours, which makes them a fourth as large.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from ipykernel.kernelspec import write_kernel_spec
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parent
PROGRESS_BAR = re.compile(r".*(\d+%\|.*\| \S+|\d\w*) ?[\w ]*\[(\d+:)+\d+")  # tqdm's
TRAINER_BAR = re.compile(r"\s*<div>\s*<progress.*?</div>\s*", re.DOTALL)  # transformers', above its table of figures


def execute(notebook: NotebookNode, folder: str | Path, timeout: int = 600) -> NotebookNode:
    """Runs the cells in a new kernel of the running interpreter, and leaves their outputs in `notebook`.

    Args:
        notebook: changed in place.
        folder: the kernel's working directory.
        timeout: seconds that a cell may take.

    Raises:
        CellExecutionError: if a cell fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        specs = Path(scratch, "kernels")
        # sys.executable, whatever kernels the user has, and without notes about the connection
        write_kernel_spec(specs / "python3", extra_arguments=["--log-level=ERROR"])
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(specs)], ensure_native_kernel=False),
        )
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=timeout,
            record_timing=False,
            coalesce_streams=True,
            store_widget_state=False,
            resources={"metadata": {"path": str(folder)}},
        )
        # No start-up files of the user's, and no complaint where Jupyter's widgets are not installed.
        environment = {**os.environ, "IPYTHONDIR": scratch, "PYTHONWARNINGS": "ignore:IProgress not found"}
        client.execute(env=environment, cleanup_kc=True)
    return notebook


def clean(notebook: NotebookNode, root: Path = FOLDER.parent) -> None:
    """Takes out progress bars, widgets, Python's version and `root` in texts, and makes pictures small."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: value for key, value in cell.metadata.items() if key == "tags"})
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _clean_output(output, root)) is not None]


def _clean_output(output: NotebookNode, root: Path) -> NotebookNode | None:
    if output.output_type == "stream":
        lines = re.split(r"[\r\n]+", output.text)
        if output.name == "stderr" and all(PROGRESS_BAR.match(line) for line in lines if line.strip("\x1b[A ")):
            return None
        output.text = output.text.replace(str(root), "..")
    if "data" in output:
        if "application/vnd.jupyter.widget-view+json" in output.data:
            return None
        html = output.data.get("text/html", "")
        if TRAINER_BAR.fullmatch(html):
            return None
        if html:
            output.data["text/html"] = TRAINER_BAR.sub("", html)
        for kind, content in output.data.items():
            if kind.startswith("text/"):
                output.data[kind] = content.replace(str(root), "..")
            elif kind == "image/png":
                output.data[kind] = base64.b64encode(small_png(base64.b64decode(content))).decode()
    return output


def small_png(png: bytes, colors: int = 256) -> bytes:
    """The picture with a palette, on white."""
    with Image.open(io.BytesIO(png)) as picture:
        rgba = picture.convert("RGBA")
    rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    small = io.BytesIO()
    rgb.quantize(colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return min(png, small.getvalue(), key=len)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="files to execute (default: all in this folder)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that a cell may take (default: %(default)s)")
    args = parser.parse_args(argv)
    for path in args.notebooks or sorted(FOLDER.glob("*.ipynb")):
        if not path.is_file():
            parser.exit(2, f"{parser.prog}: there is no notebook {path}.\n")
        notebook = nbformat.read(path, as_version=4)
        start = time.perf_counter()
        try:
            execute(notebook, FOLDER, args.timeout)
        except CellExecutionError as error:
            parser.exit(1, f"{parser.prog}: {path.name} failed and is left as it was.\n{error}\n")
        seconds = time.perf_counter() - start
        clean(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name:36s} {seconds:5.0f} s {path.stat().st_size / 1000:6.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
