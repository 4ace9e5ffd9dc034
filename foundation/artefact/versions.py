"""The schema version of an artefact: newer ones are refused, older ones brought up step by step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from foundation.artefact.layout import VERSION, BackboneError


class Texts(NamedTuple):
    """The two files that say what a backbone is, as JSON gave them."""

    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]


Upgrade = Callable[[Texts], Texts]
"""From one version to the next: what a new key means for a backbone that was written without it."""


def _may_have_a_head(texts: Texts) -> Texts:
    """1 to 2: a head lies in files of its own, so both texts stay; a backbone of 1 has none."""
    return texts


UPGRADES: Sequence[Upgrade] = (_may_have_a_head,)
"""The first leads from version 1 to 2, and so on. A key with a default needs none: write one where
a name or a meaning changes, and never take one away."""

SCHEMA_VERSION = 1 + len(UPGRADES)


def check_version(found: Any, *, where: str, newest: int = SCHEMA_VERSION) -> int:
    """The version as a number.

    Raises:
        BackboneError: It is none, or newer than this code.
    """
    if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= newest:
        return found
    reads = f"1 to {newest}" if newest > 1 else "1"
    if isinstance(found, int) and found > newest:
        raise BackboneError(
            f"{where}: schema version {found}, this code reads {reads}; it was written by a newer "
            f"scanfm, install that: pip install --upgrade scanfm"
        )
    raise BackboneError(f"{where}: schema version {found!r}, this code reads {reads}")


def upgraded(texts: Texts, *, where: str, upgrades: Sequence[Upgrade] = UPGRADES) -> Texts:
    """The same backbone as this version would have written it.

    Raises:
        BackboneError: It is newer than this code.
    """
    version = check_version(texts.config.get(VERSION), where=where, newest=1 + len(upgrades))
    for upgrade in upgrades[version - 1 :]:
        texts = upgrade(texts)
    return texts
