"""Licences of what weights were made from, and which of them asks the most."""

import re
from collections.abc import Iterable
from typing import NamedTuple

# From the one that asks least to the one that asks most; the last one that fits a name is its rank.
_RANKS = (
    ("public domain", r"^(CC0|PDDL|UNLICENSE|PUBLIC-DOMAIN)", "asks nothing"),
    ("attribution", r"^(MIT|ISC|BSD|APACHE|ODC-BY|CDLA-PERMISSIVE|CC-BY)\b", "name the source"),
    (
        "share alike",
        r"^(CC-BY-SA|ODBL|L?GPL|AGPL|MPL|CDLA-SHARING)",
        "pass on under the same terms",
    ),
    ("non-commercial", r"-NC(-|$)", "no commercial use"),
    ("no derivatives", r"-ND(-|$)", "derived works may not be passed on"),
    ("terms of their own", r"", "read and follow the terms of the source"),
)
_HUB = {"APACHE-2.0": "apache-2.0", "MIT": "mit", "CC0-1.0": "cc0-1.0", "CC0": "cc0-1.0"}
_HUB_CC = re.compile(r"CC-BY(-NC)?(-SA|-ND)?-\d\.\d")


class Licence(NamedTuple):
    """A licence, and what it asks."""

    rank: int
    """more is more restrictive"""
    name: str
    """as the source states it"""
    kind: str
    asks: str
    hub: str
    """the hub's name, ``other`` where it has none"""


def licence(name: str) -> Licence:
    """What is known of a licence by its name."""
    plain = re.sub(r"[\s_]+", "-", name.strip().upper().replace("LICENSE-", ""))
    plain = re.sub(r"^CREATIVE-COMMONS-", "CC-", plain)
    fits = [rank for rank, (_, pattern, _) in enumerate(_RANKS) if re.search(pattern, plain)]
    # Every name fits the last one, which is for those that fit no other; NC and ND beat SA.
    rank = max(fits[:-1]) if len(fits) > 1 else fits[-1]
    kind, _, asks = _RANKS[rank]
    hub = plain.lower() if _HUB_CC.fullmatch(plain) else _HUB.get(plain, "other")
    return Licence(rank, name.strip(), kind, asks, hub)


def strictest(names: Iterable[str]) -> Licence:
    """The one that asks the most; a name may list several, such as ``MIT (MR), CC0-1.0 (CT)``."""
    each = [licence(part) for name in names for part in _parts(name)]
    return max(each or [licence("unknown")])


def _parts(name: str) -> list[str]:
    plain = re.sub(r"\([^)]*\)", "", name)
    return [part for part in re.split(r"[,;+]| and ", plain) if part.strip()] or ["unknown"]
