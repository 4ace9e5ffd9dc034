"""The one shape of a command: ``python -m PACKAGE.VERB RECIPE [section.field=value ...]``."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from recipes.load import Section, load, to_yaml

Schema = TypeVar("Schema", bound=Section)

USER_ERROR = 2
STOPPED = 75
"""Asked to stop, and all that was done is saved: start the command again (EX_TEMPFAIL)."""
INTERRUPTED = 130


def run_recipe(main: Callable[[Schema], None], schema: type[Schema], *, doc: str) -> NoReturn:
    """Read the recipe named on the command line, call ``main`` with it and exit.

    Args:
        main: Does the work. A ``ValueError`` or ``OSError`` it raises is the user's to mend: it
            ends as one line on stderr and exit code 2.
        schema: Of the recipe.
        doc: The module's docstring; becomes the text of ``--help``.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a YAML file; see recipes/ for examples")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--print", action="store_true", help="show the resolved recipe and stop")
    words = parser.parse_args()
    with errors_in_one_line():
        config = load(words.recipe, schema, words.overrides)
        if words.print:
            print(to_yaml(config), end="")
        else:
            main(config)
    sys.exit(0)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the process with one clear line for anything a user can cause (``SCANFM_DEBUG=1``: all).

    Our own faults (assertions, type errors) keep their traceback: they are for us to read.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("SCANFM_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
