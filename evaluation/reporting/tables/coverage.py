"""The table of what 95% intervals of an AUROC hold: measured on simulated cohorts, not assumed."""

from collections.abc import Sequence

import numpy as np

from evaluation.reporting.numbers import percent
from evaluation.reporting.tables.table import Cell, Column, Group, Row, Table, reason_cell
from evaluation.statistics.coverage import AUROCS, ROWS_OF_SCANS, read
from evaluation.statistics.coverage import Cell as Measured
from evaluation.statistics.intervals import BCA, DELONG, PERCENTILE

SIZES = (50, 100, 200)
TITLES = {
    DELONG: "Logit DeLong, the one shown",
    BCA: "BCa bootstrap",
    PERCENTILE: "Percentile bootstrap",
    ROWS_OF_SCANS: "Percentile bootstrap of scans, as if each were a subject",
}


def coverage_table() -> Table | None:
    """Measured coverage by method, size and true AUROC; None where nothing was measured."""
    cells = [cell for cell in read() if cell.metric == "auroc" and cell.method in TITLES]
    if not cells:
        return None
    simulations = max(cell.simulations for cell in cells)
    prevalences = sorted({cell.prevalence for cell in cells if cell.prevalence is not None})
    return Table(
        section="coverage",
        title="How often a 95% interval of an AUROC holds the truth",
        columns=(
            Column("True AUROC"),
            *(Column(f"n = {size}", ("coverage", "mean width")) for size in SIZES),
        ),
        groups=tuple(
            Group(title, "backbone", tuple(_row(cells, method, auroc) for auroc in AUROCS))
            for method, title in TITLES.items()
        ),
        lines=(
            f"Counted on up to {simulations:,} simulated cohorts a cell, of subjects with one to "
            "four scans that are alike; the mean of "
            f"{' and '.join(percent(one) for one in prevalences)} positives (of scans: 50%).",
        ),
    )


def _row(cells: Sequence[Measured], method: str, auroc: float) -> Row:
    mine = [cell for cell in cells if cell.method == method]
    # The AUROC of single scans is another one than that of the same subjects: told by its place.
    values = sorted({cell.value for cell in mine})
    value = values[AUROCS.index(auroc)] if len(values) == len(AUROCS) else auroc
    return Row(
        Cell(f"{value:.2f}"),
        tuple(_cell([one for one in mine if (one.n, one.value) == (n, value)]) for n in SIZES),
    )


def _cell(found: Sequence[Measured]) -> Cell:
    if not found:
        return reason_cell("not simulated")
    coverage = float(np.mean([one.coverage for one in found]))
    width = float(np.mean([one.width for one in found]))
    return Cell(f"{100 * coverage:.1f}%", under=(f"{width:.2f}",))
