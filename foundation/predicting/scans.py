"""Predict many scans: a row for each, and of a segmentation its mask where wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.embedding.coverage import Coverage, coverage_of
from foundation.embedding.entries import Array, Entry, Status
from foundation.embedding.inputs import JobError
from foundation.embedding.job import ScansJob, file_of, run_job
from foundation.embedding.table import Facts, Groups, Per, facts_of, grouped, means_of, write_table
from foundation.finetuning.mask_space import write_mask
from foundation.model import Model, load_model
from foundation.predicting.cells import cells_of
from shards.scan import Scan

_ENDING = "mask.nii.gz"


@dataclass(frozen=True)
class Predicting:
    """Predicting as the work of a job.

    Attributes:
        model: In evaluation mode.
        coverage: What it is for.
        allow_uncovered: Predict and mark what it is not for.
        masks: Folder of the masks, if any.
    """

    model: Model
    coverage: Coverage
    allow_uncovered: bool = False
    masks: Path | None = None
    done: Status = "predicted"

    def settings(self) -> Mapping[str, Any]:
        """The model; where masks lie."""
        return {"model": self.model.digest, "masks": str(self.masks)}

    def of_scan(self, scan: Scan, *, name: str, source: Path | None) -> Mapping[str, Array]:
        """The outcome, not calibrated."""
        found = self.model.predict_scan(scan)
        if self.masks is not None and found.mask is not None:
            write_mask(file_of(self.masks, name, ending=_ENDING), found.mask, scan, source=source)
        return found.outcome

    def is_whole(self, name: str) -> bool:
        """Whether its mask is there."""
        return self.masks is None or file_of(self.masks, name, ending=_ENDING).is_file()

    def write_table(self, out: Path, entries: Sequence[Entry], *, per: Per) -> int:
        """A subject's row is told from the mean outcome of its scans."""
        groups = grouped(entries, per=per)
        write_table(out, {**facts_of(groups, per=per), **self._told(groups)}, {})
        return len(groups)

    def _told(self, groups: Groups) -> Facts:
        means = means_of(groups)
        outcomes = [
            {name: array[row] for name, array in means.items()} for row in range(len(groups))
        ]
        rows = [cells_of(each, self.model.target, self.model.calibration) for each in outcomes]
        told: Facts = {name: [row[name] for row in rows] for name in rows[0]}
        if self.masks is None:
            return told
        return told | {"mask": [self._masks_of(group) for group in groups]}

    def _masks_of(self, group: Sequence[Entry]) -> str:
        assert self.masks is not None, "there are masks"
        return "; ".join(str(file_of(self.masks, one.scan, ending=_ENDING)) for one in group)


def predict_scans(job: ScansJob) -> None:
    """Write the table, the ledger and the masks; a job that was ended goes on.

    Raises:
        JobError: No scan was found, or none could be predicted, and the ledger says why; or masks
            are asked of a model that finds none.
        BackboneError: The model is not what was published, or has no head.
        InputError: It takes several sequences at once.
    """

    def begin(device: str) -> Predicting:
        model = load_model(job.where, device=device)
        if job.files is not None and model.target.kind != "segmentation":
            raise JobError(
                f"{job.where}: is of kind {model.target.kind}, which has no masks; drop --masks"
            )
        return Predicting(model, coverage_of(model.backbone), job.allow_uncovered, job.files)

    run_job(job, begin, makes="predictions")
