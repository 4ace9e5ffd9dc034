"""Segmentation on patch tokens: grids, Dice and the probe, on volumes that are never cubes."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from evaluation.backbones.embedder import Dense
from evaluation.extraction.dense import dense_features
from evaluation.probing.dense import DenseFeatures
from evaluation.probing.estimator import Scorer
from evaluation.probing.protocols import evaluate
from evaluation.probing.segmentation import CS, THRESHOLDS, segmentation_probe, token_ceiling
from evaluation.probing.token_grid import TokenGrid
from evaluation.probing.token_sample import sample_tokens
from foundation.tasks.masks import Mask, MaskedScans, MaskError, dice, overlap
from shards.scan import Scan, read_scan, resample
from shards.sources.cohort import CohortRow

PATCH = (2, 3, 4)
SHAPE = (8, 12, 20)
MM = (3.0, 1.5, 1.0)


def dense_of(scan: Scan, *, offset: tuple[int, int, int] = (0, 0, 0)) -> Dense:
    """Mean and spread of each patch's voxels, with padding before and behind as wanted."""
    shape = scan.voxels.shape
    behind = [-(n - o) % p for n, o, p in zip(shape, offset, PATCH, strict=True)]
    pad = [(-o, b) for o, b in zip(offset, behind, strict=True)]
    padded = np.pad(scan.voxels.astype(np.float32), pad, mode="edge")
    d, h, w = (n // p for n, p in zip(padded.shape, PATCH, strict=True))
    cells = padded.reshape(d, PATCH[0], h, PATCH[1], w, PATCH[2])
    tokens = np.stack([cells.mean((1, 3, 5)), cells.std((1, 3, 5))], axis=-1)
    return Dense(
        tokens, patch_voxels=PATCH, offset_voxels=offset, shape=shape, spacing_mm=scan.spacing_mm
    )


def grid_of(scan: Scan, mask_shape: tuple[int, ...], mask_mm: tuple[float, ...], **about: Any):
    return TokenGrid.of(dense_of(scan, **about), mask_shape, mask_mm)


def test_dice_worked_by_hand() -> None:
    mask = np.array([[[0, 1, 1, 2, 2, 2]]], dtype=np.uint8)
    predicted = np.array([[[1, 1, 0, 2, 2, 0]]], dtype=np.uint8)
    counts = overlap(predicted, mask, num_classes=4)
    np.testing.assert_array_equal(counts, [[1, 2, 0, 0], [2, 2, 0, 0], [2, 3, 0, 0]])
    np.testing.assert_allclose(dice(counts), [2 / 4, 4 / 5, np.nan, np.nan])
    false_alarm = overlap(np.full_like(mask, 3), mask, num_classes=4)
    np.testing.assert_allclose(dice(false_alarm), [0, 0, 0, np.nan])
    # Two scans of a subject count as one set of voxels, not as two scores.
    np.testing.assert_allclose(dice(counts + false_alarm)[:2], [2 / 6, 4 / 8])


def test_shares_of_a_box_on_the_tokens_own_grid() -> None:
    scan = Scan(np.zeros(SHAPE, np.float32), MM, "MR")
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4, 3:6, 4:8] = 1  # the token (1, 1, 1), whole
    mask[6:7, 9:11, 16:17] = 2  # 2 of the 24 voxels of the token (3, 3, 4)
    shares = grid_of(scan, SHAPE, MM).shares(Mask(mask, MM), num_classes=2)
    assert shares.shape == (4, 4, 5, 3)
    expected = np.zeros((4, 4, 5, 3))
    expected[..., 0] = 1
    expected[1, 1, 1] = (0, 1, 0)
    expected[3, 3, 4] = (1 - 2 / 24, 0, 2 / 24)
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_shares_when_the_scan_was_resampled_to_other_voxels() -> None:
    """A mask half as coarse in D and twice as fine in W; a token it fills has a share of one."""
    scan = Scan(np.zeros(SHAPE, np.float32), MM, "MR")
    mask_mm, mask_shape = (6.0, 1.5, 0.5), (4, 12, 40)
    mask = np.zeros(mask_shape, np.uint8)
    mask[1, 3:6, 8:16] = 1  # 6 to 12 mm, 4.5 to 9 mm, 4 to 8 mm: the token (1, 1, 1)
    mask[3, 0:3, 39] = 2  # the last 0.5 of 4 mm of the token (3, 0, 4)
    shares = grid_of(scan, mask_shape, mask_mm).shares(Mask(mask, mask_mm), num_classes=2)
    np.testing.assert_allclose(shares[1, 1, 1], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(shares[3, 0, 4], [7 / 8, 0, 1 / 8], atol=1e-6)
    np.testing.assert_allclose(shares[..., 1].sum(), 1, atol=1e-6)


def test_padding_is_no_background() -> None:
    """A token that is half padding knows the share of its scanned half; one outside has zeros."""
    scan = Scan(np.zeros(SHAPE, np.float32), MM, "MR")
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :, :2] = 1
    shares = grid_of(scan, SHAPE, MM, offset=(0, -3, -2)).shares(Mask(mask, MM), num_classes=1)
    assert shares.shape == (4, 5, 6, 2)
    np.testing.assert_array_equal(shares[:, 0], 0)
    np.testing.assert_allclose(shares[:, 1:, 0], np.broadcast_to([0, 1], (4, 4, 2)), atol=1e-6)
    np.testing.assert_allclose(shares[:, 1:, 1:, 1], 0, atol=1e-6)


