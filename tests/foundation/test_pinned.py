"""Which scans are pinned, and that each gives the middle of its foreground."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from foundation.watching.pinned import PinnedScan, pinned_scans, read_pinned
from shards.index import VOLUME, sequence_member
from shards.streaming.corpus import Corpus, open_corpus
from shards.streaming.crops import CropPlan
from shards.streaming.reader import DamagedSample
from shards.streaming.reading import FolderConfig
from tests.written_shards import Written, pseudonym, ramp, write_shards

SHAPE, CROP = (9, 14, 11), (4, 8, 6)
BOX = ((1, 7), (2, 14), (0, 5))
PLAN = CropPlan(CROP, masks=("face",))
NUM_SUBJECTS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of each of 12 subjects; 3 of them are ill, the site of one is unknown."""
    samples = []
    for number in range(2 * NUM_SUBJECTS):
        subject = number // 2
        site = None if subject == 7 else f"site-{subject % 3}"
        values = {"ill": int(subject < 3), "site": site, "age": 30.5 + subject, "one": "same"}
        face = np.ones(SHAPE, np.uint8)
        samples.append(
            Written(
                {VOLUME: ramp(number, SHAPE)},
                masks={"face": face},
                subject=f"subject-{subject}",
                box=BOX,
                values=values,
            )
        )
    return write_shards(tmp_path_factory.mktemp("pinned") / "toy", samples)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return open_corpus([FolderConfig(folder=str(folder))], plan=PLAN, seed=0)


def chosen(corpus: Corpus, num_scans: int, label: str | None, seed: int = 0) -> list[PinnedScan]:
    return pinned_scans(corpus, num_scans=num_scans, label=label, seed=seed)


def read(corpus: Corpus, scans: list[PinnedScan], **words: int):
    settings = {"micro_batch": 3, "rank": 0, "world_size": 1, "max_damaged": 0, **words}
    return read_pinned(corpus, scans=scans, plan=PLAN, **settings)


def test_every_subject_once_by_seed(corpus: Corpus) -> None:
    scans = chosen(corpus, 8, None)
    assert len({scan.sample // 2 for scan in scans}) == 8
    assert scans == chosen(corpus, 8, None)
    assert scans != chosen(corpus, 8, None, seed=1)
    assert scans == chosen(corpus, 10, None)[:8]
    assert len(chosen(corpus, 99, None)) == NUM_SUBJECTS
    samples = [scan.sample for seed in range(16) for scan in chosen(corpus, 8, None, seed)]
    assert set(samples) == set(range(24)), "any scan of a subject may be the one"


def test_a_rare_class_is_taken_as_often_as_it_can_be(corpus: Corpus) -> None:
    for seed in range(5):
        labels = [scan.label for scan in chosen(corpus, 8, "ill", seed)]
        assert Counter(labels) == {"1": 3, "0": 5}
        assert Counter(labels[:6]) == {"1": 3, "0": 3}


def test_what_has_no_label_comes_last(corpus: Corpus) -> None:
    labels = [scan.label for scan in chosen(corpus, NUM_SUBJECTS, "site")]
    assert labels[-1] is None
    assert Counter(labels[:-1]) == {"site-0": 4, "site-1": 3, "site-2": 4}


def test_many_numbers_are_cut_at_their_median(corpus: Corpus) -> None:
    scans = chosen(corpus, NUM_SUBJECTS, "age")
    assert {scan.sample // 2 for scan in scans if scan.label == "True"} == set(range(6, 12))


@pytest.mark.parametrize("label", ["one", "nothing", "modality"])
def test_a_label_that_divides_nothing_is_refused(corpus: Corpus, label: str) -> None:
    with pytest.raises(ValueError, match=f"health.label: the column '{label}' does not divide"):
        chosen(corpus, 8, label)


def test_several_folders_are_drawn_from_together(folder: Path, tmp_path: Path) -> None:
    samples = [
        Written({VOLUME: ramp(number, SHAPE)}, subject=f"other-{number}", modality="MR")
        for number in range(6)
    ]
    other = write_shards(tmp_path / "other", samples, name="other")
    folders = [
        FolderConfig(folder=str(folder), balance="site"),
        FolderConfig(folder=str(other)),
    ]
    corpus = open_corpus(folders, plan=CropPlan(CROP), seed=0)
    scans = chosen(corpus, 10, "modality")
    assert Counter(scan.label for scan in scans) == {"CT": 5, "MR": 5}
    for scan in scans:
        sample = corpus.sources[scan.source].reader.samples[scan.sample]
        assert sample.sequences[VOLUME].modality == scan.label


def test_crops_lie_in_the_middle_of_the_foreground_and_ranks_share_them(corpus: Corpus) -> None:
    scans = chosen(corpus, 8, "ill")
    whole = read(corpus, scans)
    assert [len(batch.volume) for batch in whole.batches] == [3, 3, 2]
    assert whole.labels == [scan.label for scan in scans]
    rows = [row for batch in whole.batches for row in batch.volume[:, 0].numpy()]
    for scan, row in zip(scans, rows, strict=True):
        # The box's middle is (4, 8, 2); on the last axis the crop is moved inside the scan.
        np.testing.assert_array_equal(row, ramp(scan.sample, SHAPE)[2:6, 4:12, 0:6])
    assert whole.batches[0].masks.shape[1] == 0

    parts = [read(corpus, scans, rank=rank, world_size=3) for rank in range(3)]
    assert [len(part.labels) for part in parts] == [3, 3, 2]
    for rank, part in enumerate(parts):
        assert part.labels == whole.labels[rank::3]
        found = [row for batch in part.batches for row in batch.volume[:, 0].numpy()]
        np.testing.assert_array_equal(found, rows[rank::3])
        subjects = [int(number) for batch in part.batches for number in batch.subject]
        expected = [pseudonym(f"subject-{scan.sample // 2}")[:15] for scan in scans[rank::3]]
        assert subjects == [int(name, 16) for name in expected]


def test_a_rank_may_have_none(corpus: Corpus) -> None:
    assert read(corpus, chosen(corpus, 8, None)[:2], rank=2, world_size=3) == ([], [])


def test_a_damaged_scan_is_left_out_only_where_any_may_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [Written({VOLUME: ramp(n, SHAPE)}, subject=str(n)) for n in range(9)]
    where = write_shards(tmp_path / "damaged", samples)
    corpus = open_corpus([FolderConfig(folder=str(where))], plan=CropPlan(CROP), seed=0)
    scans = chosen(corpus, 9, None)
    victim = corpus.sources[0].reader.samples[scans[4].sample]
    place = victim.members[sequence_member(VOLUME)]
    tar = where / victim.shard
    content = bytearray(tar.read_bytes())
    content[place.offset + place.size // 2] ^= 0xFF
    tar.write_bytes(content)
    corpus = open_corpus([FolderConfig(folder=str(where))], plan=CropPlan(CROP), seed=0)
    with pytest.raises(DamagedSample, match=victim.key):
        read(corpus, scans)
    assert len(read(corpus, scans, max_damaged=1).labels) == 8
    assert "a pinned scan is left out" in caplog.text
    assert victim.key in caplog.text
