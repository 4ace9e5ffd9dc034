"""Every card and cohort that is shipped: it loads, its cohort is there, and its facts are right."""

import functools
import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest

from foundation.metrics.by_name import KINDS
from foundation.tasks.card import TaskCard
from foundation.tasks.task import load_task
from recipes.load import load
from shards.phantom.disease import LESION_LABELS
from shards.phantom.subject import DISEASES
from shards.sources.cohort import CohortConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CARDS = {path.stem: path for path in sorted((RECIPES / "tasks").rglob("*.yaml"))}
COHORTS = {path.stem: path for path in sorted((RECIPES / "cohorts").rglob("*.yaml"))}
MEDMNIST = [f"{kind}_{size}" for kind in ("organ", "nodule", "adrenal", "fracture", "vessel",
            "synapse") for size in (28, 64)]  # fmt: skip
DISEASE_GROUPS = {
    "stroke",
    "infection",
    "diabetes",
    "COPD",
    "cancer",
    "cardiovascular disease",
    "neurodegenerative disease",
}


@pytest.mark.parametrize("stem", CARDS)
def test_a_card_is_named_by_its_file_and_its_cohort_is_there(stem: str) -> None:
    card = load(CARDS[stem], TaskCard)
    cohort = RECIPES.parent / card.cohort
    assert card.name == stem or stem == "template"
    assert cohort.is_file()
    config = load(cohort, CohortConfig)
    assert config.name == cohort.stem or cohort.stem == "template"
    assert set(card.sequences) <= set(config.sequences) or config.msd is not None
    if card.floors.uses_mask:
        assert config.mask is not None
    if card.kind == "segmentation":
        assert config.mask is not None or config.msd is not None
    needs_split = card.protocol.split is not None
    assert not needs_split or config.split is not None or config.npz is not None
    assert card.known_leaks
    assert card.known_floors


def test_no_cohort_is_left_without_a_card() -> None:
    used = {RECIPES.parent / load(path, TaskCard).cohort for path in CARDS.values()}
    assert set(COHORTS.values()) == used


def test_a_card_of_every_kind_is_shipped() -> None:
    kinds = {load(path, TaskCard).kind for path in CARDS.values()}
    assert kinds == set(KINDS)


def test_every_disease_group_has_public_cohorts_and_a_phantom() -> None:
    public = {load(p, TaskCard).disease for p in CARDS.values() if p.parent.name == "public"}
    phantom = {load(p, TaskCard).disease for p in CARDS.values() if p.stem.startswith("phantom_")}
    assert public >= DISEASE_GROUPS
    assert phantom >= DISEASE_GROUPS
    assert {f"phantom_{disease}" for disease in DISEASES} <= set(CARDS)


def test_phantom_masks_are_named_as_the_generator_numbers_them() -> None:
    same = {"emphysema": "copd", "nodule": "cancer", "atrophy": "neurodegenerative"}
    for part in ("chest", "head"):
        for name, value in load(
            CARDS[f"phantom_{part}_lesions"], TaskCard
        ).label.mask_values.items():
            assert LESION_LABELS[same.get(name, name)] == value


@functools.cache
def medmnist_info() -> dict[str, Any]:
    """The package's list of sets, without importing the package, which takes torch with it."""
    spec = importlib.util.find_spec("medmnist")
    if spec is None or spec.origin is None:
        pytest.skip("the medmnist package is not installed")
    info: dict[str, Any] = runpy.run_path(str(Path(spec.origin).with_name("info.py")))["INFO"]
    return info


@pytest.mark.parametrize("stem", MEDMNIST)
def test_medmnist_cards_agree_with_the_package(stem: str) -> None:
    kind, size = stem.split("_")
    about = medmnist_info()[f"{kind}mnist3d"]
    card, cohort = load(CARDS[stem], TaskCard), load(COHORTS[stem], CohortConfig)
    file = about["url" if size == "28" else f"url_{size}"].rpartition("/")[2].partition("?")[0]
    assert cohort.npz == f"medmnist3d/{file}"
    assert cohort.licence.startswith(about["license"])
    assert card.kind == {"binary-class": "binary", "multi-class": "multiclass"}[about["task"]]
    if card.kind == "multiclass":
        values = list(card.label.class_values.values())
        assert values == list(range(len(about["label"])))
        for name, value in card.label.class_values.items():
            words = set(about["label"][str(value)].replace("-", " ").split())
            assert set(name.split("_")) <= words


@pytest.mark.parametrize(
    ("stem", "values"),
    [
        ("msd_brain_tumour", 3), ("msd_heart", 1), ("msd_liver", 2), ("msd_hippocampus", 2),
        ("msd_prostate", 2), ("msd_lung", 1), ("msd_pancreas", 2), ("msd_hepatic_vessel", 2),
        ("msd_spleen", 1), ("msd_colon", 1), ("hippocampus_segmentation", 2),
    ],
)  # fmt: skip
def test_decathlon_cards_number_their_classes_from_one(stem: str, values: int) -> None:
    card = load(CARDS[stem], TaskCard)
    assert list(card.label.mask_values.values()) == list(range(1, values + 1))


def test_the_noncommercial_source_of_the_fractures_is_named() -> None:
    for size in (28, 64):
        assert "CC BY-NC" in load(COHORTS[f"fracture_{size}"], CohortConfig).licence


def test_the_templates_name_every_key() -> None:
    for path, schema in ((CARDS["template"], TaskCard), (COHORTS["template"], CohortConfig)):
        text = path.read_text()
        keys = set(schema.model_fields) - {"npz", "msd"}
        assert [key for key in sorted(keys) if f"{key}:" not in text] == []


@pytest.mark.real
@pytest.mark.parametrize(
    ("stem", "num_subjects", "outputs"),
    [
        ("adrenal_28", 1584, ("1",)),
        ("adrenal_64", 1584, ("1",)),
        ("hippocampus_small", 260, ("1",)),
        ("hippocampus_volume", 260, ("volume_mm3",)),
        ("hippocampus_segmentation", 260, ("anterior", "posterior")),
        ("sarcoma_metastasis", 51, ("1",)),
    ],
)
def test_cards_of_real_cohorts_load(
    real_data: Path, stem: str, num_subjects: int, outputs: tuple[str, ...]
) -> None:
    task = load_task(CARDS[stem], data_root=real_data, key=b"k" * 32)
    assert (len(task.subjects), task.outputs) == (num_subjects, outputs)
