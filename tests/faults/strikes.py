"""What can happen to a job: how it is killed, told to stop, starved of disk, cut off or damaged."""

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.board import Board
from tests.faults.processes import signal_all

DISK_MB = 64
_BALLAST = ".ballast"
_FEW_BYTES = 20_000
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14

Act = Callable[[Board], None]


def kill(board: Board) -> None:
    """All at once, as by the machine's end."""
    signal_all(board, signal.SIGKILL)


def kill_in_a_write(most_bytes: int) -> Act:
    """The system kills the process while it writes: no file grows past ``most_bytes``."""

    def act(board: Board) -> None:
        del board
        _libc().signal(int(signal.SIGXFSZ), None)  # Python's own takes no call from a thread
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return act


def tell(number: signal.Signals, *, only: int | None) -> Act:
    """A signal to every rank, or to one."""

    def act(board: Board) -> None:
        if only is None:
            signal_all(board, number)
        elif pid := board.pids[only]:
            os.kill(pid, number)

    return act


def fill(place: Path, *, spare_bytes: int) -> Act:
    """Let the disk have so many bytes left; where it is no disk of ours, limit every file."""

    def act(board: Board) -> None:
        if place.is_mount():
            _fill(place, spare_bytes)
            return
        for pid in filter(None, board.pids):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (_FEW_BYTES, _FEW_BYTES))

    return act


def _fill(place: Path, spare_bytes: int) -> None:
    size = 0
    with (place / _BALLAST).open("wb") as file:
        for piece in (1 << 20, 1 << 16, 1 << 12):
            while True:
                try:
                    os.posix_fallocate(file.fileno(), size, piece)
                except OSError:
                    break
                size += piece
        file.truncate(max(0, size - spare_bytes))


def free(place: Path) -> None:
    """There is room again."""
    (place / _BALLAST).unlink(missing_ok=True)


def take_away(path: Path) -> Act:
    """A file that the job reads is gone."""

    def act(board: Board) -> None:
        del board
        if path.exists():
            path.rename(_away(path))

    return act


def put_back(path: Path) -> None:
    """It is there again, as it was."""
    if _away(path).exists():
        _away(path).rename(path)


def _away(path: Path) -> Path:
    return path.with_name(f"{path.name}.away")


@contextmanager
def own_disk(place: Path) -> Iterator[None]:
    """A small file system at ``place`` that only this process and its children see.

    Where the system allows none it is a folder, emptied before and after.
    """
    _emptied(place)
    mounted = _unshared() and _libc().mount(b"tmpfs", bytes(place), b"tmpfs", 0, _OPTIONS) == 0
    try:
        yield
    finally:
        if mounted:
            _libc().umount2(bytes(place), 2)
        else:
            _emptied(place)


_OPTIONS = f"size={DISK_MB}m".encode()


def _emptied(place: Path) -> None:
    import shutil

    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unshared() -> bool:
    """Give this process mounts of its own; as a user of its own where it may not do that."""
    user, group = os.getuid(), os.getgid()
    if _libc().unshare(_NEW_MOUNTS) != 0:
        if _libc().unshare(_NEW_USER | _NEW_MOUNTS) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return bool(_libc().mount(None, b"/", None, _PRIVATE | _RECURSIVE, None) == 0)
