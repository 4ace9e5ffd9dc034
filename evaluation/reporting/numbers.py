"""How the report writes a number: enough digits to tell two models apart, and no more."""

import math
from collections.abc import Mapping
from statistics import NormalDist

SHOWN_DIGITS = 3
MINUS, DASH = "\N{MINUS SIGN}", "\N{EM DASH}"


def number(value: float, *others: float | None) -> str:
    """``value`` with three decimals, fewer for large numbers; as many as the largest of ``others``
    is given, so that a value and its interval line up."""
    largest = max(abs(one) for one in (value, *others) if one is not None)
    before_point = max(0, math.floor(math.log10(largest))) if largest else 0
    text = f"{value:.{max(0, SHOWN_DIGITS - before_point)}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def signed(value: float, *others: float | None) -> str:
    """As :func:`number`, with a plus or minus sign."""
    text = number(value, *others)
    return text if text.startswith(MINUS) else f"+{text}"


def interval(low: float | None, high: float | None, *others: float | None) -> str:
    """``[0.801, 0.934]``, with the digits of the value it belongs to; empty without both ends."""
    if low is None or high is None:
        return ""
    return f"[{number(low, high, *others)}, {number(high, low, *others)}]"


def p_value(value: float) -> str:
    """Three decimals; what is smaller is only called smaller."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def p_sentence(value: float) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    text = p_value(value)
    return f"p < {text.removeprefix('<')}" if text.startswith("<") else f"p = {text}"


def percent(share: float) -> str:
    """``91%``, one decimal where a whole number would hide a difference from 100."""
    text = f"{100 * share:.0f}%"
    return f"{100 * share:.1f}%" if text == "100%" and share < 1 else text


def share_interval(share: float, n: int) -> tuple[float, float]:
    """95% interval of a share of n subjects (Wilson 1927)."""
    z2 = NormalDist().inv_cdf(0.975) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # The ends of none and of all are exactly 0 and 1, but for rounding.
    return 0.0 if share == 0 else middle - reach, 1.0 if share == 1 else middle + reach


def share_interval_text(share: float, n: int | None) -> str:
    """``[77%, 96%]``; empty without an n."""
    if not n:
        return ""
    low, high = share_interval(share, n)
    return f"[{percent(low)}, {percent(high)}]"


def quantity(value: str | float) -> str:
    """A count, a time or a word of a provenance: thousands apart, no trailing digits."""
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def settings(chosen: Mapping[str, object]) -> str:
    """``C = 0.1, layers = 1``."""
    shown = {key: f"{one:.3g}" if isinstance(one, float) else one for key, one in chosen.items()}
    return ", ".join(f"{key} = {one}" for key, one in shown.items())


def plural(count: int, word: str) -> str:
    """``1 task``, ``3 tasks``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
