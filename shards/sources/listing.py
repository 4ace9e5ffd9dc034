"""The files of ``data_root``, a folder or a URL, by relative name; the order is that of names."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shards.storage.places import FileInfo, MissingFile, Place


class Listing:
    """What lies below a place; a URL is listed once, a local folder only where it is asked for."""

    def __init__(self, root: str | Path) -> None:
        """Nothing is listed yet."""
        self.root = str(root)
        self.place = Place(root)
        self._all: dict[str, FileInfo] | None = None

    def info(self, name: str) -> FileInfo | None:
        """Of a file; None if there is none of that name."""
        if not self.place.is_local:
            return self._files().get(name)
        path = self.place.path / name  # a cohort may name a file elsewhere
        if not path.is_file():
            return None
        state = path.stat()
        return FileInfo(name, state.st_size, str(state.st_mtime_ns))

    def below(self, folder: str) -> list[FileInfo]:
        """All files below a folder, by name; none if there is no such folder."""
        prefix = "" if folder in ("", ".") else folder.rstrip("/") + "/"
        if not self.place.is_local:
            return [one for name, one in self._files().items() if name.startswith(prefix)]
        try:
            found = Place(self.place.path / folder).files()
        except MissingFile:
            return []
        return [one._replace(name=prefix + one.name) for one in found]

    def head(self, name: str, size: int) -> bytes:
        """The first bytes of a file."""
        if not self.place.is_local:
            return self.place.read_ranges(name, [(0, size)])[0]
        with (self.place.path / name).open("rb") as file:
            return file.read(size)

    def matching(self, pattern: str) -> list[FileInfo]:
        """Files whose names fit a pattern: ``*`` and ``?`` within a folder, ``**`` any folders.

        Raises:
            ValueError: The pattern leaves the place.
        """
        parts = pattern.split("/")
        if not all(part not in ("", ".", "..") for part in parts):
            raise ValueError("a pattern below data_root, such as images/*.nii.gz")
        plain = next((n for n, part in enumerate(parts) if re.search(r"[*?[]", part)), len(parts))
        if plain == len(parts):
            one = self.info(pattern)
            return [] if one is None else [one]
        wanted = _pattern(parts)
        return [one for one in self.below("/".join(parts[:plain])) if wanted.fullmatch(one.name)]

    def _files(self) -> dict[str, FileInfo]:
        if self._all is None:
            self._all = {one.name: one for one in self.place.files()}
        return self._all


def _pattern(parts: Sequence[str]) -> re.Pattern[str]:
    found = ""
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if part == "**":
            found += ".*" if is_last else "(?:[^/]+/)*"
        else:
            found += re.sub(r"\*+|\?|\[!?[^\]]+\]|.", _translated, part) + ("" if is_last else "/")
    return re.compile(found, re.DOTALL)


def _translated(token: re.Match[str]) -> str:
    """A piece of a pattern as a regular expression within one folder."""
    text = token[0]
    if text[0] == "*":
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if len(text) > 1:
        inside = text[1:-1].replace("\\", r"\\")
        return f"(?!/)[{'^' + inside[1:] if inside[0] == '!' else inside}]"
    return re.escape(text)


@contextmanager
def local_copies(root: str, names: Sequence[str]) -> Iterator[Path]:
    """A folder of this machine where ``names`` lie below: the root, or for a URL copies of them.

    Raises:
        PlaceError: One cannot be fetched.
    """
    place = Place(root)
    if place.is_local:
        yield place.path
        return
    folder = Path(tempfile.mkdtemp(prefix="scanfm-"))
    try:
        place.fetch(names, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
