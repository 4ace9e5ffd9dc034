"""Turn a YAML recipe and ``section.field=value`` overrides into one frozen, typed config.

The schema lives beside the code that uses it, as a :class:`Section`. Unknown keys are refused with
their nearest neighbour, wrong values with the path of the field.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is meant for its author."""


class Section(BaseModel):
    """Base of every recipe schema: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Schema = TypeVar("Schema", bound=Section)


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 with two repairs: ``1e-4`` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise RecipeError(f"line {node.start_mark.line + 1}: the key {twice!r} stands twice")
        return super().construct_mapping(node, deep=deep)


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(path: str | Path, schema: type[Schema], overrides: Sequence[str] = ()) -> Schema:
    """Load one recipe.

    Args:
        path: A YAML file that holds one mapping.
        schema: What the recipe must look like.
        overrides: ``section.field=value`` words; each value is read as YAML. The part before ``=``
            may name list items by number (``sources.0.splits=[train]``).

    Raises:
        RecipeError: A missing or unreadable file, an unknown key, or a value that does not fit.
    """
    path = Path(path)
    try:
        tree = _decoded(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, got {type(tree).__name__}")
    for word in overrides:
        _override(tree, word)
    return parse(tree, schema, where=str(path))


def parse(tree: Any, schema: type[Schema], *, where: str) -> Schema:
    """Check an already decoded mapping against ``schema``; ``where`` begins each error line."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems = [_describe(problem, schema) for problem in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(problems)) from None


def to_yaml(config: Section) -> str:
    """The resolved recipe, every default written out, in a form that :func:`load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def digest(value: Section | dict[str, Any] | list[Any]) -> str:
    """SHA-256 (64 hex digits) of a config or a JSON-like value, independent of key order."""
    plain = value.model_dump(mode="json") if isinstance(value, Section) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _decoded(text: str) -> Any:
    """What YAML text stands for."""
    try:
        return yaml.load(text, Loader=_Yaml)
    except RecipeError:
        raise
    # Text that its own tag does not fit, such as a 13th month, ends in other types than YAML's.
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise RecipeError(f"not valid YAML ({' '.join(str(error).split())})") from None


def _override(tree: dict[str, Any], word: str) -> None:
    name, equals, text = word.partition("=")
    if not equals or not name:
        raise RecipeError(f"{word!r} is not an override; write section.field=value")
    try:
        value = _decoded(text)
    except RecipeError as error:
        raise RecipeError(f"{word!r}: {error}") from None
    *parents, last = name.split(".")
    node: Any = tree
    for parent in parents:
        if isinstance(node, list):
            node = node[_item(node, parent, word)]
        else:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
        if not isinstance(node, dict | list):
            raise RecipeError(f"{word!r}: {parent!r} holds a value, not a section")
    if isinstance(node, list):
        node[_item(node, last, word)] = value
    else:
        node[last] = value


def _item(items: list[Any], name: str, word: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise RecipeError(f"{word!r}: {name!r} is not one of the items 0 to {len(items) - 1}")
    return int(name)


def _describe(problem: Any, schema: type[Section]) -> str:
    """One pydantic problem in the words of a recipe: the field's path, what is wrong, a way out."""
    *above, last = problem["loc"] or ("",)
    names = [str(part) for part in above if not _is_union_branch(part)]
    if problem["type"] == "extra_forbidden":
        # The last part is what the author wrote, even where it looks like a branch ("Name").
        path = ".".join([*names, str(last)])
        return f"unknown key {path!r}{_nearest(str(last), _fields_at(schema, above))}"
    names += [] if _is_union_branch(last) else [str(last)]
    path = ".".join(name for name in names if name) or "recipe"
    if problem["type"] == "missing":
        return f"{path} is missing"
    text = problem["msg"].removeprefix("Value error, ")
    text = text[0].lower() + text[1:]
    if problem["type"] == "value_error" or isinstance(problem["input"], dict | list):
        return f"{path}: {text}"
    return f"{path}: {text}, got {problem['input']!r}"


def _is_union_branch(part: Any) -> bool:
    """Pydantic names the branch of a union in the path; a recipe's author never wrote it."""
    return isinstance(part, str) and bool(re.search(r"[\[\]A-Z(]|^(int|float|str|bool)$", part))


def _fields_at(schema: Any, location: Iterable[Any]) -> list[str]:
    sections = [schema]
    for part in location:
        if _is_union_branch(part) or isinstance(part, int):
            continue
        sections = [
            inner
            for section in sections
            if part in section.model_fields
            for inner in _sections_in(section.model_fields[part].annotation)
        ]
    return sorted({name for section in sections for name in section.model_fields})


def _sections_in(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType) or get_args(annotation):
        return [inner for part in get_args(annotation) for inner in _sections_in(part)]
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_section else []


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = sorted(file.name for file in path.parent.glob("*.yaml"))
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f", did you mean {path.parent / close[0]}?" if close else ""
