"""Lets the package import where a CPU-only torch sits beside PyPI's torchvision.

PyPI's torchvision is built for CUDA. Beside a CPU-only torch its compiled operators cannot load, and `import
torchvision` fails while it describes two of them (non-maximum suppression) to torch, although image transforms need no
compiled operator. Declaring the two is enough; calling them still fails with torchvision's own message.
"""

import sys

import torch

MISSING_OPERATORS = ("nms", "qnms")
_library: torch.library.Library | None = None  # torch forgets the operators of a library that is not kept


def import_torchvision() -> None:
    """Imports torchvision; where its compiled operators do not load, declares what its import looks up."""
    global _library
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in MISSING_OPERATORS:
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401


import_torchvision()
