"""The training cases of a task of the Medical Segmentation Decathlon, from its ``dataset.json``.

    Task04_Hippocampus/dataset.json  imagesTr/NAME.nii.gz  labelsTr/NAME.nii.gz

The archives come as tars from medicaldecathlon.com. The cases of ``imagesTs`` have no public
labels and are left out. Where an image has several channels, each is one sequence.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from shards.sources.cohort import CohortConfig, CohortRow, random_split
from shards.sources.cohort_table import CohortError

_ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


def msd_rows(config: CohortConfig, file: Path) -> list[CohortRow]:
    """A row per labelled case, in the order of the file; its name is the subject.

    Raises:
        CohortError: The file is no such list, or ``split`` names a column, which there is not.
    """
    if config.split is not None and config.split.column is not None:
        raise CohortError(
            f"cohort {config.name}: an msd has no columns; give split fractions and a seed"
        )
    try:
        channels, pairs = _read(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CohortError(
            f"cohort {config.name}: {file} is not a dataset.json of the Decathlon"
            f" ({type(error).__name__}: {error}); it needs modality and training, a list of image"
            " and label"
        ) from None
    subjects = [_ENDING.sub("", PurePosixPath(image).name) for image, _ in pairs]
    parts = random_split(subjects, split=config.split) if config.split is not None else {}
    return [
        _row(config, file.parent, channels, image, label, subject, parts.get(subject))
        for subject, (image, label) in zip(subjects, pairs, strict=True)
    ]


def _read(content: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the channels in order, and the paths of each image and its label."""
    numbered = sorted((int(number), str(name)) for number, name in content["modality"].items())
    if [number for number, _ in numbered] != list(range(len(numbered))) or not numbered:
        raise ValueError("modality numbers channels from 0")
    channels = [name for _, name in numbered]
    return channels, [(str(pair["image"]), str(pair["label"])) for pair in content["training"]]


def _row(
    config: CohortConfig,
    folder: Path,
    channels: list[str],
    image: str,
    label: str,
    subject: str,
    split: str | None,
) -> CohortRow:
    scan, mask = str(folder / image), str(folder / label)
    assert not isinstance(config.modality, dict)
    modalities = {_slug(name): config.modality or _modality(name) for name in channels}
    sequences = {name: f"{scan}#{number}" for number, name in enumerate(modalities)}
    several = len(channels) > 1
    return CohortRow(
        subject=subject,
        scan=next(iter(sequences.values())) if several else scan,
        mask=mask,
        split=split,
        modality=next(iter(modalities.values())),
        values={"case": subject},
        sequences=sequences if several else {},
        masks={"label": mask},
        modalities=modalities if several else {},
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "channel"


def _modality(name: str) -> str:
    """Of a channel: computed tomography says so, and everything else in the Decathlon is MR."""
    return "CT" if name.upper().startswith("CT") else "MR"
