"""Embed many scans: a row of features for each, and its token map where wanted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.backbone import Backbone, load_backbone
from foundation.embedding.coverage import Coverage, coverage_of
from foundation.embedding.entries import Array, Entry, Status
from foundation.embedding.features import check_takes_scans, embed_scan
from foundation.embedding.job import ScansJob, file_of, run_job
from foundation.embedding.table import Per, facts_of, grouped, means_of, write_table
from foundation.embedding.token_map import token_map, write_token_map
from shards.scan import Scan

_ENDING = "tokens.nii"


@dataclass(frozen=True)
class Embedding:
    """Embedding as the work of a job.

    Attributes:
        backbone: In evaluation mode.
        coverage: What it is for.
        allow_uncovered: Embed and mark what it is not for.
        dense: Folder of the token maps, if any.
    """

    backbone: Backbone
    coverage: Coverage
    allow_uncovered: bool = False
    dense: Path | None = None
    done: Status = "embedded"

    def settings(self) -> Mapping[str, Any]:
        """The backbone; where maps lie."""
        return {"backbone": self.backbone.digest, "dense": str(self.dense)}

    def of_scan(self, scan: Scan, *, name: str, source: Path | None) -> Mapping[str, Array]:
        """(E,) float32 of each kind of token."""
        del source
        features = embed_scan(self.backbone, scan)
        if self.dense is not None:
            tokens = token_map(self.backbone, scan)
            write_token_map(file_of(self.dense, name, ending=_ENDING), tokens)
        return {kind: tensor.cpu().numpy() for kind, tensor in features._asdict().items()}

    def is_whole(self, name: str) -> bool:
        """Whether its map is there."""
        return self.dense is None or file_of(self.dense, name, ending=_ENDING).is_file()

    def write_table(self, out: Path, entries: Sequence[Entry], *, per: Per) -> int:
        """Spacings of a scan stand beside its other facts; a subject's features are means."""
        groups = grouped(entries, per=per)
        facts = facts_of(groups, per=per)
        if per == "scan":
            uncovered = facts.pop("uncovered")
            for axis, name in enumerate("dhw"):
                facts[f"spacing_{name}_mm"] = [one.spacing_mm[axis] for (one,) in groups]
            facts["uncovered"] = uncovered
        write_table(out, facts, means_of(groups))
        return len(groups)


def embed_scans(job: ScansJob) -> None:
    """Write the table, the ledger and the token maps; a job that was ended goes on.

    Raises:
        JobError: No scan was found, or none could be embedded; the ledger says why.
        BackboneError: The backbone is not what was published.
        InputError: It takes several sequences at once.
    """

    def begin(device: str) -> Embedding:
        backbone = load_backbone(job.where, device=device)
        check_takes_scans(backbone)
        return Embedding(backbone, coverage_of(backbone), job.allow_uncovered, job.files)

    run_job(job, begin, makes="features")
