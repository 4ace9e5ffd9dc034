"""Backbones by name: ``backbones.yaml`` here, and a lab's own that ``SCANFM_BACKBONES`` names."""

import difflib
import os
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from foundation.artefact.layout import BackboneError
from recipes.load import RecipeError, Section, load

OWN = "SCANFM_BACKBONES"
INDEX = Path(__file__).with_name("backbones.yaml")


class Entry(Section):
    """One backbone of an index."""

    where: str = Field(description="a place as load_backbone takes; a path is beside the index")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the artefact, which must agree")
    card: str = Field(description="where its model card is read")


class Index(Section):
    """A file of names."""

    backbones: dict[str, Entry]


class Known(NamedTuple):
    """An entry, and the folder its paths start from."""

    entry: Entry
    beside: Path


def known_backbones() -> dict[str, Known]:
    """Every name; those of the lab's own index come before ours.

    Raises:
        BackboneError: An index cannot be read.
    """
    own = os.environ.get(OWN)
    found: dict[str, Known] = {}
    for path in (INDEX, *([Path(own)] if own else [])):
        try:
            index = load(path, Index)
        except RecipeError as error:
            raise BackboneError(" ".join(str(error).split())) from None
        found |= {name: Known(entry, path.parent) for name, entry in index.backbones.items()}
    return found


def names_in_words(wrong: str) -> str:
    """For an error: the nearest name, or all of them."""
    names = sorted(known_backbones())
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"the index knows {', '.join(names)}"
