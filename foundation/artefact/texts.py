"""The text files of a backbone: JSON mappings, and the sections they hold."""

import json
from pathlib import Path
from typing import Any, TypeVar

from foundation.artefact.layout import BackboneError
from recipes.load import RecipeError, Section, parse

_MOST_BYTES = 1 << 30

Schema = TypeVar("Schema", bound=Section)


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a file.

    Raises:
        BackboneError: It is none, or cannot be read.
    """
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise BackboneError(f"{path}: {size} bytes, at most {_MOST_BYTES} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except BackboneError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise BackboneError(f"{path}: holds {type(content).__name__}, expected a mapping")
    return content


def section_of(path: Path, schema: type[Schema], content: Any) -> Schema:
    """What ``content``, from the file ``path``, says by ``schema``.

    Raises:
        BackboneError: It does not fit.
    """
    try:
        return parse(content, schema, where=str(path))
    except RecipeError as error:
        raise BackboneError(" ".join(str(error).split())) from None
