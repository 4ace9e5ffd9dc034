"""Which floors stand in a task's table, what they are extracted from, and how they are scored."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.backbones.entry import Entry
from evaluation.extraction.features import Extractor
from evaluation.floors.clinical import beside, clinical_table, fit_table, table_features
from evaluation.floors.constant import constant
from evaluation.floors.intensity import histogram_extractor
from evaluation.floors.radiomics import radiomics_extractor
from evaluation.floors.regions import foreground_extractor, mask_extractor
from evaluation.floors.segmentation import MaskedVoxels, atlas, intensity
from evaluation.floors.svm import KINDS as SVM_KINDS
from evaluation.floors.svm import rbf_svm
from evaluation.floors.voxels import num_components, pca_features, voxel_extractor
from evaluation.probing.estimator import Candidate, Estimator, Features, Fitted, Floats, Scorer
from evaluation.probing.linear import linear_probe
from evaluation.probing.retrieval import retrieval
from foundation.tasks.masks import MaskedScans
from foundation.tasks.task import Task
from recipes.load import digest

Arrays = Mapping[str, Mapping[str, Any]]


class About(NamedTuple):
    """What a report says of a floor."""

    title: str
    description: str


FLOORS = {
    "constant": About("majority", "the same score for everyone: the majority class, or the mean"),
    "volume": About("volume", "one feature: a volume in mm3"),
    "histogram": About(
        "intensity histogram", "share of voxels in 32 bins of the modality's window"
    ),
    "voxels": About("raw voxels", "principal components of the windowed scan on a small grid"),
    "radiomics": About(
        "radiomics", "first-order and shape features of the foreground, or of the mask"
    ),
    "clinical": About("clinical columns", "columns of the cohort's table, no image"),
    "mask": About("intensity in the mask", "mean and maximum inside the mask"),
    "clinical_mask": About("clinical + mask", "clinical columns, intensity in the mask and volume"),
    "atlas": About("mean training mask", "where the class is in training subjects, no image"),
    "intensity": About("intensity threshold", "the class of a voxel from its brightness alone"),
}
"""In the order of the table. Untrained networks, one per seed, stand beside the backbones."""

_FEW_SHOT = ("voxels", "radiomics", "clinical")


def floor_names(task: Task) -> list[str]:
    """The floors of a task, in the order of the table."""
    wanted, kind = task.card.floors, task.card.kind
    if kind == "segmentation":
        return ["atlas", "intensity"]
    has = {
        "constant": True,
        "volume": wanted.volume is not None and kind != "retrieval",  # one number has no angle
        "histogram": True,
        "voxels": wanted.voxels is not None,
        "radiomics": wanted.radiomics is not None,
        "clinical": bool(wanted.clinical),
        "mask": wanted.mask_intensity,
        "clinical_mask": bool(wanted.clinical) and wanted.mask_intensity,
    }
    return [name for name in FLOORS if has.get(name)]


def floor_entries(tasks: Sequence[Task]) -> dict[str, Entry]:
    """The floors that stand in any of these tasks, as rows of the table."""
    used = {name for task in tasks for name in floor_names(task)}
    return {name: _entry(name) for name in FLOORS if name in used}


def floor_extractors(task: Task) -> list[Extractor]:
    """What must be extracted of a task's scans for its floors."""
    names, wanted = floor_names(task), task.card.floors
    found = []
    if "histogram" in names:
        found.append(histogram_extractor())
    if "volume" in names and wanted.volume == "foreground":
        found.append(foreground_extractor())
    if "mask" in names or ("volume" in names and wanted.volume == "mask"):
        found.append(mask_extractor())
    if "radiomics" in names and wanted.radiomics is not None:
        found.append(radiomics_extractor(wanted.radiomics))
    if "voxels" in names and wanted.voxels is not None:
        found.append(voxel_extractor(wanted.voxels))
    return found


def floor_candidates(task: Task, arrays: Arrays) -> dict[str, Candidate]:
    """Every floor of a task, ready to be scored.

    Args:
        task: Whose subjects the arrays belong to.
        arrays: By extractor and array name, one row per subject.
    """
    if task.card.kind == "segmentation":
        voxels = MaskedVoxels(MaskedScans.of(task))
        return {
            each.name: Candidate((Scorer({"voxels": voxels}, each),), None)
            for each in (atlas(), intensity())
        }
    features = _features(task, arrays)
    return {name: _candidate(task, name, features[name]) for name in floor_names(task)}


def _entry(name: str) -> Entry:
    about = FLOORS[name]
    return Entry(
        kind="floor",
        title=about.title,
        description=about.description,
        digest=digest({"floor": name}),
        provenance={},
        seen={},
        architecture=None,
        embedder=None,
    )


def _candidate(task: Task, name: str, features: Features) -> Candidate:
    kind, num_outputs = task.card.kind, len(task.outputs)
    if kind == "retrieval":
        return Candidate((Scorer({name: _for_angles(features)}, retrieval()),), None)
    if name == "constant":
        estimator = constant(kind, num_outputs=num_outputs)
        return Candidate((Scorer({"none": features}, estimator),), None)
    estimators: list[Estimator] = [linear_probe(kind)]
    if name == "voxels" and kind in SVM_KINDS:
        estimators.append(rbf_svm(kind, num_outputs=num_outputs))
    scorers = tuple(Scorer({name: features}, each) for each in estimators)
    return Candidate(scorers, features if name in _FEW_SHOT else None)


def _features(task: Task, arrays: Arrays) -> dict[str, Features]:
    """Of every floor that is wanted and some that are not."""
    wanted = task.card.floors
    table = clinical_table(task, wanted.clinical)
    found: dict[str, Features] = {
        "constant": np.zeros((len(task.subjects), 1)),
        "histogram": _floats(arrays["histogram"]["histogram"]),
        "clinical": table_features(table),
    }
    if "volume" in floor_names(task) and wanted.volume is not None:
        found["volume"] = _floats(arrays[wanted.volume]["volume"])
    if wanted.voxels is not None:
        count = num_components(wanted.voxels)
        found["voxels"] = pca_features(arrays["voxels"]["voxels"], num_components=count)
    if wanted.radiomics is not None:
        found["radiomics"] = _floats(arrays["radiomics"]["radiomics"])
    if wanted.mask_intensity:
        mask = arrays["mask"]
        found["mask"] = _floats(mask["intensity"])
        measured = np.concatenate([mask["intensity"], mask["volume"]], axis=1)
        found["clinical_mask"] = table_features(beside(table, measured))
    return found


def _for_angles(features: Features) -> Features:
    """Features whose columns weigh alike in a cosine: standardised by the gallery."""
    if isinstance(features, Fitted):
        if features.values.dtype != object:
            return features  # principal components are of one unit
        return Fitted(features.values, lambda rows: _after(fit_table(rows), rows))
    assert isinstance(features, np.ndarray)
    return Fitted(features, lambda rows: _after(_floats, rows))


def _after(encode: Any, rows: NDArray[Any]) -> Any:
    """``encode``, then less the mean of these rows, in units of their spread."""
    inside: Floats = encode(rows)
    mean, spread = inside.mean(axis=0), inside.std(axis=0)
    scale = np.where(spread > 1e-12, spread, 1.0)
    return lambda others: (encode(others) - mean) / scale


def _floats(values: NDArray[Any]) -> Floats:
    return values.astype(np.float64)
