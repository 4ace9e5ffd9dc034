"""What can go wrong with a file behind a URL, in one line, and trying again where that may help."""

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

RETRY_WAITS_S = (0.5, 2.0, 6.0)
"""Pauses between tries of what failed for a reason that may pass."""
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
TRANSIENT_ERRNO = frozenset({errno.EBUSY, errno.EAGAIN, getattr(errno, "EREMOTEIO", errno.EIO)})
RANGE_STATUS = 416
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"\?[^\s'\",)]*")

T = TypeVar("T")


class PlaceError(ValueError, OSError):
    """A folder or file that cannot be read or written; the message is meant for a person."""


class MissingFile(PlaceError, FileNotFoundError):
    """There is no file of that name."""


class Interrupted(PlaceError):
    """A failure that may pass: a lost connection, a timeout, a server that is overloaded."""


def without_credentials(text: str) -> str:
    """URLs in ``text`` without user, password and signed query."""
    return _QUERY.sub("", _USERINFO.sub("", text))


@contextmanager
def place_errors(where: str) -> Iterator[None]:
    """Turn what any of the libraries raises about the file ``where`` into a :class:`PlaceError`."""
    try:
        yield
    except PlaceError:
        raise
    except Exception as error:  # aiohttp, botocore, google and the system each have their own
        raise _translated(error, where) from None


def retried(action: Callable[[], T]) -> T:
    """``action()``, again after a pause while it ends in :class:`Interrupted`."""
    for wait_s in RETRY_WAITS_S:
        try:
            return action()
        except Interrupted:
            time.sleep(wait_s)
    try:
        return action()
    except Interrupted as error:
        tries = len(RETRY_WAITS_S) + 1
        raise Interrupted(f"{error}; gave up after {tries} tries") from None


def is_beyond_end(error: Exception) -> bool:
    """Whether a server says that a range begins behind the end of the file."""
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code == "InvalidRange" or _status(error) == RANGE_STATUS


def _translated(error: Exception, where: str) -> PlaceError:
    error = _cause(error)
    status, name = _status(error), type(error).__name__
    said = without_credentials(" ".join(str(error).split())) or name
    if isinstance(error, ImportError):
        return PlaceError(f"{where}: {said}; pip install 'scanfm[remote]'")
    if isinstance(error, FileNotFoundError) or status == 404:
        return MissingFile(f"{where}: not there")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in name:
        return PlaceError(
            f"{where}: no permission ({said}); check the credentials in the environment"
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return PlaceError(f"{where}: the disk is full; free space and run again")
    if _is_transient(error):
        return Interrupted(f"{where}: cannot be reached ({said}); check the network and the URL")
    return PlaceError(f"{where}: cannot be used ({said})")


def _cause(error: Exception) -> Exception:
    """The reason: fsspec's HTTP calls every failure a missing file, and keeps it as the cause."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        return cause if _library(cause) == "aiohttp" else error
    return error


def _library(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _status(error: Exception) -> int | None:
    """Of a server's answer; aiohttp says ``status``, gcsfs ``code``."""
    found = getattr(error, "status", getattr(error, "code", None))
    return found if isinstance(found, int) else None


def _is_transient(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return status in TRANSIENT_STATUS
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if _library(error) in ("aiohttp", "botocore", "aiobotocore"):
        name = type(error).__name__
        return any(part in name for part in ("Connect", "Timeout", "Payload", "HTTPClient", "OS"))
    return getattr(error, "errno", None) in TRANSIENT_ERRNO
