"""A backbone behind a URL that fsspec opens, a folder or an archive, through the cache."""

from collections.abc import Callable
from pathlib import Path

from foundation.artefact.archive import is_archive, unpack
from foundation.artefact.cache import draft, held, kept, remember, remembered
from foundation.artefact.layout import SUMS, BackboneError, odd_names
from foundation.artefact.reading import MOST_SUMS_BYTES, digest_of, listed_sums
from shards.storage.errors import Interrupted, MissingFile, retried
from shards.storage.places import Place, PlaceError


def fetch(url: str, *, say: Callable[[str], None]) -> Path:
    """The folder of a backbone on this machine; only what is not here yet is sent.

    Where the URL cannot be reached now, what it held when it last could is taken, and ``say`` is
    told.

    Raises:
        BackboneError: There is none, it is damaged, or it cannot be reached.
    """
    try:
        return _fetch_archive(url) if is_archive(url) else _fetch_folder(url)
    except Interrupted as error:
        before = remembered({"url": url})
        if before is None:
            raise BackboneError(str(error)) from None
        say(f"{error}; takes the copy of before, digest {before.name[:16]}")
        return before
    except PlaceError as error:
        raise BackboneError(str(error)) from None


def _fetch_folder(url: str) -> Path:
    place = Place(url)
    try:
        sums = retried(lambda: _start_of(place, SUMS))
    except MissingFile:
        raise BackboneError(f"{place}: has no {SUMS}, so no backbone is there") from None
    identity = digest_of(sums)
    folder = held(identity)
    if folder is None:
        listed = listed_sums(sums)
        if odd_names(listed):
            raise BackboneError(f"{place}/{SUMS}: does not list the files of a backbone")
        with draft() as beside:
            place.fetch(sorted(listed), beside)
            (beside / SUMS).write_bytes(sums)
            folder = kept(beside, where=str(place))
    remember({"url": url}, folder)
    return folder


def _fetch_archive(url: str) -> Path:
    above, _, name = url.rpartition("/")
    place = Place(above)
    about = place.info(name)
    what = {"url": url, "size": about.size, "stamp": about.stamp}
    # Without a stamp nobody can tell whether it is still the same file.
    folder = remembered(what) if about.stamp else None
    if folder is None:
        with draft() as beside, draft() as content:
            unpack(place.fetch([name], beside)[0], content)
            folder = kept(content, where=f"{place}/{name}")
        remember(what, folder)
    remember({"url": url}, folder)
    return folder


def _start_of(place: Place, name: str) -> bytes:
    """A small file; of one that is not small, too little to be whole."""
    content = b""
    for piece in place.stream(name):
        content += piece
        if len(content) > MOST_SUMS_BYTES:
            break
    return content[:MOST_SUMS_BYTES]
