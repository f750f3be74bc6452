"""Makes a ladder in each process of a launch, and saves what each of them got: ``script FOLDER``.

The second process has a stopwatch that means nothing, so that what it returns is by the times of the first.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from architectures import state_of
from stopwatch import time_by_flops
from test_compress import ROWS, settings, small

from hfcompress.search import clock as clocks
from hfcompress.search import compressing
from hfcompress.search.compressing import compress


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    with pytest.MonkeyPatch.context() as patch:
        time_by_flops(patch)
        if rank:
            patch.setattr(clocks, "_seconds", lambda run: 1.0)
        given = settings(folder, speedup=1.5)
        given["args"].per_device_train_batch_size //= 2
        ladder = compress(small(), ROWS, **given)
        patch.setattr(compressing, "make_candidate", None)
        assert compress(small(), ROWS, **given).to_dict() == ladder.to_dict()  # of what is done
    torch.save({"ladder": ladder.to_dict(), "weights": state_of(ladder["1.5x"].model)}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
