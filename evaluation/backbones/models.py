"""What stands in the table: frozen backbones and floors, each with its features and protocols."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.features import Extractor
from evaluation.floors import floors
from evaluation.probing.knn import knn
from evaluation.probing.linear import linear_probe
from evaluation.probing.protocols import Estimator, Features, Floats
from evaluation.tasks.task import Task
from foundation.backbone import Backbone, BackboneError, load_backbone, random_backbone
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig
from recipes.load import digest, parse
from shards.scan import Scan
from shards.sources.cohort import CohortRow

POOLINGS = ("both", "cls", "mean")


class Entry(NamedTuple):
    """A row of the table, whatever the task.

    Attributes:
        kind: ``backbone`` or ``floor``.
        title: For people.
        description: In one sentence.
        digest: Of what makes its features; for a floor, of its definition.
        provenance: Of a backbone, without the subjects it has seen.
        seen: ``subjects`` and ``source_digests`` of its pretraining; empty for what never trained.
        architecture: Digest of a network's shape and preprocessing, the same for its untrained
            twins; None for other floors.
        backbone: The network, or None.
    """

    kind: str
    title: str
    description: str
    digest: str
    provenance: dict[str, Any]
    seen: dict[str, list[str]]
    architecture: str | None
    backbone: Backbone | None


class Candidate(NamedTuple):
    """One model on one task: features by name, and the protocols that score them.

    ``few_shot`` is the features of the few-shot probe, or None.
    """

    features: Mapping[str, Features]
    estimators: tuple[Estimator, ...]
    few_shot: Features | None


FLOORS = {
    "constant": ("majority", "the same score for everyone: the majority class, or the mean"),
    "volume": ("volume", "one feature: a volume in mm3"),
    "histogram": ("intensity histogram", "share of voxels in 32 bins of the modality's window"),
    "voxels": ("raw voxels", "principal components of the windowed scan on a small grid"),
    "clinical": ("clinical columns", "columns of the cohort's table, no image"),
    "mask": ("intensity in the mask", "mean and maximum inside the mask"),
    "clinical_mask": ("clinical + mask", "clinical columns, intensity in the mask and volume"),
}


def load_entries(
    backbones: Mapping[str, Path], *, seeds: Sequence[int], device: str
) -> dict[str, Entry]:
    """The pretrained backbones, then random initialisations of each distinct architecture.

    Raises:
        BackboneError: A folder is missing, damaged, or does not tell what it was trained on.
    """
    entries: dict[str, Entry] = {}
    alike: dict[str, tuple[VitConfig, Preprocessing, list[str]]] = {}
    for name, folder in backbones.items():
        backbone = load_backbone(folder, device=device)
        vit = _vit_config(folder)
        same = digest([vit.model_dump(mode="json"), backbone.preprocessing.model_dump(mode="json")])
        entries[name] = _pretrained(name, folder, backbone, architecture=same)
        alike.setdefault(same, (vit, backbone.preprocessing, []))[2].append(name)
    for same, (vit, preprocessing, names) in alike.items():
        for seed in seeds:
            random = random_backbone(vit, preprocessing=preprocessing, seed=seed).to(device)
            entries[f"random_{names[0]}_{seed}"] = Entry(
                "floor",
                f"random initialisation of {' and '.join(names)}, seed {seed}",
                f"the architecture of {' and '.join(names)}, never trained",
                random.digest,
                {},
                {},
                same,
                random,
            )
    return entries


def floor_entries(tasks: Sequence[Task]) -> dict[str, Entry]:
    """The floors that stand in any of these tasks."""
    used = [name for name in FLOORS if any(name in _floor_names(task) for task in tasks)]
    return {
        name: Entry("floor", *FLOORS[name], digest({"floor": name}), {}, {}, None, None)
        for name in used
    }


def task_extractors(task: Task, entries: Mapping[str, Entry]) -> list[Extractor]:
    """What must be extracted of a task's scans."""
    wanted = task.card.floors
    found = [floors.histogram_extractor()]
    if wanted.volume == "foreground":
        found.append(floors.foreground_extractor())
    if wanted.volume == "mask" or wanted.mask_intensity:
        found.append(floors.mask_extractor())
    if wanted.voxels is not None:
        found.append(floors.voxel_extractor(wanted.voxels))
    for name, entry in entries.items():
        if entry.backbone is not None:
            found.append(_backbone_extractor(name, entry.backbone, task))
    return found


