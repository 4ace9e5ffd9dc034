"""Run by a test on several processes: extract the scans of a folder, and say what came out.

python -m foundation.launch 2 tests.evaluation.extraction_ranks SCANS CACHE [kill | fail]
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from evaluation.extraction.features import Extractor, FeatureError, extract_all, fill_share
from evaluation.extraction.sharing import join_share, leave_to_first
from recipes.command import errors_in_one_line
from shards.scan import Scan
from shards.sources.cohort import CohortRow


def rows_of(folder: Path) -> list[CohortRow]:
    paths = sorted(folder.glob("*.nii"))
    return [CohortRow(path.stem, str(path), None, None, "MR", {}) for path in paths]


def extractor_of(rank: int, fault: str = "") -> Extractor:
    """Of a rank; rank 1 has the fault."""

    def extract(scan: Scan, row: CohortRow) -> dict[str, np.ndarray]:
        if fault == "kill" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "fail" and rank == 1:
            raise FeatureError(f"{row.scan}: is odd")
        tokens = scan.voxels.reshape(-1, 7)[: 1 + int(row.subject[:3]) % 3].astype(np.float32)
        return {"mean": np.array(scan.voxels.mean()), "patch": tokens, "by": np.array(rank)}

    return Extractor("mean", "a", None, extract, ragged=("patch",))


def main() -> None:
    scans, cache, *fault = sys.argv[1:]
    share = join_share(device="cpu")
    extractor = extractor_of(share.rank, *fault)
    rows, folder = rows_of(Path(scans)), Path(cache)
    fill_share(rows, [extractor], folder=folder, title="features", share=share)
    leave_to_first(share)
    found = extract_all(rows, [extractor], folder=folder, title="features")["mean"]
    print(json.dumps({key: list(map(float, found[key])) for key in ("mean", "by")}), flush=True)


if __name__ == "__main__":
    with errors_in_one_line():
        main()
