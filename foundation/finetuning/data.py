"""The labelled scans of a task as shards: built once, then read crop by crop like any others.

They hold training and validation subjects alone: what a test split holds is not even read.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foundation.finetuning.recipe import FinetuneConfig
from foundation.finetuning.target import Target
from foundation.preprocessing import Preprocessing
from foundation.tasks.labels import TaskError
from foundation.tasks.masks import Classes
from foundation.tasks.task import Task
from recipes.load import digest
from shards.build import BuildConfig
from shards.build import main as build
from shards.index import VOLUME
from shards.measure.similar import DuplicatePolicy
from shards.policy import LENIENT
from shards.scan import Scan
from shards.sources.from_cohort import MASK
from shards.sources.source import SourceConfig
from shards.streaming.corpus import Boxed, Corpus, open_corpus
from shards.streaming.crops import CropPlan
from shards.streaming.reader import ShardReader
from shards.streaming.reading import FolderConfig


class LabelledScans(NamedTuple):
    """The shards of a task, and whose sample is whose.

    Attributes:
        reader: Of the shards.
        samples: Of each subject, by pseudonym, places in ``reader.samples``.
        sequence: That is read of each.
        mask: Name of the mask of a segmentation; None of other tasks.
    """

    reader: ShardReader
    samples: Mapping[str, list[int]]
    sequence: str
    mask: str | None

    def scan(self, index: int) -> Scan:
        """A sample whole, in physical units, on the grid of the shards.

        Raises:
            DamagedSample: A byte is not what was written.
        """
        sample = self.reader.samples[index]
        stored = sample.sequences[self.sequence]
        voxels = self.reader.read_volume(index, sequence=self.sequence).astype(np.float32)
        return Scan(
            voxels=voxels * np.float32(stored.slope) + np.float32(stored.intercept),
            spacing_mm=sample.spacing_mm,
            modality=stored.modality,
        )

    def classes(self, index: int, target: Target) -> Classes:
        """What each voxel of a sample is: 0 for background, k for the k-th class."""
        assert self.mask is not None, "a segmentation names its mask"
        return class_table(target)[self.reader.read_mask(index, mask=self.mask)]


def class_table(target: Target) -> Classes:
    """(256,): the class of each value in a mask; others are background."""
    table = np.zeros(256, dtype=np.uint8)
    for number, value in enumerate(target.mask_values.values(), start=1):
        table[value] = number
    return table


def build_scans(config: FinetuneConfig, task: Task, *, preprocessing: Preprocessing) -> Path:
    """Make the shards of a task, or find that they are up to date.

    Raises:
        ValueError: A scan cannot be read, or the folder not be written.
    """
    about = recipe_of(config, task, preprocessing=preprocessing)
    build(about)
    return Path(about.out)


def recipe_of(config: FinetuneConfig, task: Task, *, preprocessing: Preprocessing) -> BuildConfig:
    """Of the shards: tasks over the same scans at the same spacing share them."""
    card = task.card
    source = SourceConfig(
        cohort=card.cohort,
        splits=["train", "val"] if card.protocol.split else None,
        where={name: list(cells) for name, cells in card.where.items()},
        spacing_mm=preprocessing.spacing_mm,
        policy=LENIENT,  # whoever gave a scan a label wants it read
        with_mask=card.kind == "segmentation" and card.label.mask is None,
    )
    name = task.cohort.config.name
    short = digest([source.model_dump(mode="json"), str(config.data_root)])[:8]
    return BuildConfig(
        name=name,
        out=str(config.shards / f"{name}-{short}"),
        data_root=str(config.data_root),
        pseudonym_key=config.pseudonym_key,
        sources=[source],
        duplicates=DuplicatePolicy(exact="keep", near="ignore"),
        max_rejected_fraction=1.0,  # whoever has a label is asked for below
        workers=config.build_workers,
        if_changed="rebuild",
    )


def open_scans(folder: Path, task: Task) -> LabelledScans:
    """The shards of a task.

    Raises:
        TaskError: A labelled subject of training or validation has no sample in them, or it is not
            clear which sequence is meant.
    """
    reader = ShardReader(folder)
    sequence = _sequence_of(task)
    mask = (task.card.label.mask or MASK) if task.card.kind == "segmentation" else None
    samples: dict[str, list[int]] = {}
    for index, scan in enumerate(reader.samples.scans()):
        has_sequence = sequence in [one["name"] for one in scan["sequences"]]
        if has_sequence and (mask is None or mask in scan["masks"]):
            samples.setdefault(scan["subject"], []).append(index)
    wanted = [task.subjects[row] for row in task.rows("train", "val", "cv")]
    if lost := [subject for subject in wanted if subject not in samples]:
        raise TaskError(
            f"task {task.card.name}: {len(lost)} of {len(wanted)} labelled subjects have no scan "
            f"in {folder}; {folder / 'ledger.jsonl'} says why, mend the scans or take the rows out"
        )
    return LabelledScans(reader, samples, sequence, mask)


def _sequence_of(task: Task) -> str:
    names = list(dict.fromkeys(name for row in task.cohort.rows for name in row.sequences))
    if not names:
        return VOLUME
    wanted = task.card.sequences or tuple(names)
    if len(wanted) != 1:
        raise TaskError(
            f"task {task.card.name}: its visits have the sequences {', '.join(names)}, and a "
            "network is tuned on one; name it as sequences of the card"
        )
    return wanted[0]


def training_corpus(
    scans: LabelledScans,
    *,
    folder: Path,
    subjects: Collection[str],
    plan: CropPlan,
    seed: int,
    target: Target,
) -> Corpus:
    """Those samples that are learnt from; of a segmentation crops are centred about the mask."""
    boxes = None
    if scans.mask is not None:
        indices = [index for subject in sorted(subjects) for index in scans.samples[subject]]
        boxes = {
            scans.reader.samples[index].key: box
            for index in indices
            if (box := _box_of(scans.classes(index, target))) is not None
        }
    return open_corpus(
        [FolderConfig(folder=str(folder))],
        plan=plan,
        seed=seed,
        subjects=frozenset(subjects),
        boxes=boxes,
    )


def _box_of(classes: Classes) -> Boxed | None:
    """[start, stop) around everything that is not background; None where there is nothing."""
    places = np.nonzero(classes)
    if not len(places[0]):
        return None
    return tuple((int(each.min()), int(each.max()) + 1) for each in places)
