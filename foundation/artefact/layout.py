"""What lies in the folder of a backbone, which version of it this code reads, and its error."""

WEIGHTS, CONFIG, PREPROCESSING = "model.safetensors", "config.json", "preprocessing.json"
PROVENANCE, GOLDEN, SUMS = "provenance.json", "golden.safetensors", "SHA256SUMS"
RECIPE, CARD = "recipe.yaml", "README.md"
FILES = (WEIGHTS, CONFIG, PREPROCESSING, RECIPE, PROVENANCE, GOLDEN, CARD)
"""What ``SHA256SUMS`` lists; itself, and nothing else, lies beside them."""

VERSION = "schema_version"


class BackboneError(ValueError):
    """A folder that is no backbone, or not the one that was published."""
