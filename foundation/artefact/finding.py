"""Where a backbone is: a folder, an archive, ``hf://org/name@revision``, a URL, a name.

demo                                   a name of the index
runs/demo_mae/backbone                 a folder
backbone.tar.gz, backbone.zip          an archive of the folder
hf://org/name, hf://org/name@v1        the Hugging Face hub, at a branch, tag or commit
s3://bucket/backbone, https://...tar   whatever fsspec opens: a folder or an archive
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from foundation.artefact.archive import is_archive, unpack
from foundation.artefact.cache import draft, kept, remember, remembered
from foundation.artefact.hub import HUB, download
from foundation.artefact.index import known_backbones, names_in_words
from foundation.artefact.layout import SUMS, BackboneError
from foundation.artefact.remote import fetch
from shards.files import sha256_of
from shards.storage.errors import without_credentials

# A Path has taken one of the two slashes away.
_URL = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):/{1,3}(?=[^/])")
_FILE = "file"


class Found(NamedTuple):
    """A folder on this machine to load from."""

    folder: Path
    came: str
    """how it got here, in words"""
    digest: str | None = None
    """that it must have; None: any"""


def find_backbone(where: str | Path, *, say: Callable[[str], None]) -> Found:
    """Bring a backbone to this machine, if it is not here yet; its content is not looked at.

    A folder that holds a backbone comes before a name of the index.

    Args:
        where: A place or a name.
        say: Told what a person should know of the way.

    Raises:
        BackboneError: There is none, or it cannot be had.
    """
    text = str(where)
    url = as_url(text)
    if url is not None:
        folder = download(url) if url.startswith(HUB) else fetch(url, say=say)
        return Found(folder, f"from {without_credentials(url)}")
    path = Path(where)
    if (path / SUMS).is_file():
        return Found(path, "a folder")
    if path.is_file():
        return _unpacked(path)
    known = known_backbones().get(text) if text == path.name else None
    if known is not None:
        entry = known.entry
        is_path = as_url(entry.where) is None
        found = find_backbone(known.beside / entry.where if is_path else entry.where, say=say)
        return found._replace(came=f"{text} of the index, {found.came}", digest=entry.digest)
    if not path.exists() and text == path.name:
        hint = names_in_words(text)
        raise BackboneError(f"{text}: is no folder, and no name of the index; {hint}")
    return Found(path, "a folder")


def as_url(text: str) -> str | None:
    """With both its slashes, or None for a path."""
    found = _URL.match(text)
    if found is None:
        return None
    scheme, rest = found[1].lower(), text[found.end() :]
    return f"{scheme}:///{rest}" if scheme == _FILE else f"{scheme}://{rest}"


def _unpacked(archive: Path) -> Found:
    if not is_archive(archive.name):
        raise BackboneError(
            f"{archive}: is no folder and no archive (.tar, .zip); a backbone is the folder "
            f"backbone/ that a pretraining writes"
        )
    what = {"archive": sha256_of(archive)}
    folder = remembered(what)
    if folder is None:
        with draft() as beside:
            unpack(archive, beside)
            folder = kept(beside, where=str(archive))
        remember(what, folder)
    return Found(folder, f"unpacked from {archive}")
