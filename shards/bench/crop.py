"""One crop out of a large scan: scanfm's shards against what else people read crops from.

All files are in the page cache, every contender cuts the same windows, and takes turns.
"""

import io
import itertools
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shards.bench.timing import Line, Spread, one_core, quietly, spread, take_turns
from shards.bench.volume import Sizes, build_shards, ct_like, write_scans
from shards.codec import decode_crop, verify_crop
from shards.index import VOLUME, Sample, sequence_member
from shards.streaming.reader import ShardReader

PART = "crop"
Window = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First voxel, and one past the last, (d, h, w)."""
Contenders = Mapping[str, Callable[[Window], Any]]


def crop_lines(folder: Path, sizes: Sizes) -> list[Line]:
    """Milliseconds a crop; ``ratio`` is how much longer the others take, or we than the codec."""
    (scan,) = write_scans(folder / "nifti", sizes, count=1)
    build_shards(folder / "nifti", folder / "shards")
    reader = ShardReader(folder / "shards")
    frame = _frame(folder / "shards", reader.samples[0])
    quick: Contenders = {
        "scanfm": _ours(reader, sizes),
        "of this: verify": _verify(frame, reader.samples[0]),
        "of this: decode": _decode(frame),
        "bare blosc2, in memory": _bare(bytes(frame)),
        "bare blosc2, mapped tar": _bare(frame),
    }
    slow: Contenders = {
        "MONAI LoadImage + SpatialCrop": _monai(scan),
        "WebDataset .npz (savez_compressed)": _webdataset(folder / "packed.tar", sizes, True),
        "WebDataset .npz (savez)": _webdataset(folder / "plain.tar", sizes, False),
    }
    _check_equal({**quick, **slow}, next(_windows(sizes)))
    with one_core():
        times = _measure(quick, slow, sizes=sizes)
    return _lines({name: spread(taken) for name, taken in times.items()})


def _measure(quick: Contenders, slow: Contenders, *, sizes: Sizes) -> dict[str, list[float]]:
    """Milliseconds; the slow ones cut one window where the others cut ``crops_a_repeat``."""
    windows = _windows(sizes)
    times: dict[str, list[float]] = {name: [] for name in (*quick, *slow)}
    for _ in range(sizes.slow_repeats):
        for contenders, count in ((slow, 1), (quick, sizes.crops_a_repeat)):
            taken = take_turns(contenders, itertools.islice(windows, count))
            for name, seconds in taken.items():
                times[name] += [1000 * each for each in seconds]
    return times


def _lines(found: dict[str, Spread]) -> list[Line]:
    ours = found["scanfm"].median
    limits = {
        "MONAI LoadImage + SpatialCrop": 100.0,
        "WebDataset .npz (savez_compressed)": 20.0,
    }
    lines = []
    for name, each in found.items():
        if name.startswith("bare"):
            line = Line(PART, name, each, "ms", ours / each.median, at_most=1.5)
        elif name in limits:
            line = Line(PART, name, each, "ms", each.median / ours, at_least=limits[name])
        else:
            line = Line(PART, name, each, "ms", each.median / ours)
        lines.append(line)
    return lines


def _windows(sizes: Sizes) -> Iterator[Window]:
    """Random places, the same in every run."""
    random = np.random.default_rng(20)
    while True:
        start = [
            int(random.integers(0, length - edge + 1))
            for length, edge in zip(sizes.shape, sizes.crop, strict=True)
        ]
        d, h, w = start
        yield (d, h, w), (d + sizes.crop[0], h + sizes.crop[1], w + sizes.crop[2])


def _frame(folder: Path, sample: Sample) -> memoryview:
    """The compressed volume inside the mapped tar, past the reader."""
    member = sample.members[sequence_member(VOLUME)]
    with (folder / sample.shard).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(mapped)[member.offset : member.offset + member.size]


def _ours(reader: ShardReader, sizes: Sizes) -> Callable[[Window], np.ndarray]:
    return lambda window: reader.read_crop(0, start=window[0], shape=sizes.crop)[0]


def _verify(frame: memoryview, sample: Sample) -> Callable[[Window], None]:
    expected = sample.checksums[sequence_member(VOLUME)]
    return lambda window: verify_crop(frame, start=window[0], stop=window[1], expected=expected)


def _decode(frame: memoryview) -> Callable[[Window], np.ndarray]:
    return lambda window: decode_crop(frame, start=window[0], stop=window[1])


def _bare(frame: bytes | memoryview) -> Callable[[Window], np.ndarray]:
    """The codec alone: nothing verified."""
    import blosc2

    def cut(window: Window) -> np.ndarray:
        array = blosc2.ndarray_from_cframe(frame, copy=False)
        return np.asarray(array[_slices(window)])

    return cut


def _monai(path: Path) -> Callable[[Window], np.ndarray]:
    """(D, H, W): the file keeps (W, H, D) in RAS."""
    with quietly():
        from monai.transforms import LoadImage, SpatialCrop

        load = LoadImage(image_only=True, ensure_channel_first=True)

    def cut(window: Window) -> np.ndarray:
        image = load(path)
        lengths = image.shape[:0:-1]
        # Our W and H run against the file's.
        first = [window[0][0], *(lengths[axis] - window[1][axis] for axis in (1, 2))]
        last = [window[1][0], *(lengths[axis] - window[0][axis] for axis in (1, 2))]
        crop = SpatialCrop(roi_start=first[::-1], roi_end=last[::-1])(image)
        return np.asarray(crop[0].numpy().transpose(2, 1, 0)[:, ::-1, ::-1])

    return cut


def _webdataset(path: Path, sizes: Sizes, is_compressed: bool) -> Callable[[Window], np.ndarray]:
    import webdataset

    volume = ct_like(sizes.shape, seed=0)
    with path.open("wb") as file, webdataset.TarWriter(file) as tar:
        tar.write({"__key__": "scan", "npz": _npz(volume, is_compressed)})

    def cut(window: Window) -> np.ndarray:
        samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        sample: Any = next(iter(samples.decode()))
        return np.asarray(sample["npz"]["volume"][_slices(window)])

    return cut


def _npz(volume: np.ndarray, is_compressed: bool) -> bytes:
    content = io.BytesIO()
    (np.savez_compressed if is_compressed else np.savez)(content, volume=volume)
    return content.getvalue()


def _slices(window: Window) -> tuple[slice, ...]:
    return tuple(slice(first, last) for first, last in zip(*window, strict=True))


def _check_equal(contenders: Contenders, window: Window) -> None:
    """A contender that cut something else would win for nothing."""
    crops = {name: cut(window) for name, cut in contenders.items()}
    for name, crop in crops.items():
        assert crop is None or np.array_equal(crop, crops["scanfm"]), name
