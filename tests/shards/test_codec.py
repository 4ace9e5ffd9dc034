"""The volume codec: exact crops, no damaged byte delivered, and quantisation with a bound."""

from pathlib import Path

import numpy as np
import pytest

from shards.codec import DamagedFrame, checksums, encode, quantise, read_crop, source_digest
from shards.scan import Origin, Scan, read_scan


def _volume(shape: tuple[int, int, int] = (70, 90, 65)) -> np.ndarray:
    volume = np.random.default_rng(0).normal(0, 60, shape).astype(np.int16)
    volume[:64, :64, :64] = -1000  # one chunk of a single value
    return volume


@pytest.mark.parametrize(
    ("start", "stop"),
    [((0, 0, 0), (70, 90, 65)), ((3, 60, 2), (66, 90, 7)), ((64, 64, 64), (70, 65, 65))],
)
def test_a_crop_is_what_was_encoded(
    start: tuple[int, int, int], stop: tuple[int, int, int]
) -> None:
    volume = _volume()
    frame = encode(volume)
    window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    found = read_crop(frame, start=start, stop=stop, expected=checksums(frame))
    np.testing.assert_array_equal(found, volume[window])


def test_small_volumes_and_equal_bytes() -> None:
    volume = _volume((3, 70, 5))
    frame = encode(volume)
    assert frame == encode(volume.copy())
    found = read_crop(frame, start=(0, 0, 0), stop=volume.shape, expected=checksums(frame))
    np.testing.assert_array_equal(found, volume)


def test_every_flipped_byte_is_found() -> None:
    volume = _volume((8, 20, 9))
    frame = encode(volume)
    expected = checksums(frame)
    for place in range(len(frame)):
        damaged = bytearray(frame)
        damaged[place] ^= 0x10
        with pytest.raises(DamagedFrame):
            read_crop(bytes(damaged), start=(0, 0, 0), stop=volume.shape, expected=expected)


def test_only_touched_chunks_are_read() -> None:
    volume = _volume()
    frame = encode(volume)
    expected = checksums(frame)
    number = len(expected.sizes) - 1
    last_offset = expected.start + int(expected.sizes[:-1].sum())
    damaged = bytearray(frame)
    damaged[last_offset + 40] ^= 1
    found = read_crop(bytes(damaged), start=(0, 0, 0), stop=(64, 90, 64), expected=expected)
    np.testing.assert_array_equal(found, volume[:64, :, :64])
    with pytest.raises(DamagedFrame, match=f"chunk {number} of {number + 1}") as caught:
        read_crop(bytes(damaged), start=(60, 80, 60), stop=(70, 90, 65), expected=expected)
    assert caught.value.offset == last_offset


def test_a_damaged_neighbour_is_harmless_or_found() -> None:
    """Damage anywhere in the chunks' headers: another chunk comes out right, or not at all."""
    volume = _volume((70, 90, 10))
    frame = encode(volume)
    expected = checksums(frame)
    offsets = expected.start + np.cumsum([0, *expected.sizes])
    for offset, size in zip(offsets, expected.sizes[:-1], strict=False):
        for place in range(offset, offset + min(size, 40)):
            damaged = bytearray(frame)
            damaged[place] ^= 0x80
            try:
                found = read_crop(
                    bytes(damaged), start=(64, 64, 0), stop=(70, 90, 10), expected=expected
                )
            except DamagedFrame:
                continue
            np.testing.assert_array_equal(found, volume[64:, 64:])


def test_whole_numbers_stay_exact() -> None:
    for values, dtype in (
        ([-1024, 0, 3071], np.int16),
        ([0, 12, 65000], np.float32),
        ([70000, 70001, 99999], np.float32),
        ([-5, 0, 7], np.float32),
    ):
        voxels = np.array(values, dtype).reshape(1, 1, 3)
        stored = quantise(voxels)
        assert stored.voxels.dtype == np.int16
        np.testing.assert_array_equal(stored.voxels * stored.slope + stored.intercept, voxels)
    assert quantise(voxels).slope == 1.0
    assert quantise(voxels).intercept == 0.0


def test_fractions_keep_half_a_level() -> None:
    voxels = np.random.default_rng(0).gamma(2, 0.3, (5, 40, 30)).astype(np.float32)
    stored = quantise(voxels)
    error = np.abs(stored.voxels * stored.slope + stored.intercept - voxels)
    assert error.max() <= 0.5001 * np.ptp(voxels) / 65535


def test_an_outlier_costs_the_others_nothing() -> None:
    voxels = np.random.default_rng(0).gamma(2, 0.3, (5, 40, 30)).astype(np.float32)
    voxels[0, 0, 0] = 1.7e6
    stored = quantise(voxels)
    physical = stored.voxels * stored.slope + stored.intercept
    spread = np.subtract(*np.percentile(voxels, [99.5, 0.5]))
    assert np.abs(physical - voxels)[1:].max() < spread / 1000
    assert physical[0, 0, 0] > 30 * spread  # still the brightest by far


def test_a_flat_volume() -> None:
    stored = quantise(np.full((2, 3, 4), 0.3, np.float32))
    np.testing.assert_allclose(stored.voxels * stored.slope + stored.intercept, 0.3, rtol=1e-6)


def test_the_source_digest_sees_voxels_and_geometry() -> None:
    scan = Scan(_volume((4, 5, 6)), (3.0, 1.0, 2.0), "CT", origin=Origin(subject="a"))
    other = scan.voxels.copy()
    other[1, 2, 3] += 1
    assert source_digest(scan) == source_digest(
        Scan(scan.voxels, scan.spacing_mm, "CT", origin=Origin(subject="b"))
    )
    assert source_digest(scan) != source_digest(Scan(other, scan.spacing_mm, "CT"))
    assert source_digest(scan) != source_digest(Scan(scan.voxels, (3.0, 1.0, 2.1), "CT"))
    turned = Scan(scan.voxels.reshape(6, 5, 4), scan.spacing_mm, "CT")
    assert source_digest(scan) != source_digest(turned)


@pytest.mark.real
def test_real_mr_survives_quantisation(real_data: Path) -> None:
    """Float scans with maxima from 112 to 1.7e6; the error is relative to p00.5..p99.5."""
    brightest = 0.0
    for path in sorted((real_data / "hippocampus/imagesTr").glob("*.nii.gz"))[::4]:
        voxels = read_scan(path, modality="MR").voxels
        stored = quantise(voxels)
        spread = np.subtract(*np.percentile(voxels, [99.5, 0.5]))
        error = np.abs(stored.voxels * stored.slope + stored.intercept - voxels)
        assert error.max() < spread / 1000
        brightest = max(brightest, float(voxels.max()))
    assert brightest > 1e5