@pytest.mark.parametrize("target_mm", [MM, (2.0, 2.5, 1.3), (4.0, 1.1, 0.7)])
@pytest.mark.parametrize("offset", [(0, 0, 0), (-1, -2, -3)])
def test_a_ramp_in_space_comes_back_to_the_masks_voxels(
    target_mm: tuple[float, float, float], offset: tuple[int, int, int]
) -> None:
    """Through the resampling of the scans themselves: a shift of a tenth of a voxel would show."""
    shape = (16, 30, 40)
    d, h, w = (places * mm for places, mm in zip(np.indices(shape), MM, strict=True))
    ramp = (10 * d + 20 * h - 30 * w).astype(np.float32)
    scan = resample(Scan(ramp, MM, "MR"), target_mm)
    dense = dense_of(scan, offset=offset)
    found = TokenGrid.of(dense, shape, MM).upsample(dense.tokens[None, ..., 0], slice(None))[0]
    inner = tuple(
        slice(int(np.ceil((p + 1) * t / mm)), -int(np.ceil((p + 1) * t / mm)))
        for p, t, mm in zip(PATCH, target_mm, MM, strict=True)
    )
    assert ramp[inner].size >= 8
    np.testing.assert_allclose(found[inner], ramp[inner], atol=0.5)


def test_planes_are_those_of_the_whole_and_a_constant_stays() -> None:
    rng = np.random.default_rng(0)
    scan = resample(Scan(rng.normal(size=SHAPE).astype(np.float32), MM, "MR"), (2.0, 2.0, 2.0))
    grid = grid_of(scan, SHAPE, MM)
    values = rng.normal(size=(2, *dense_of(scan).tokens.shape[:3])).astype(np.float32)
    whole = grid.upsample(values, slice(None))
    np.testing.assert_allclose(grid.upsample(values, slice(3, 5)), whole[:, 3:5], rtol=1e-5)
    np.testing.assert_allclose(grid.upsample(np.ones_like(values), slice(None)), 1, rtol=1e-5)


def test_a_mask_of_another_extent_is_refused() -> None:
    scan = Scan(np.zeros(SHAPE, np.float32), MM, "MR")
    for shape, mm in (((8, 12, 22), MM), ((8, 12, 18), MM), (SHAPE, (3.0, 1.5, 1.2))):
        with pytest.raises(MaskError, match="does not fit its scan of"):
            grid_of(scan, shape, mm)
    single = Scan(np.zeros((1, 12, 20), np.float32), MM, "MR")
    grid_of(resample(single, (1.0, 1.5, 1.0)), (1, 12, 20), MM)


