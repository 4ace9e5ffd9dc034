"""JSON files that hold their own digest, so that damage to them is seen."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.load import digest
from shards.files import write_json

_SEAL = "digest"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with its digest beside."""
    return {**content, _SEAL: _digest_of(content)}


def is_whole(content: Mapping[str, Any]) -> bool:
    """What was read is what :func:`sealed` gave."""
    return content.get(_SEAL) == _digest_of(content)


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write it :func:`sealed`; the file is then whole, or as it was."""
    write_json(path, sealed(content))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The content without its digest; None where the file is damaged.

    Raises:
        OSError: It cannot be read, or is not there.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError:  # of JSON or of UTF-8
        return None
    if not isinstance(content, dict) or not is_whole(content):
        return None
    return {name: value for name, value in content.items() if name != _SEAL}


def _digest_of(content: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in content.items() if name != _SEAL})
