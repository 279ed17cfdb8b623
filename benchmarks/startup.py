"""CPU time until Python, the package, its commands and its scripts have started, and which large packages that takes.

    python benchmarks/startup.py
    python benchmarks/startup.py --repeats 3 --only "import" "levljepa demo"    # rows whose name holds one of these

Each row is a process of its own: `--help` of a command, or a wrong option. The rows take turns, figures are medians of
user and system time, and ratios medians over the turns. A status other than the expected one is shown beside it.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import torch

from levljepa_hf.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
WATCHED = ("torch", "torchvision", "transformers", "timm", "datasets", "matplotlib", "sklearn")
MARK = "imported here:"
# Runs a statement, a module or a file as Python would, and tells at the end which of the packages it imported.
RUN = f"""
import atexit, os, runpy, sys
atexit.register(lambda: print("{MARK}", *[name for name in {WATCHED} if name in sys.modules], file=sys.stderr))
kind, what, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
if kind == "statement":
    exec(what)
elif kind == "module":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    sys.path[0] = os.path.dirname(what)
    runpy.run_path(what, run_name="__main__")
"""
AUTO = "AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer"
LIBRARIES = "import torch, transformers"
SIGLIP = "from transformers import SiglipVisionModel; import timm"
STATEMENTS = (
    "pass",
    LIBRARIES,
    f"import torch; from transformers import {AUTO}",
    "import levljepa_hf",
    SIGLIP,
    "from levljepa_hf import LeVLJEPAVisionModel",
)
WRONG = "--no-such-option"

Row = tuple[list[str], int]  # the arguments of RUN, and the exit status that is expected


def rows() -> dict[str, Row]:
    """What is measured, by name."""
    found: dict[str, Row] = {statement: (["statement", statement], 0) for statement in STATEMENTS}
    cli = ["module", "levljepa_command"]
    found["levljepa --help"] = ([*cli, "--help"], 0)
    for command in COMMANDS:
        found[f"levljepa {command} --help"] = ([*cli, command, "--help"], 0)
        found[f"levljepa {command} {WRONG}"] = ([*cli, command, WRONG], 2)
    for script in sorted((ROOT / "training").glob("*.py")):
        found[f"training/{script.name} --help"] = (["file", str(script), "--help"], 0)
    return found


class Start:
    """Starts a row's process, and keeps what it said at its end: its status and what it imported."""

    def __init__(self, row: Row) -> None:
        self.arguments, self.expected = row
        self.status, self.imported = self.expected, ""

    def __call__(self) -> None:
        command = [sys.executable, "-c", RUN, *self.arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        said = [line for line in done.stderr.splitlines() if line.startswith(MARK)]
        self.status, self.imported = done.returncode, said[-1].removeprefix(MARK).strip() if said else "?"


def children_time() -> float:
    """Seconds of user and system time of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def table(starts: dict[str, Start], seconds: dict[str, list[float]]) -> list[str]:
    """The lines of a Markdown table."""
    references = [name for name in (LIBRARIES, SIGLIP) if name in seconds]
    lines = ["| | CPU s | " + "".join(f"times `{name}` | " for name in references) + "imported |"]
    lines.append("|---" * (3 + len(references)) + "|")
    for name, start in starts.items():
        ratios = [f"{measure.median_ratio(seconds[name], seconds[one]):.2f}" for one in references]
        status = "" if start.status == start.expected else f", status {start.status}"
        cells = [f"`{name}`{status}", f"{statistics.median(seconds[name]):.2f}", *ratios, start.imported]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of the rows (default: all rows)")
    args = parser.parse_args(argv)
    known = rows()
    kept = [name for name in known if name in (LIBRARIES, SIGLIP) or any(part in name for part in args.only)]
    starts = {name: Start(known[name]) for name in kept}
    device = torch.device("cpu")
    seconds = measure.interleaved(starts, args.repeats, device, warmup=0, clock=children_time)
    load = round(os.getloadavg()[0], 1)
    measure.report(measure.environment(device) | {"repeats": args.repeats, "load": load}, as_json=False)
    print("", *table(starts, seconds), sep="\n")
    return {"seconds": seconds, "imported": {name: start.imported for name, start in starts.items()}}


if __name__ == "__main__":
    main()
