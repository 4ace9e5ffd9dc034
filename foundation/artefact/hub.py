"""The Hugging Face hub: ``hf://org/name`` and ``hf://org/name@revision``, down and up.

The client is ``huggingface_hub``; it honours ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from foundation.artefact.cache import cache_folder
from foundation.artefact.layout import ALL_FILES, SUMS, BackboneError
from foundation.artefact.reading import listed_sums, verified_sums

HUB = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?/?")
_NAMES = (*ALL_FILES, SUMS)


class Address(NamedTuple):
    """A repository of the hub."""

    repo: str
    """org/name"""
    revision: str | None
    """branch, tag or commit; None: the main branch"""

    def __str__(self) -> str:
        return HUB + self.repo + (f"@{self.revision}" if self.revision else "")


def hub_address(url: str) -> Address:
    """What a URL names.

    Raises:
        BackboneError: It is not of the form hf://org/name@revision.
    """
    found = _ADDRESS.fullmatch(url)
    if found is None:
        raise BackboneError(f"{url}: an address of the hub is hf://org/name or hf://org/name@v1")
    return Address(found["repo"], found["revision"])


def download(url: str) -> Path:
    """The folder of a repository's backbone; a damaged copy in the cache is fetched anew.

    Raises:
        BackboneError: There is none, or the hub cannot be reached and no copy is here.
    """
    address = hub_address(url)
    folder = _snapshot(address, anew=False)
    if not (folder / SUMS).is_file():
        raise BackboneError(f"{address}: has no {SUMS}, so no backbone is there")
    try:
        verified_sums(folder)
    except BackboneError:
        folder = _snapshot(address, anew=True)
    return folder


def upload(folder: Path, url: str, *, message: str, private: bool) -> str:
    """Commit a backbone to a repository, which is made if it is not there.

    Args:
        folder: Verified.
        url: hf://org/name, or hf://org/name@branch.
        message: Of the commit.
        private: A repository that is made is seen by its owners only.

    Returns:
        hf://org/name@commit.

    Raises:
        BackboneError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    address = hub_address(url)
    with _hub_errors(str(address), does="take"):
        api = HfApi(endpoint=_endpoint())
        api.create_repo(address.repo, private=private, exist_ok=True)
        if address.revision:
            api.create_branch(address.repo, branch=address.revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=address.repo,
            folder_path=folder,
            allow_patterns=[*listed_sums((folder / SUMS).read_bytes()), SUMS],
            revision=address.revision,
            commit_message=message,
        )
    return str(address._replace(revision=done.oid))


def remote_sums(url: str) -> bytes | None:
    """SHA256SUMS of the backbone that a repository holds now; None where there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

    address = hub_address(url)
    with _hub_errors(str(address), does="give"):
        api = HfApi(endpoint=_endpoint())
        try:
            path = api.hf_hub_download(
                address.repo, SUMS, revision=address.revision, cache_dir=_cache()
            )
        except (EntryNotFoundError, RevisionNotFoundError):
            return None
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 404):
                return None  # no such repository, or none that this token may see
            raise
    return Path(path).read_bytes()


def _snapshot(address: Address, *, anew: bool) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(str(address), does="give"):
        return Path(
            snapshot_download(
                address.repo,
                revision=address.revision,
                allow_patterns=list(_NAMES),
                cache_dir=_cache(),
                endpoint=_endpoint(),
                force_download=anew,
            )
        )


@contextmanager
def _hub_errors(where: str, *, does: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise BackboneError(
            f"{where}: needs huggingface_hub; pip install huggingface_hub"
        ) from None
    # Its own errors, its HTTP library's and the system's have no type in common.
    except Exception as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = next(_telling(said), said[0] if said else type(error).__name__)
        raise BackboneError(
            f"{where}: the hub does not {does} it ({type(error).__name__}: {told}); check the "
            f"name, the revision, the network, and HF_TOKEN where it is not public"
        ) from None


def _telling(lines: Sequence[str]) -> Iterator[str]:
    """Of an answer of the server: the line after the one with the request's number."""
    return (line for line in lines if "Request ID" not in line and not line.startswith("Got:"))


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _cache() -> Path:
    return cache_folder() / "hub"