class Blobs:
    """Subjects with a bright and a dark blob in NIfTI files; each has one scan, the last has two.

    Class ``bright`` is in every mask, ``dark`` in every other one; a value of no class is there
    too.
    """

    def __init__(self, folder: Path, *, num_subjects: int = 14) -> None:
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        self.rows: list[tuple[CohortRow, ...]] = []
        for number in range(num_subjects):
            visits = 2 if number == num_subjects - 1 else 1
            rows = [self._scan(folder, f"{number}_{v}", number, rng) for v in range(visits)]
            self.rows.append(tuple(rows))
        self.masked = MaskedScans(tuple(self.rows), {"bright": 2, "dark": 5}, None)

    def _scan(self, folder: Path, name: str, number: int, rng: np.random.Generator) -> CohortRow:
        shape, mm = (28, 30, 18), (1.0, 1.5, 3.0)  # of the file: x, y, z
        place = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) * mm
        voxels = rng.normal(100, 8, shape).astype(np.float32)
        mask = np.zeros(shape, np.uint8)
        mask[0, 0, :] = 9
        for value, shift in ((2, 60), (5, -60)) if number % 2 else ((2, 60),):
            centre = np.array([7, 12, 14]) + (value == 5) * np.array([13, 18, 24])
            inside = np.linalg.norm(place - centre - rng.uniform(-1, 1, 3), axis=-1) < 6.5
            voxels[inside] += shift
            mask[inside] = value
        for kind, array in (("scan", voxels), ("mask", mask)):
            image = nibabel.nifti1.Nifti1Image(array, np.diag([*mm, 1.0]))
            nibabel.nifti1.save(image, folder / f"{name}_{kind}.nii")
        scan, path = (str(folder / f"{name}_{kind}.nii") for kind in ("scan", "mask"))
        return CohortRow(str(number), scan, path, "train", "MR", {}, masks={"other": path})

    def load(self, subject: int, scan: int) -> Dense:
        found = read_scan(self.rows[subject][scan].scan, modality="MR")
        return dense_of(resample(found, (2.0, 1.0, 1.0)), offset=(-1, 0, -2))

    @property
    def features(self) -> DenseFeatures:
        return DenseFeatures(self.masked, self.load)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Blobs:
    return Blobs(tmp_path_factory.mktemp("blobs") / "files")


TRAIN = np.arange(14) < 9
SETTING = {"C": 4.0, "threshold": 0.4}


def test_planted_blobs_are_found_nearly_as_well_as_tokens_allow(blobs: Blobs) -> None:
    estimator = segmentation_probe()
    assert len(estimator.settings) == len(CS) * len(THRESHOLDS)
    assert estimator.settings[0] == {"C": CS[0], "threshold": 0.5}
    label, num = np.zeros(14), len(estimator.settings)
    scores = estimator.predict(blobs.features, label, np.tile(TRAIN, (num, 1)), estimator.settings)
    assert scores.shape == (num, 14, 2)
    assert np.isnan(scores[:, TRAIN]).all()
    best = np.nanmean(scores[:, ~TRAIN], axis=(1, 2)).argmax()
    found = scores[best, ~TRAIN]
    ceiling = token_ceiling(blobs.features, np.flatnonzero(~TRAIN))
    is_odd = np.flatnonzero(~TRAIN) % 2 == 1
    np.testing.assert_array_equal(np.isnan(ceiling[:, 1]), ~is_odd)
    assert (ceiling[is_odd] > 0.8).all()
    assert np.nanmean(found[is_odd]) > 0.85 * np.nanmean(ceiling[is_odd])
    assert set(np.nan_to_num(found[~is_odd, 1]).tolist()) <= {0.0}


def test_problems_solved_together_are_those_solved_alone(blobs: Blobs) -> None:
    trains = np.stack([TRAIN, TRAIN, np.arange(14) >= 4])
    settings = [SETTING, {"C": 0.01, "threshold": 0.2}, SETTING]
    predict = segmentation_probe().predict
    together = predict(blobs.features, np.zeros(14), trains, settings)
    for number, setting in enumerate(settings):
        alone = predict(blobs.features, np.zeros(14), trains[number : number + 1], [setting])[0]
        if number < 2:  # the number of tokens depends on the largest training set
            np.testing.assert_allclose(together[number], alone, atol=2e-3)
        np.testing.assert_array_equal(np.isnan(together[number]), np.isnan(alone))


