"""The page of ``shards.inspect`` from its facts and pictures: one HTML file without requests.

It depends on nothing but them: no clock, no folder, no machine.
"""

from collections.abc import Sequence
from pathlib import Path

from shards.inspect.facts import Facts, short
from shards.inspect.pictures import ScanPicture

TEMPLATES = Path(__file__).parent / "templates"
MAX_PAIRS = 50  # of duplicates that the page lists
FEW_LABELS = 7  # bars that each have room for a label


def page(facts: Facts, *, pictures: Sequence[ScanPicture], seed: int) -> str:
    """Fill the template; every text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"times": times, "short": short}
    return environment.get_template("inspect.html.j2").render(
        facts=facts,
        pictures=pictures,
        seed=seed,
        max_pairs=MAX_PAIRS,
        few_labels=FEW_LABELS,
    )


def times(numbers: Sequence[float]) -> str:
    """``(5, 0.75, 0.75)`` -> ``5 x 0.75 x 0.75``."""
    return " x ".join(f"{number:.4g}" for number in numbers)
