"""From a folder of scans and a table of labels to a scored row, in one command.

    python -m evaluation.quick runs/NAME/backbone scans/ labels.csv --label disease --modality CT
    python -m evaluation.quick runs/NAME/backbone scans/ labels.csv --time days --event died

It guesses which scans are whose, what kind of label it is and how to score it, prints each guess,
and writes what it guessed as a cohort, a task card and a recipe next to the store: go on from those
with python -m evaluation.run. BACKBONE is a folder backbone/, a run's folder, or a line of a recipe
such as '{timm: resnet18, weights: resnet18.safetensors}'. SCANS holds NIfTI, NRRD or MetaImage
files, or folders of DICOM.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from evaluation.report import write_report
from evaluation.storing.store import read_run, read_statistics
from foundation.metrics.by_name import Kind
from foundation.tasks import drafting
from foundation.tasks.drafting import SMALL, Draft
from foundation.tasks.guesses import Columns, guess_event, guess_label, guess_subject
from foundation.tasks.labels import TaskError
from foundation.tasks.matching import Found, match_column, match_names, path_column
from recipes.command import errors_in_one_line
from recipes.load import load
from shards.pseudonym import load_key
from shards.scan import MODALITIES
from shards.sources.cohort_table import read_columns

KINDS = [kind for kind in get_args(Kind) if kind != "segmentation"]


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    given = _parser().parse_args(words)
    with errors_in_one_line():
        if given.label is None and (given.time is None or given.event is None):
            raise TaskError("say what is predicted: --label COLUMN, or --time and --event")
        recipe = write_recipes(given)
        score(recipe)
        store = given.out or Path("stores") / recipe.stem
        print(scored_rows(store), flush=True)
        write_report([store], out=given.report or Path("reports") / store.name)


def write_recipes(given: argparse.Namespace) -> Path:
    """The three files, and the table, next to the store; returns the evaluation's recipe.

    Raises:
        TaskError: Scans, subjects or labels that cannot be found or guessed.
    """
    columns = read_columns("labels", _existing(given.labels))
    draft = _draft(given, columns)
    folder = _store(given, draft).with_name(f"{draft.name}_recipe")
    folder.mkdir(parents=True, exist_ok=True)
    num_subjects = drafting.write_table(folder / "scans.csv", draft)
    small = draft.split is None and num_subjects < SMALL
    cohort, task, recipe = (folder / f"{name}.yaml" for name in ("cohort", "task", draft.name))
    modality = _modality(given, draft)
    folds = drafting.num_folds(draft) if small else 0
    drafting.write_yaml(
        cohort,
        drafting.cohort_recipe(draft, table="scans.csv", modality=modality, small=small),
        says="Written by evaluation.quick; fill in licence and source.",
    )
    card = drafting.task_card(
        draft,
        cohort=cohort,
        small=small,
        folds=folds,
        clinical=_names(given.clinical),
        groups=_names(given.groups),
    )
    drafting.write_yaml(
        task, card, says="Written by evaluation.quick; recipes/tasks/template.yaml explains it."
    )
    drafting.write_yaml(
        recipe,
        _evaluation(given, draft, folder=folder, task=task),
        says="Written by evaluation.quick; python -m evaluation.run with this file scores again.",
    )
    protocol = f"{folds} folds, repeated" if small else "one split"
    print(f"guessed {num_subjects} subjects, scored by {protocol}", flush=True)
    print(f"writes  {folder}: {cohort.name}, {task.name}, {recipe.name}, scans.csv", flush=True)
    return recipe


def score(recipe: Path) -> None:
    """What ``python -m evaluation.run`` does with a recipe."""
    from evaluation.run import main as run
    from evaluation.scoring.config import EvaluationConfig

    run(load(recipe, EvaluationConfig))


def scored_rows(store: Path) -> str:
    """A line per model and protocol: the primary metric with its interval, backbones first."""
    run = read_run(store)
    lines = []
    for task in run["tasks"]:
        found = read_statistics(store, task)
        metric = found["metric"]
        lines.append(f"\n{task}: {metric} on {found['split']}, {found['n']} subjects")
        models = sorted(found["models"], key=lambda model: model["kind"] != "backbone")
        wide, wider = (max(len(each[key]) for each in models) for key in ("model", "protocol"))
        for each in models:
            shown = _score_text(each["scores"][metric])
            lines.append(f"  {each['model']:{wide}}  {each['protocol']:{wider}}  {shown}")
    return "\n".join(lines)


def _score_text(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return f"null: {score['reason']}"
    if score["low"] is None:
        return f"{score['value']:.3f} (no interval: {score['reason']})"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _draft(given: argparse.Namespace, columns: Columns) -> Draft:
    """All guesses, each printed."""
    named = [*_names(given.label), *_names(given.clinical), *_names(given.groups)]
    named += [name for name in (given.subject, given.scan, given.split) if name is not None]
    named += [name for name in (given.time, given.event) if name is not None]
    for name in named:
        if name not in columns:
            raise TaskError(f"{given.labels} has no column {name!r}; it has {', '.join(columns)}")
    if not next(iter(columns.values()), ()):
        raise TaskError(f"{given.labels} has no rows")
    subject = given.subject or guess_subject(columns)
    if given.label is None:
        guess = guess_event(columns, given.time, given.event)
    else:
        guess = guess_label(columns, _names(given.label), given.kind)
    found = _match(given, columns, subject)
    print(f"guessed the subject is column {subject!r} (--subject)", flush=True)
    print(f"guessed {guess.kind}: {guess.why}; {guess.label} (--kind)", flush=True)
    print(
        f"guessed {len(found.matches)} scans by {found.how}; {found.spare_scans} scans and "
        f"{found.spare_rows} rows are nobody's (--scan)",
        flush=True,
    )
    name = given.out.name if given.out is not None else drafting.slug(given.label or given.event)
    if name != drafting.slug(name):
        raise TaskError(f"--out {given.out}: its last part is small letters, digits and _")
    keep = [*_names(given.clinical), *_names(given.groups)]
    return Draft(name, columns, found.matches, subject, guess, keep, given.split)


def _match(given: argparse.Namespace, columns: Columns, subject: str) -> Found:
    folder = _existing(given.scans)
    column = given.scan or path_column(folder, columns)
    if column is not None:
        return match_column(folder, columns[column], column)
    return match_names(folder, columns[subject], subject)


def _modality(given: argparse.Namespace, draft: Draft) -> str | None:
    if given.modality is None and not all(match.is_dicom for match in draft.matches):
        raise TaskError(
            f"image files do not tell what they are; say --modality {', '.join(MODALITIES)}"
        )
    return str(given.modality) if given.modality is not None else None


def _evaluation(
    given: argparse.Namespace, draft: Draft, *, folder: Path, task: Path
) -> dict[str, Any]:
    key = given.key or folder / "pseudonym.key"
    if not key.is_file():
        load_key(key)
        print(f"writes  {key}: subjects are compared with pretraining by voxels alone", flush=True)
    store = _store(given, draft)
    return {
        "name": draft.name,
        "title": f"{draft.name}, from {given.labels.name}",
        "data_root": str(folder),
        "out": str(store.parent),
        "pseudonym_key": str(key),
        "backbones": _backbone(given.backbone),
        "random_init": {"seeds": [0]},
        "tasks": [str(task)],
        "tier": given.tier,
        "test": "open" if given.open_test else "closed",
        "ledger": str(folder / "test_openings.jsonl"),
    }


def _backbone(text: str) -> dict[str, Any]:
    """A line of a recipe, by name."""
    if text.lstrip().startswith("{"):
        try:
            return {"backbone": yaml.safe_load(text)}
        except yaml.YAMLError as error:
            raise TaskError(
                f"backbone {text!r} is no line of a recipe ({' '.join(str(error).split())})"
            ) from None
    folder = Path(text)
    if not folder.is_dir():  # an archive, a URL, a known name: its own loader says what is wrong
        return {drafting.slug(folder.name.partition(".")[0]): text}
    if (folder / "backbone").is_dir():
        folder = folder / "backbone"
    if not (folder / "model.safetensors").is_file():
        return {drafting.slug(folder.name): {"run": str(folder)}}
    name = folder.parent.name if folder.name == "backbone" else folder.name
    return {drafting.slug(name): str(folder)}


def _store(given: argparse.Namespace, draft: Draft) -> Path:
    return Path(given.out) if given.out is not None else Path("stores") / draft.name


def _existing(path: Path) -> Path:
    if not path.exists():
        raise TaskError(f"{path}: no such file or folder")
    return path


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "backbone",
        help="a folder, an archive, hf://org/name, a URL, a name such as demo, or a line of a "
        "recipe",
    )
    parser.add_argument("scans", type=Path, help="a folder")
    parser.add_argument("labels", type=Path, help="a CSV or Parquet table")
    parser.add_argument("--label", help="column, or several 0/1 columns with commas between them")
    parser.add_argument("--time", help="column of days, of a survival task")
    parser.add_argument("--event", help="column of events, of a survival task")
    parser.add_argument("--kind", choices=KINDS, help="of the label, where the guess is wrong")
    parser.add_argument("--subject", help="column of the person's name")
    parser.add_argument("--scan", help="column of paths below SCANS")
    parser.add_argument("--modality", choices=MODALITIES, help="of image files")
    parser.add_argument("--split", help="column that holds train, val and test")
    parser.add_argument("--clinical", help="columns that are a floor: age,sex")
    parser.add_argument("--groups", help="columns to count subjects by: site,scanner")
    parser.add_argument("--tier", choices=("quick", "standard", "full"), default="quick")
    parser.add_argument("--key", type=Path, help="pseudonym key that the shards were made with")
    parser.add_argument("--open-test", action="store_true", help="score the test split, once")
    parser.add_argument("--out", type=Path, help="of the store; default stores/LABEL")
    parser.add_argument("--report", type=Path, help="default reports/NAME")
    return parser


if __name__ == "__main__":
    main()
