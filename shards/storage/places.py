"""Folders: of this machine, or behind any URL that fsspec knows (``s3://``, ``gs://``, ``https://``).

Credentials and endpoints come from the environment, as each library reads them
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``,
``FSSPEC_S3_ANON=true``); none belongs into a recipe.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from shards.files import write_bytes
from shards.storage.connections import connection, is_web
from shards.storage.errors import (
    MissingFile,
    PlaceError,
    is_beyond_end,
    place_errors,
    retried,
    without_credentials,
)

__all__ = ["FileInfo", "MissingFile", "Place", "PlaceError"]

PIECE_BYTES = 8 << 20
TRANSFERS = 8
"""Files on their way at a time."""
_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "Last-Modified", "updated")

T = TypeVar("T")


class FileInfo(NamedTuple):
    """A file of a place.

    Attributes:
        name: Relative to the place, with ``/`` between folders.
        size: In bytes; -1 where a server does not tell.
        stamp: Changes when the file does (time, ETag); empty where a server does not tell.
    """

    name: str
    size: int
    stamp: str


class Place:
    """A folder, and the files below it by relative name.

    It can be pickled and used after a fork: every process makes its own connections. All methods
    raise :class:`PlaceError`, and :class:`MissingFile` where a file that they need is not there;
    a lost connection is tried again first.
    """

    def __init__(self, where: str | Path) -> None:
        """Nothing is opened yet.

        Raises:
            PlaceError: A URL that cannot name a folder.
        """
        text = os.fspath(where)
        if text.startswith(("file://", "local://")):
            text = unquote(urlsplit(text).path)
        self._url: str | None = None
        self._path: Path | None = None
        if "://" not in text:
            self._path = Path(text)
            return
        if urlsplit(text).query:
            raise PlaceError(
                f"{without_credentials(text)}: the URL of a folder has no ?...; put what it says"
                " into the environment"
            )
        self._url = text.rstrip("/")

    def __str__(self) -> str:
        return str(self._path) if self._url is None else without_credentials(self._url)

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self._path is not None

    @property
    def path(self) -> Path:
        """Of a local place."""
        assert self._path is not None, f"{self} is not a folder of this machine"
        return self._path

    def child(self, name: str) -> "Place":
        """A folder below."""
        if self._url is None:
            return Place(self.path / _checked(name))
        return Place(f"{self._url}/{_checked(name)}")

    def files(self) -> list[FileInfo]:
        """Every file below, sorted by name; a web server must show folders as pages of links.

        In an object store a folder without files is one that was never written: an empty list.
        """
        found = self._local_files() if self._url is None else self._remote_files()
        return sorted(found)

    def info(self, name: str) -> FileInfo:
        """Of one file."""
        if self._url is None:
            with self._errors(name):
                state = self._local(name).stat()
            return FileInfo(name, state.st_size, str(state.st_mtime_ns))
        return _file_info(name, self._ask(name, lambda files, path: files.info(path)))

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        if self._url is None:
            return self._local(name).is_file()
        try:
            found = self._ask(name, lambda files, path: files.info(path))
        except MissingFile:
            return False
        return bool(found.get("type") == "file")

    def read_bytes(self, name: str) -> bytes:
        """A small file, whole."""
        if self._url is None:
            with self._errors(name):
                return self._local(name).read_bytes()
        content: bytes = self._ask(name, lambda files, path: files.cat_file(path))
        return content

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """[first, last) bytes of a file, all at once; what lies behind its end is left out.

        A server without ranges answers with more bytes than were asked for.
        """
        if self._url is None:
            with self._errors(name), self._local(name).open("rb") as file:
                return [_read_range(file, first, last) for first, last in ranges]

        def read(files: Any, path: str) -> list[bytes]:
            found = files.cat_ranges(
                [path] * len(ranges),
                [first for first, _ in ranges],
                [last for _, last in ranges],
                on_error="return",
            )
            return [_unless_failed(each) for each in found]

        return self._ask(name, read)

    def open(self, name: str) -> IO[bytes]:
        """A file to be read; where it fails between two reads, the library's own error comes."""
        if self._url is None:
            with self._errors(name):
                return self._local(name).open("rb")
        file: IO[bytes] = self._ask(name, lambda files, path: files.open(path, "rb"))
        return file

    def stream(self, name: str) -> Iterator[bytes]:
        """A file from its first byte to its last, in pieces; a failure is not tried again."""
        with self._errors(name):
            file = self._stream(name)
        with file:
            while True:
                with self._errors(name):
                    piece = file.read(PIECE_BYTES)
                if not piece:
                    return
                yield piece

    def fetch(self, names: Sequence[str], to: Path) -> list[Path]:
        """Files of this machine that hold ``names``, in their order.

        Args:
            names: Files of this place.
            to: Folder for copies, with the same relative names. A local place needs none: there
                the files themselves are returned.
        """
        if self._url is None:
            return [self._local(name) for name in names]
        with ThreadPoolExecutor(TRANSFERS) as pool:
            return list(pool.map(lambda name: self._fetch(name, to), names))

    def upload(self, local: Path, name: str) -> None:
        """Copy a file of this machine here; nobody ever sees a part of it."""
        if self._url is None:
            with self._errors(name):
                _copy_whole(local, self._local(name))
            return
        self._refuse_web(name)
        self._ask(name, lambda files, path: files.put_file(str(local), path))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file; nobody ever sees a part of it."""
        if self._url is None:
            with self._errors(name):
                target = self._local(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(target, content)
            return
        self._refuse_web(name)
        self._ask(name, lambda files, path: files.pipe_file(path, content))

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there stays so."""
        if self._url is None:
            with self._errors(name):
                self._local(name).unlink(missing_ok=True)
            return
        self._refuse_web(name)
        with suppress(MissingFile):
            self._ask(name, lambda files, path: files.rm_file(path))

    def _local(self, name: str) -> Path:
        return self.path / _checked(name)

    def _errors(self, name: str) -> Any:
        return place_errors(f"{self}/{name}" if name else str(self))

    def _ask(self, name: str, question: Callable[[Any, str], T]) -> T:
        """``question(filesystem, path)``, with retries."""

        def once() -> T:
            with self._errors(name):
                files, root = self._filesystem()
                return question(files, self._join(root, name) if name else root)

        return retried(once)

    def _filesystem(self) -> tuple[Any, str]:
        assert self._url is not None
        return connection(self._url)

    def _join(self, root: str, name: str) -> str:
        name = _checked(name)
        return f"{root.rstrip('/')}/{quote(name) if self._is_web else name}"

    @property
    def _is_web(self) -> bool:
        return self._url is not None and is_web(self._url)

    def _refuse_web(self, name: str) -> None:
        if self._is_web:
            raise PlaceError(
                f"{self}/{name}: a web server can only be read; write to a local folder, s3:// or"
                " gs://"
            )

    def _stream(self, name: str) -> IO[bytes]:
        if self._url is None:
            return self._local(name).open("rb")
        files, root = self._filesystem()
        # Without blocks a web file is one answer, which needs no server that knows ranges.
        block = 0 if self._is_web else PIECE_BYTES
        file: IO[bytes] = files.open(self._join(root, name), "rb", block_size=block)
        return file

    def _fetch(self, name: str, to: Path) -> Path:
        target = to / _checked(name)
        beside = target.with_name(f".{target.name}.part")

        def once() -> None:
            with beside.open("wb") as file:
                for piece in self.stream(name):
                    file.write(piece)

        with place_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                retried(once)
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)
        return target

    def _local_files(self) -> Iterator[FileInfo]:
        with self._errors(""):
            if not self.path.is_dir():
                raise MissingFile(f"{self}: no such folder")
            for path in self.path.rglob("*"):
                if path.is_file():
                    state = path.stat()
                    name = path.relative_to(self.path).as_posix()
                    yield FileInfo(name, state.st_size, str(state.st_mtime_ns))

    def _remote_files(self) -> Iterable[FileInfo]:
        found: dict[str, Any] = self._ask("", lambda files, root: _find(files, root))
        _, root = self._filesystem()
        infos = [
            _file_info(self._relative(path, root), about)
            for path, about in found.items()
            # Not the empty objects that stand for folders, nor the links that sort a page.
            if not path.endswith("/") and not (self._is_web and "?" in path)
        ]
        unknown = [one.name for one in infos if one.size < 0]
        if not unknown:
            return infos
        with ThreadPoolExecutor(TRANSFERS) as pool:  # an index page has names only
            return list(pool.map(self.info, [one.name for one in infos]))

    def _relative(self, path: str, root: str) -> str:
        name = path.removeprefix(root.rstrip("/")).lstrip("/")
        if not name:
            raise PlaceError(f"{self}: a file, not a folder")
        return _checked(unquote(name) if self._is_web else name)


def _checked(name: str) -> str:
    """A relative name that stays below its folder, also where a server made it up."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\0" in name:
        raise PlaceError(f"{name!r} is not the relative name of a file below a folder")
    return name


def _find(files: Any, root: str) -> dict[str, Any]:
    found: dict[str, Any] = files.find(root, detail=True)
    return found


def _file_info(name: str, about: Mapping[str, Any]) -> FileInfo:
    stamp = next((str(about[key]) for key in _STAMPS if about.get(key)), "")
    size = about.get("size")
    return FileInfo(name, -1 if size is None else int(size), stamp)


def _read_range(file: IO[bytes], first: int, last: int) -> bytes:
    file.seek(first)
    return file.read(last - first)


def _unless_failed(found: Any) -> bytes:
    if isinstance(found, Exception):
        if is_beyond_end(found):
            return b""
        raise found
    content: bytes = found
    return content


def _copy_whole(source: Path, target: Path) -> None:
    """Write beside, sync, then take the name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.tmp")
    try:
        with source.open("rb") as read, beside.open("wb") as file:
            shutil.copyfileobj(read, file, PIECE_BYTES)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
