"""One rank of a run under torchrun: `rank.py FOLDER DATA [--streaming] [--mixture]`. Its process id goes beside it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.victim import train  # noqa: E402

if __name__ == "__main__":
    folder, data, *options = sys.argv[1:]
    folder, rank = Path(folder), os.environ["RANK"]
    folder.with_suffix(f".pid{rank}").write_text(str(os.getpid()))
    train(
        folder,
        Path(data),
        streaming="--streaming" in options,
        mixture="--mixture" in options,
        per_device_train_batch_size=2,
        dataloader_num_workers=1,
        ddp_backend="gloo",
    )
