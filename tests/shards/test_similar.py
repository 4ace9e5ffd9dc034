"""Perceptual hashes: copies stay near, subjects stay apart, and the nearest is found."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from recipes.load import RecipeError, parse
from shards.measure.similar import (
    BITS,
    NEAR_DISTANCE,
    DuplicatePolicy,
    SimilarFinder,
    perceptual_hash,
)
from shards.phantom.simulate import simulate
from shards.scan import Scan, read_scan, resample

Change = Callable[[np.ndarray], np.ndarray]


def apart(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def to_bytes(voxels: np.ndarray) -> np.ndarray:
    low, high = voxels.min(), voxels.max()
    return ((voxels - np.float32(low)) / (high - np.float32(low)) * 255).astype(np.uint8)


def noisy(voxels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.1 * voxels.std(), voxels.shape)
    return (voxels + noise).astype(np.float32)


def resampled(voxels: np.ndarray) -> np.ndarray:
    scan = Scan(voxels.astype(np.float32), (3.0, 1.2, 0.9), "OT")
    return resample(scan, (2.0, 2.0, 1.5)).voxels


CHANGES: dict[str, Change] = {
    "requantised": to_bytes,
    "noisy": noisy,
    "scaled": lambda voxels: voxels.astype(np.float32) * 0.37 + 1234.5,
    "resampled": resampled,
    "first slice lost": lambda voxels: voxels[1:],
    "last slice lost": lambda voxels: voxels[:-1],
}


@pytest.fixture(scope="module")
def phantoms() -> list[np.ndarray]:
    """Heads (MR and CT) and chests (CT) of four subjects."""
    return [scan.voxels for index in range(4) for scan in simulate(3, index).scans]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_copy_stays_near(phantoms: list[np.ndarray], change: Change) -> None:
    for voxels in phantoms:
        assert apart(perceptual_hash(voxels), perceptual_hash(change(voxels))) <= NEAR_DISTANCE


def test_other_subjects_are_far(phantoms: list[np.ndarray]) -> None:
    hashes = [perceptual_hash(voxels) for voxels in phantoms]
    for first, second in combinations(hashes, 2):
        assert apart(first, second) > 2 * NEAR_DISTANCE


def test_the_hash_sees_every_axis() -> None:
    voxels = np.random.default_rng(0).normal(0, 1, (20, 31, 26)).cumsum(axis=1)
    turned = [voxels, voxels[::-1], voxels[:, ::-1], voxels[:, :, ::-1], voxels.transpose(1, 0, 2)]
    for first, second in combinations([perceptual_hash(each) for each in turned], 2):
        assert apart(first, second) > NEAR_DISTANCE


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(1, 40, 17), (4, 30, 20), (3, 5, 2)])
def test_thin_and_tiny_volumes_have_a_hash(dtype: type, shape: tuple[int, int, int]) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    found = perceptual_hash(voxels)
    assert len(found) == BITS // 4
    assert found == perceptual_hash(voxels.copy(order="F"))


def test_equal_boxes_are_averaged_and_compared_as_the_dct_does() -> None:
    """Against scipy's DCT in doubles; bits at the threshold may fall to either side."""
    from scipy.fft import dctn

    voxels = np.random.default_rng(5).integers(-900, 900, (32, 48, 16)).astype(np.int16)
    boxes = voxels.reshape(16, 2, 16, 3, 16, 1).mean(axis=(1, 3, 5))
    frequencies = dctn(boxes, type=2, norm=None)
    chosen = sorted(np.ndindex(16, 16, 16), key=lambda k: (sum(x * x for x in k), k))[1 : BITS + 1]
    values = np.array([frequencies[k] for k in chosen])
    expected = np.packbits(values > np.median(values)).tobytes().hex()
    assert apart(perceptual_hash(voxels), expected) <= 2


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_volume_without_contrast_is_like_nothing(dtype: type) -> None:
    flat = perceptual_hash(np.full((7, 20, 11), -1000, dtype))
    assert flat == ""
    finder = SimilarFinder()
    finder.add(flat, "flat")
    assert finder.nearest(flat) is None
    assert finder.nearest("0" * (BITS // 4)) is None


def test_the_nearest_is_found_among_many() -> None:
    random = np.random.default_rng(2)
    hashes = [random.bytes(BITS // 8).hex() for _ in range(3000)]
    finder = SimilarFinder()
    for place, each in enumerate(hashes):
        finder.add(each, f"scan-{place}")
    for place in (0, 1023, 1024, 2999):
        near = f"{int(hashes[place], 16) ^ 0b1011 << 97:0{BITS // 4}x}"
        assert finder.nearest(near) == (f"scan-{place}", 3)
        assert finder.nearest(hashes[place]) == (f"scan-{place}", 0)
    stranger = random.bytes(BITS // 8).hex()
    distances = [apart(stranger, each) for each in hashes]
    first = int(np.argmin(distances))
    assert finder.nearest(stranger) == (f"scan-{first}", distances[first])


def test_every_bit_may_differ_and_the_first_of_equals_is_named() -> None:
    finder = SimilarFinder()
    finder.add("f" * (BITS // 4), "first")
    finder.add("f" * (BITS // 4), "second")
    assert finder.nearest("0" * (BITS // 4)) == ("first", BITS)


def test_a_hash_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=f"16 hex digits, expected {BITS // 4}"):
        SimilarFinder().add("0" * 16, "old")


def test_the_policy_of_duplicates_is_checked() -> None:
    assert parse({}, DuplicatePolicy, where="recipe") == DuplicatePolicy(
        exact="reject", near="mark", near_distance=NEAR_DISTANCE
    )
    with pytest.raises(RecipeError, match="near_distance"):
        parse({"near_distance": BITS // 2}, DuplicatePolicy, where="recipe")
    with pytest.raises(RecipeError, match="near"):
        parse({"near": "keep"}, DuplicatePolicy, where="recipe")


@pytest.mark.real
def test_crops_of_one_anatomy_are_apart_and_their_copies_near(real_data: Path) -> None:
    paths = sorted(real_data.glob("hippocampus/**/*.nii.gz"))
    images = [path for path in paths if "label" not in str(path).lower()][:40]
    crops = [read_scan(path, modality="MR").voxels for path in images]
    hashes = [perceptual_hash(voxels) for voxels in crops]
    assert min(apart(first, second) for first, second in combinations(hashes, 2)) > NEAR_DISTANCE
    for voxels, found in zip(crops, hashes, strict=True):
        assert apart(found, perceptual_hash(noisy(voxels))) <= NEAR_DISTANCE
