"""The labelled scans of a task as shards: built once, then read crop by crop like any others.

They hold training and validation subjects alone: what a test split holds is not even read.
"""

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foundation.finetuning.recipe import FinetuneConfig
from foundation.finetuning.target import Target
from foundation.preprocessing import Preprocessing
from foundation.tasks.labels import TaskError, is_labelled
from foundation.tasks.masks import Classes
from foundation.tasks.task import Task
from recipes.load import digest
from shards.build import BuildConfig
from shards.build import main as build
from shards.building.ledger import parse_ledger
from shards.building.plan import jobs_of
from shards.files import Busy
from shards.index import LEDGER, VOLUME
from shards.measure.similar import DuplicatePolicy
from shards.policy import LENIENT
from shards.pseudonym import load_key
from shards.scan import Scan
from shards.sources.from_cohort import MASK, is_wanted
from shards.sources.source import SourceConfig, read_source
from shards.streaming.corpus import Boxed, Corpus, open_corpus
from shards.streaming.crops import CropPlan
from shards.streaming.reader import ShardReader
from shards.streaming.reading import FolderConfig

_LOOK_AGAIN_S = 2.0


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


def build_scans(about: BuildConfig, task: Task) -> frozenset[str]:
    """Make the shards of a task, or find that they are up to date.

    Another command that makes the same ones is waited for.

    Args:
        about: From :func:`recipe_of`.
        task: Whose they are.

    Returns:
        Keys of the samples that have a label; what else the shards hold is not the task's.

    Raises:
        ValueError: A scan cannot be read, or the folder not be written.
    """
    has_told = False
    while True:
        try:
            build(about)
        except Busy as error:
            if not has_told:
                print(f"waiting: {error}", flush=True)
            has_told = True
            time.sleep(_LOOK_AGAIN_S)
        else:
            return _labelled_keys(about, task)


def _labelled_keys(about: BuildConfig, task: Task) -> frozenset[str]:
    """Shards keep samples of rows that have left the table, and know nothing of labels."""
    (chosen,) = about.sources
    source = read_source(chosen, data_root=about.data_root)
    rows = [row for row in task.cohort.rows if is_wanted(row, chosen)]
    by_mask = task.card.kind == "segmentation"  # which the shards do know
    inputs = {
        job.input
        for row, job in zip(rows, jobs_of([source], load_key(about.pseudonym_key)), strict=True)
        if by_mask or is_labelled(row, task.card)
    }
    ledger = parse_ledger((Path(about.out) / LEDGER).read_bytes())
    return frozenset(entry.key for entry in ledger if entry.key and entry.input in inputs)


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


def open_scans(folder: Path, task: Task, *, keys: Collection[str]) -> LabelledScans:
    """The shards of a task.

    Args:
        folder: Of the shards.
        task: Whose they are.
        keys: From :func:`build_scans`.

    Raises:
        TaskError: A labelled subject of training or validation has no sample in them, or it is not
            clear which sequence is meant.
    """
    reader = ShardReader(folder)
    sequence = _sequence_of(task)
    mask = (task.card.label.mask or MASK) if task.card.kind == "segmentation" else None
    samples: dict[str, list[int]] = {}
    for index, (key, scan) in enumerate(reader.samples.keyed_scans()):
        has_sequence = sequence in [one["name"] for one in scan["sequences"]]
        if key in keys and has_sequence and (mask is None or mask in scan["masks"]):
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
    indices = [index for subject in sorted(subjects) for index in scans.samples[subject]]
    keys = {index: scans.reader.samples[index].key for index in indices}
    boxes = None
    if scans.mask is not None:
        boxes = {
            key: box
            for index, key in keys.items()
            if (box := _box_of(scans.classes(index, target))) is not None
        }
    return open_corpus(
        [FolderConfig(folder=str(folder))],
        plan=plan,
        seed=seed,
        keys=frozenset(keys.values()),
        boxes=boxes,
    )


def _box_of(classes: Classes) -> Boxed | None:
    """[start, stop) around everything that is not background; None where there is nothing."""
    there = classes > 0
    sides = [np.flatnonzero(there.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not len(sides[0]):
        return None
    return tuple((int(each[0]), int(each[-1]) + 1) for each in sides)
