"""Does pretraining help, and does one method beat another? Over pretraining seeds and subjects.

    python -m evaluation.claim stores/learn_2 stores/learn_3 stores/learn_4 --out reports/learn

Reads what ``evaluation.run`` stored of backbones that were pretrained with different seeds, on
cohorts that were drawn with different seeds or on one and the same. Each method is compared with
random initialisation (``claiming/pretraining.py``) and with every other method
(``claiming/methods.py``). Subjects are drawn together in all tasks, and in all stores where these
hold the same subjects; tasks of different metrics are never averaged.
"""

import argparse
from pathlib import Path

from evaluation.claiming.methods import compare_methods, judge
from evaluation.claiming.pretraining import compare
from evaluation.claiming.scored import by_metric, read_scored
from evaluation.claiming.words import as_json, markdown
from evaluation.storing import store
from recipes.command import errors_in_one_line
from shards.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", type=Path, nargs="+", help="folders that evaluation.run wrote")
    parser.add_argument("--out", type=Path, help="also write OUT.json and OUT.md")
    parser.add_argument("--bootstraps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    words = parser.parse_args()
    with errors_in_one_line():
        report(words.stores, out=words.out, num_bootstraps=words.bootstraps, seed=words.seed)


def report(stores: list[Path], *, out: Path | None, num_bootstraps: int, seed: int) -> None:
    """Print what the stores say, and write it to ``out.json`` and ``out.md``."""
    parts = by_metric([read_scored(each) for each in stores])
    duels = {
        metric: compare_methods(part, num_bootstraps=num_bootstraps, seed=seed)
        for metric, part in parts.items()
    }
    verdicts = judge(duels)
    said = {
        metric: (
            compare(part, num_bootstraps=num_bootstraps, seed=seed),
            part,
            duels[metric],
            verdicts[metric],
        )
        for metric, part in parts.items()
    }
    text = "\n\n".join(markdown(*each) for each in said.values())
    print(text)
    if out:
        store.write_json(
            out.with_suffix(".json"), {metric: as_json(*each) for metric, each in said.items()}
        )
        write_text(out.with_suffix(".md"), text + "\n")
        print(f"\nreports: {out}.json and .md")


if __name__ == "__main__":
    main()
