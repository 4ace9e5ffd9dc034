"""What lies in the folder of a backbone, which version of it this code reads, and its error."""

from collections.abc import Iterable

WEIGHTS, CONFIG, PREPROCESSING = "model.safetensors", "config.json", "preprocessing.json"
PROVENANCE, GOLDEN, SUMS = "provenance.json", "golden.safetensors", "SHA256SUMS"
RECIPE, CARD = "recipe.yaml", "README.md"
HEAD, HEAD_SETTINGS = "head.safetensors", "head.json"
FILES = (WEIGHTS, CONFIG, PREPROCESSING, RECIPE, PROVENANCE, GOLDEN, CARD)
"""What ``SHA256SUMS`` lists of any backbone; itself, and nothing else, lies beside them."""
HEAD_FILES = (HEAD, HEAD_SETTINGS)
"""What it lists besides of one that was fine-tuned: both of them, or it is not whole."""
ALL_FILES = (*FILES, *HEAD_FILES)

VERSION = "schema_version"


class BackboneError(ValueError):
    """A folder that is no backbone, or not the one that was published."""


def odd_names(names: Iterable[str]) -> set[str]:
    """What is missing in a list of files of a backbone, or should not be there; empty if whole."""
    found = set(names)
    return found ^ set(ALL_FILES if found & set(HEAD_FILES) else FILES)
