"""Publish a backbone: to the Hugging Face hub, a folder, an archive, or a URL that fsspec writes.

Only what loads is published, and ``SHA256SUMS`` comes last: half a backbone is none.
"""

import gzip
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml

from foundation.artefact.archive import is_archive
from foundation.artefact.benchmark import Scored
from foundation.artefact.finding import as_url
from foundation.artefact.hub import HUB, remote_sums, upload
from foundation.artefact.layout import CARD, RECIPE, SUMS, BackboneError
from foundation.artefact.reading import digest_of, listed_sums, read_artefact, verified_sums
from foundation.artefact.saving import seal
from foundation.running.card import model_card
from foundation.running.files import sync_tree
from shards.files import fresh_folder, publish_folder, write_text
from shards.storage.places import Place, PlaceError

_TARS = (".tar", ".tar.gz", ".tgz")


def push_backbone(
    folder: str | Path,
    to: str | Path,
    *,
    message: str = "Publish a backbone",
    private: bool = True,
    overwrite: bool = False,
    benchmark: Sequence[Scored] = (),
) -> str:
    """Publish a backbone, once it has been proven to load.

    Args:
        folder: The ``backbone/`` folder.
        to: ``hf://org/name`` or ``hf://org/name@branch``, a folder, a .tar or .tar.gz file, or a
            URL that fsspec writes to.
        message: Of the commit on the hub.
        private: A repository that is made on the hub is seen by its owners only.
        overwrite: Replace another backbone that is there; on the hub its commits stay.
        benchmark: Rows for the model card, which is then written anew: another card is another
            digest.

    Returns:
        What :func:`foundation.backbone.load_backbone` takes.

    Raises:
        BackboneError: It does not load, another one is there, or it cannot be written.
    """
    folder = Path(folder)
    artefact = read_artefact(folder)
    if not benchmark:
        return _push(folder, to, message=message, private=private, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="scanfm-") as beside:
        for name in _names(folder):
            shutil.copyfile(folder / name, Path(beside) / name)
        card = model_card(
            artefact.vit_config,
            preprocessing=artefact.preprocessing,
            provenance=artefact.provenance,
            recipe=_recipe(folder / RECIPE),
            benchmark=benchmark,
            settings=artefact.tuned.settings if artefact.tuned else None,
        )
        write_text(Path(beside) / CARD, card)
        seal(Path(beside))
        return _push(Path(beside), to, message=message, private=private, overwrite=overwrite)


def _push(folder: Path, to: str | Path, *, message: str, private: bool, overwrite: bool) -> str:
    url = as_url(str(to))
    mine = (folder / SUMS).read_bytes()
    if url is not None and url.startswith(HUB):
        _refuse_another(remote_sums(url), mine=mine, where=url, overwrite=overwrite)
        return upload(folder, url, message=message, private=private)
    if url is not None:
        return _push_url(folder, url, mine=mine, overwrite=overwrite)
    if is_archive(str(to)):
        return _push_archive(folder, Path(to), overwrite=overwrite)
    return _push_folder(folder, Path(to), mine=mine, overwrite=overwrite)


def _push_url(folder: Path, url: str, *, mine: bytes, overwrite: bool) -> str:
    if is_archive(url):
        raise BackboneError(
            f"{url}: an archive is written to this machine; name a folder behind the URL"
        )
    try:
        place = Place(url)
        there = place.read_bytes(SUMS) if place.exists(SUMS) else None
        _refuse_another(there, mine=mine, where=str(place), overwrite=overwrite)
        if there is not None:
            place.delete(SUMS)  # until it is back, nobody takes old and new files for one
        for name in _names(folder):
            place.upload(folder / name, name)
    except PlaceError as error:
        raise BackboneError(str(error)) from None
    return str(place)


def _push_folder(folder: Path, to: Path, *, mine: bytes, overwrite: bool) -> str:
    if to.exists():
        if not to.is_dir() or (any(to.iterdir()) and not (to / SUMS).is_file()):
            raise BackboneError(f"{to}: is there, and is no backbone; name another folder")
        there = (to / SUMS).read_bytes() if (to / SUMS).is_file() else None
        _refuse_another(there, mine=mine, where=str(to), overwrite=overwrite)
    try:
        beside = fresh_folder(to)
        for name in _names(folder):
            shutil.copyfile(folder / name, beside / name)
        verified_sums(beside)
        sync_tree(beside)
        publish_folder(beside, to)
    except OSError as error:
        raise BackboneError(f"{to}: cannot be written ({error.strerror})") from None
    return str(to)


def _push_archive(folder: Path, to: Path, *, overwrite: bool) -> str:
    """The same backbone gives the same bytes, whenever and whoever packs it."""
    if not str(to).endswith(_TARS):
        raise BackboneError(f"{to}: archives are written as {', '.join(_TARS)}")
    if to.exists() and not overwrite:
        raise BackboneError(f"{to}: is there; name another file, or overwrite it")
    beside = to.with_name(f".{to.name}.tmp")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            if to.name.endswith(".tar"):
                _pack(folder, file)
            else:
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                    _pack(folder, cast(BinaryIO, packed))
        beside.replace(to)
    except OSError as error:
        raise BackboneError(f"{to}: cannot be written ({error.strerror})") from None
    finally:
        beside.unlink(missing_ok=True)
    return str(to)


def _pack(folder: Path, file: BinaryIO) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(_names(folder)):
            about = tarfile.TarInfo(f"backbone/{name}")
            about.size, about.mode = (folder / name).stat().st_size, 0o644
            with (folder / name).open("rb") as content:
                tar.addfile(about, content)


def _names(folder: Path) -> tuple[str, ...]:
    """What there is to publish, ``SHA256SUMS`` last."""
    return (*listed_sums((folder / SUMS).read_bytes()), SUMS)


def _refuse_another(there: bytes | None, *, mine: bytes, where: str, overwrite: bool) -> None:
    if there is not None and there != mine and not overwrite:
        raise BackboneError(
            f"{where}: holds another backbone, digest {digest_of(there)[:16]}; this one has "
            f"{digest_of(mine)[:16]}; name another place, or overwrite it"
        )


def _recipe(path: Path) -> Mapping[str, Any] | None:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None
