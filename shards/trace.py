"""Tell which files an entry of the ledger stands for; only who holds the pseudonym key can.

    python -m shards.trace recipes/shards/demo.yaml INPUT [INPUT ...] [section.field=value ...]

INPUT is the ``input`` of a line of ``ledger.jsonl``. The names go to the terminal and nowhere else.
"""

import argparse

from recipes.command import errors_in_one_line
from recipes.load import load
from shards.build import BuildConfig, read_sources
from shards.building.plan import jobs_of
from shards.pseudonym import load_key


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="the one that the shards were built with")
    parser.add_argument("inputs", nargs="+", metavar="INPUT")
    words = parser.parse_args()
    with errors_in_one_line():
        wanted = [word for word in words.inputs if "=" not in word]
        overrides = [word for word in words.inputs if "=" in word]
        trace(load(words.recipe, BuildConfig, overrides), wanted)


def trace(config: BuildConfig, wanted: list[str]) -> None:
    """Print the files of each input.

    Raises:
        ValueError: An input is not among those that the recipe finds today.
    """
    if not config.pseudonym_key.is_file():
        raise ValueError(f"{config.pseudonym_key}: no such pseudonym key; set pseudonym_key")
    key = load_key(config.pseudonym_key)
    found = {job.input: job.task for job in jobs_of(read_sources(config), key)}
    for name in wanted:
        if name not in found:
            raise ValueError(f"{name}: no input of this name is below {config.data_root} today")
        item = found[name].item
        print(f"{name}: {found[name].source}, {len(item.files)} files of subject {item.subject}")
        for file in item.files:
            print(f"  {file}")


if __name__ == "__main__":
    main()