class Poisoned(MaskedScans):
    """Notes whose masks are opened, and gives those of ``poison`` as if all were foreground."""

    def __init__(self, masked: MaskedScans, poison: tuple[int, ...] = ()) -> None:
        super().__init__(masked.scans, masked.values, masked.mask)
        object.__setattr__(self, "opened", [])
        object.__setattr__(self, "poison", poison)

    def read_mask(self, subject: int, scan: int) -> Mask:
        self.opened.append((subject, scan))
        found = super().read_mask(subject, scan)
        if subject in self.poison:
            return found._replace(classes=np.ones_like(found.classes))
        return found


def test_masks_of_held_out_subjects_have_no_part_in_training(blobs: Blobs) -> None:
    watched = Poisoned(blobs.masked)
    tokens = sample_tokens(DenseFeatures(watched, blobs.load), np.stack([TRAIN, TRAIN]))
    assert {subject for subject, _ in watched.opened} == set(np.flatnonzero(TRAIN))
    assert set(tokens.subject) == set(np.flatnonzero(TRAIN))
    predict = segmentation_probe().predict
    clean = predict(blobs.features, np.zeros(14), TRAIN[None], [SETTING])[0]
    poisoned = DenseFeatures(Poisoned(blobs.masked, (10, 12)), blobs.load)
    found = predict(poisoned, np.zeros(14), TRAIN[None], [SETTING])[0]
    others = [9, 11, 13]
    np.testing.assert_array_equal(found[others], clean[others])
    assert (found[[10, 12], 0] != clean[[10, 12], 0]).all()


def test_each_problem_trains_on_its_own_subjects_only(blobs: Blobs) -> None:
    """A subject that is in one problem's training part and held out in another's."""
    trains = np.stack([TRAIN, np.arange(14) < 8])
    poisoned = DenseFeatures(Poisoned(blobs.masked, (8,)), blobs.load)
    found, clean = (
        segmentation_probe().predict(features, np.zeros(14), trains, [SETTING, SETTING])
        for features in (poisoned, blobs.features)
    )
    np.testing.assert_array_equal(found[1, 9:], clean[1, 9:])
    assert not np.array_equal(found[0, 9:], clean[0, 9:])


def test_every_class_gives_tokens_and_background_is_thinned(blobs: Blobs) -> None:
    tokens = sample_tokens(blobs.features, TRAIN[None])
    of_one = tokens.subject == 1
    stands_for = np.where(
        tokens.shares[of_one, 1:].any(axis=1), 1 + tokens.shares[of_one, 1:].argmax(axis=1), 0
    )
    counts = np.bincount(stands_for)
    assert counts[0] == 128
    assert (counts[1:] > 10).all()
    np.testing.assert_allclose(tokens.shares.sum(axis=1), 1, atol=1e-5)
    weight = tokens.weight[of_one]
    assert (weight[stands_for > 0] == 1).all()
    grid = blobs.load(1, 0).tokens.shape[:3]
    background = 128 * weight[stands_for == 0][0] ** 2
    # All tokens but those of a class and those that see padding only.
    assert 0.6 * np.prod(grid) < background < np.prod(grid) - counts[1:].sum() + 0.5


def test_scans_of_a_subject_are_one_set_of_voxels(blobs: Blobs) -> None:
    """Dice over both scans, from the counts of each: the larger scan counts for more."""
    predict = segmentation_probe().predict
    whole = predict(blobs.features, np.zeros(14), TRAIN[None], [SETTING])[0]
    parts = []
    for scan in (0, 1):
        rows = (*blobs.rows[:13], (blobs.rows[13][scan],))

        def load(subject: int, number: int, scan: int = scan) -> Dense:
            return blobs.load(subject, scan if subject == 13 else number)

        features = DenseFeatures(MaskedScans(rows, blobs.masked.values, None), load)
        parts.append(
            segmentation_probe().predict(features, np.zeros(14), TRAIN[None], [SETTING])[0]
        )
    low, high = (np.minimum(*parts)[13], np.maximum(*parts)[13])
    assert (low < whole[13]).all()
    assert (whole[13] < high).all()


