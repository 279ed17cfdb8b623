"""The command `levljepa`. It stands beside the package, whose import takes seconds unless this module came first."""

import sys

sys.modules["levljepa_command"] = sys.modules[
    __name__
]  # also as `python -m levljepa_command`; the package looks for it

from levljepa_hf.cli import main, run  # noqa: E402

__all__ = ["main", "run"]  # `run` is for the scripts in training/

if __name__ == "__main__":
    sys.exit(main())
