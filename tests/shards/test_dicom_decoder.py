"""Compressed pixels are decoded apart: a decoder that ends or hangs costs one scan."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEGLSLossless

from shards.dicom import decoder as dicom_decoder
from shards.dicom.decoder import Helper, decoded_apart
from shards.scan import ScanError

Write = Callable[..., None]
PIXELS = np.arange(17 * 11).reshape(17, 11)


@pytest.fixture
def path(tmp_path: Path, slice_file: Write) -> Path:
    slice_file(tmp_path / "a", PIXELS, position=(0, 0, 0), changes={}, syntax=JPEGLSLossless)
    return tmp_path / "a"


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Helper]]:
    """No process is there at first, and none is left behind."""
    found: list[Helper] = []
    monkeypatch.setattr(dicom_decoder, "_idle", found)
    yield found
    dicom_decoder._end_all()


def read(path: Path) -> np.ndarray:
    (found,) = decoded_apart(path, indices=[0])
    return found


def test_one_process_serves_for_all(path: Path, idle: list[Helper]) -> None:
    np.testing.assert_array_equal(read(path), PIXELS)
    process = idle[0].process.pid
    np.testing.assert_array_equal(read(path), PIXELS)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ScanError, match="truncated, damaged or absent"):
        read(path)
    path.write_bytes(content)
    np.testing.assert_array_equal(read(path), PIXELS)
    assert [one.process.pid for one in idle] == [process]


def test_a_decoder_that_ends_or_hangs(
    path: Path, idle: list[Helper], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(path)
    helper = idle[0]
    os.kill(helper.process.pid, signal.SIGSTOP)
    with monkeypatch.context() as hurry:
        hurry.setattr(dicom_decoder, "TIMEOUT_S", 0.2)
        with pytest.raises(ScanError, match="the decoder stopped or took too long"):
            read(path)
    assert helper.process.poll() is not None
    frames = decoded_apart(path, indices=[0, 0])
    next(frames)
    with monkeypatch.context() as death:
        death.setattr(dicom_decoder, "_receive", _killing)
        with pytest.raises(ScanError, match="the decoder stopped or took too long"):
            list(frames)
    np.testing.assert_array_equal(read(path), PIXELS)


def _killing(helper: Helper) -> bytes:
    """What the reader sees of a decoder that a C++ exception has ended."""
    helper.process.kill()
    helper.process.wait()
    while True:
        helper.connection.recv_bytes()


def test_a_reader_that_stops_early(path: Path, idle: list[Helper]) -> None:
    frames = decoded_apart(path, indices=[0, 0, 0])
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert not idle
    np.testing.assert_array_equal(read(path), PIXELS)