def test_features_of_some_subjects_hold_those_only(blobs: Blobs) -> None:
    some = blobs.features.take(np.array([12, 3, 13]))
    assert len(some) == 3
    assert some.masked.scans == (blobs.rows[12], blobs.rows[3], blobs.rows[13])
    np.testing.assert_array_equal(some.load(2, 1).tokens, blobs.load(13, 1).tokens)
    again = some.take(np.array([2]))
    np.testing.assert_array_equal(again.load(0, 0).tokens, blobs.load(13, 0).tokens)


def test_masks_are_read_by_name_and_value(blobs: Blobs) -> None:
    mask = blobs.masked.read_mask(1, 0)
    assert mask.classes.shape == (18, 30, 28)
    assert mask.spacing_mm == (3.0, 1.5, 1.0)
    assert set(np.unique(mask.classes)) == {0, 1, 2}
    named = MaskedScans(blobs.masked.scans, {"dark": 5}, "other").read_mask(1, 0)
    np.testing.assert_array_equal(named.classes == 1, mask.classes == 2)
    with pytest.raises(MaskError, match=r"1_0_scan\.nii: no lungs beside it; name it"):
        MaskedScans(blobs.masked.scans, {"dark": 5}, "lungs").read_mask(1, 0)
    broken = CohortRow("x", "x.nii", "/no/such.nii", "train", "MR", {})
    with pytest.raises(MaskError, match=r"such\.nii: the file or folder does not exist; mend it"):
        MaskedScans(((broken,),), {"dark": 5}, None).read_mask(0, 0)


class Patches:
    """An embedder of the mean and spread of each patch."""

    digest = "0" * 64
    spacing_mm = (1.5, 1.5, 1.5)

    def dense(self, scan: Scan) -> Dense:
        return dense_of(scan, offset=(0, -1, -2))


def segmentation_task(place: Any) -> Any:
    """The bright corner of conftest's scans as the mask."""
    for path in sorted((place.data / "scans").glob("*_mask.nii")):
        mask = np.zeros((11, 9, 7), np.uint8)
        if (int(path.name[:3]) // 2) % 2:
            mask[:4, :4, :3] = 3
        image = nibabel.nifti1.Nifti1Image(mask, np.diag([1.5, 1.0, 2.0, 1.0]))
        nibabel.nifti1.save(image, path)
    floors = {"volume": None, "radiomics": None}
    label = {"classes": {"corner": 3}}
    return place.task(kind="segmentation", label=label, floors=floors, groups=[])


def test_from_a_card_and_a_cache_to_scores(place: Any) -> None:
    task = segmentation_task(place)
    files = dense_features(task, Patches(), name="patches", folder=place.root / "features")
    features = DenseFeatures.of(task, files)
    assert len(features) == len(task.subjects)
    assert features.masked.num_classes == len(task.outputs) == 1
    scorer = Scorer({"patch": features}, segmentation_probe())
    found = evaluate(task, scorer, open_test=True, spread=2)
    for split in ("val", "test"):
        score, rows = found.scores[split][:, 0], task.rows(split)
        has_one = np.array([features.masked.read_mask(row, 0).classes.any() for row in rows])
        assert score[has_one].mean() > 0.5
        assert set(np.nan_to_num(score[~has_one])) <= {0.0}
    assert found.chosen["features"] == "patch"
    assert found.chosen["threshold"] in THRESHOLDS


def test_masks_of_a_closed_test_split_are_not_opened(place: Any) -> None:
    task = segmentation_task(place)
    files = dense_features(task, Patches(), name="patches", folder=place.root / "features")
    for row in task.rows("test"):
        Path(task.scans[row][0].mask).unlink()
    scorer = Scorer({"patch": DenseFeatures.of(task, files)}, segmentation_probe())
    assert np.isfinite(evaluate(task, scorer, open_test=False).scores["val"]).any()
    with pytest.raises(MaskError, match="does not exist"):
        evaluate(task, scorer, open_test=True)