def candidates(
    task: Task, entries: Mapping[str, Entry], arrays: Mapping[str, Mapping[str, NDArray[Any]]]
) -> dict[str, Candidate]:
    """Every model of a task, backbones first.

    Args:
        task: Whose subjects the arrays belong to.
        entries: Backbones and random initialisations.
        arrays: By extractor and array name, one row per subject.
    """
    linear, neighbours = linear_probe(task.card.kind), knn(task.card.kind)
    found = {}
    for name, entry in entries.items():
        if entry.backbone is not None:
            cls, mean = (arrays[name][part].astype(np.float64) for part in ("cls", "mean"))
            pooled = dict(zip(POOLINGS, (np.concatenate([cls, mean], 1), cls, mean), strict=True))
            found[name] = Candidate(pooled, (linear, neighbours), pooled["both"])
    features = _floor_features(task, arrays)
    for name in _floor_names(task):
        found[name] = _floor(name, features[name], task)
    return found


def _floor(name: str, features: Features, task: Task) -> Candidate:
    if name == "constant":
        return Candidate({"none": features}, (floors.constant(),), None)
    estimators: tuple[Estimator, ...] = (linear_probe(task.card.kind),)
    if name == "voxels" and task.card.kind == "binary":
        estimators = (*estimators, floors.rbf_svm())
    in_few_shot = name in ("voxels", "clinical")
    return Candidate({name: features}, estimators, features if in_few_shot else None)


def _floor_names(task: Task) -> list[str]:
    wanted = task.card.floors
    has = {
        "constant": True,
        "volume": wanted.volume is not None,
        "histogram": True,
        "voxels": wanted.voxels is not None,
        "clinical": bool(wanted.clinical),
        "mask": wanted.mask_intensity,
        "clinical_mask": bool(wanted.clinical) and wanted.mask_intensity,
    }
    return [name for name in FLOORS if has[name]]


def _floor_features(
    task: Task, arrays: Mapping[str, Mapping[str, NDArray[Any]]]
) -> dict[str, Features]:
    wanted = task.card.floors
    clinical = floors.clinical_features(task, wanted.clinical)
    found: dict[str, Features] = {
        "constant": np.zeros((len(task.label), 1)),
        "histogram": _floats(arrays["histogram"]["histogram"]),
        "clinical": clinical,
    }
    if wanted.volume is not None:
        found["volume"] = _floats(arrays[wanted.volume]["volume"])
    if wanted.voxels is not None:
        voxels = arrays["voxels"]["voxels"]
        found["voxels"] = floors.pca_features(voxels, num_components=wanted.voxels.pca)
    if wanted.mask_intensity:
        mask = arrays["mask"]
        found["mask"] = _floats(mask["intensity"])
        both = np.concatenate([mask["intensity"], mask["volume"]], axis=1)
        found["clinical_mask"] = floors.beside(clinical, _floats(both))
    return found


def _floats(values: NDArray[Any]) -> Floats:
    return values.astype(np.float64)


def _backbone_extractor(name: str, backbone: Backbone, task: Task) -> Extractor:
    # The contract's own spacing is named too, so backbones that share it share one resampling.
    spacing = task.card.spacing_mm or backbone.preprocessing.spacing_mm

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        del row
        return backbone.embed_scan(scan, spacing_mm=spacing)

    return Extractor(name, backbone.digest, spacing, extract)


def _pretrained(name: str, folder: Path, backbone: Backbone, *, architecture: str) -> Entry:
    listed = ("subjects", "source_digests")
    if missing := [key for key in listed if key not in backbone.provenance]:
        raise BackboneError(
            f"{folder}: its provenance.json does not list {' and '.join(missing)}, so nobody can "
            "say whether it has seen what it is scored on; pretrain it again with this version"
        )
    seen = {key: backbone.provenance[key] for key in listed}
    provenance = {key: each for key, each in backbone.provenance.items() if key not in listed}
    description = f"pretrained on {len(seen['subjects'])} subjects, frozen"
    return Entry(
        "backbone", name, description, backbone.digest, provenance, seen, architecture, backbone
    )


def _vit_config(folder: Path) -> VitConfig:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return parse(content["vit"], VitConfig, where=str(folder / "config.json"))
