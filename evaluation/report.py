"""Write the benchmark report again from what evaluation stored.

    python -m evaluation.report [STORE ...] [--out reports/benchmark]

Reads the stores named (without a name: every finished one under stores/, in name order) and writes
OUT.html, OUT.md, OUT.csv and OUT.json. It needs neither a backbone nor a scan, and the same stores
give the same bytes.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from evaluation.storing.store import StoreError, replace_all
from recipes.command import errors_in_one_line

if TYPE_CHECKING:
    from evaluation.reporting.content import Content

STORES = Path("stores")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", nargs="*", type=Path, metavar="STORE")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmark"))
    given = parser.parse_args(words)
    with errors_in_one_line():
        write_report(given.stores or finished_stores(STORES), out=given.out)


def finished_stores(folder: Path) -> list[Path]:
    """Every store in ``folder`` whose evaluation has finished, in name order.

    Raises:
        StoreError: There is none.
    """
    found = sorted(path.parent for path in folder.glob("*/run.json"))
    if not found:
        raise StoreError(
            f"{folder}/: no finished evaluation here; make one with python -m evaluation.run RECIPE"
        )
    return found


def write_report(stores: Sequence[Path], *, out: Path) -> None:
    """Read ``stores``, and write the four files once all of them could be made."""
    from evaluation.reporting.family import with_holm
    from evaluation.reporting.files import csv_text, json_text
    from evaluation.reporting.layout import lay_out
    from evaluation.reporting.pages import html_page, markdown_page
    from evaluation.reporting.reading import read_content

    start = time.monotonic()
    paths = [out.with_name(f"{out.name}.{kind}") for kind in ("html", "md", "csv", "json")]
    print(f"reads   {', '.join(str(store) for store in stores)}", flush=True)
    print(f"writes  {', '.join(str(path) for path in paths)}", flush=True)
    contents: list[Content] = []
    for store in stores:
        contents.append(read_content(store))
        if contents[-1].name in [content.name for content in contents[:-1]]:
            raise StoreError(f"{store}: a second store called {contents[-1].name!r}; name it once")
        print(f"read    {store}: {len(contents[-1].tasks)} tasks", flush=True)
    pages = lay_out(with_holm(contents))
    makers = (html_page, markdown_page, csv_text, json_text)
    texts = [make(pages).encode() for make in makers]
    replace_all({path: partial(_write, text=text) for path, text in zip(paths, texts, strict=True)})
    print(f"report  {paths[0].resolve()} ({time.monotonic() - start:.1f} s)", flush=True)


def _write(file: IO[bytes], *, text: bytes) -> None:
    file.write(text)


if __name__ == "__main__":
    main()
