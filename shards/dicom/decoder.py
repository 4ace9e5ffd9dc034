"""Compressed pixels, decoded in a process of its own.

The decoders are C and C++: on damaged bytes they may end the process without an exception (gdcm
does, on some JPEG), never come back, or ask for all memory. Here that costs one scan. The process
is started at the first compressed file and serves until this one ends.
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.scan import ScanError

TIMEOUT_S = 60.0  # for one frame, the start of the process included
MEMORY_BYTES = 8 * 2**30
DONE, FAILED = "done", "failed"
NO_ANSWER = "pixels that cannot be decoded: the decoder stopped or took too long"


class Helper(NamedTuple):
    """A decoding process that waits for work, and the process that started it."""

    process: "subprocess.Popen[bytes]"
    connection: "Connection[bytes, bytes]"
    owner: int


_idle: list[Helper] = []


def decoded_apart(path: Path, *, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Stored values of some frames of a compressed file, in this order, one at a time.

    Raises:
        ScanError: The frames cannot be decoded, or the decoder ended or hung over them.
    """
    helper = _borrow()
    is_idle = False
    try:
        helper.connection.send_bytes(json.dumps([str(path), list(indices)]).encode())
        while (head := json.loads(_receive(helper)))[0] not in (DONE, FAILED):
            yield np.frombuffer(_receive(helper), head[0]).reshape(head[1])
        is_idle = True
        if head[0] == FAILED:
            raise ScanError(head[1])
    except (EOFError, OSError):
        raise ScanError(NO_ANSWER) from None
    finally:
        if is_idle:
            _idle.append(helper)
        else:
            _end(helper)


def _receive(helper: Helper) -> bytes:
    if not helper.connection.poll(TIMEOUT_S):
        raise EOFError
    return helper.connection.recv_bytes()


def _borrow() -> Helper:
    """An idle process of this one; those of the process that forked this one are not ours."""
    while _idle:
        helper = _idle.pop()
        if helper.owner == os.getpid() and helper.process.poll() is None:
            return helper
    mine, its = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "shards.dicom.decoder", str(its.fileno())],
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # C libraries complain there about each damaged file
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    its.close()
    return Helper(process, mine, os.getpid())


def _end(helper: Helper) -> None:
    helper.connection.close()
    helper.process.kill()
    helper.process.wait()


@atexit.register
def _end_all() -> None:
    for helper in _idle:
        if helper.owner == os.getpid():
            _end(helper)


def main(connection: "Connection[bytes, bytes]") -> None:
    """Serve until the other side is gone."""
    import resource

    from shards.dicom.tree import frames_here, quiet

    with suppress(OSError, ValueError):  # not every system limits address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with quiet():
        while True:
            try:
                path, indices = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            try:
                for frame in frames_here(Path(path), indices=indices):
                    connection.send_bytes(json.dumps([frame.dtype.str, frame.shape]).encode())
                    connection.send_bytes(np.ascontiguousarray(frame).tobytes())
                connection.send_bytes(json.dumps([DONE]).encode())
            except ScanError as error:
                connection.send_bytes(json.dumps([FAILED, str(error)]).encode())


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
