"""What is found out before any scan is read: a key that is not there, a metric that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from foundation.finetuning.checks import check_key, check_monitor
from foundation.finetuning.parts import parts_of
from foundation.tasks.labels import TaskError
from tests.foundation.test_finetune_parts import config
from tests.foundation.toy_cohort import ToyCohort

FLOORS = {"volume": None, "radiomics": None, "voxels": None}


def test_the_key_of_a_backbones_shards_is_not_made_anew(tmp_path: Path) -> None:
    """Of one from elsewhere nobody here has the key, and any is as good."""
    own = {"backbone": str(tmp_path), "pseudonym_key": str(tmp_path / "key")}
    with pytest.raises(TaskError, match="key: no such key"):
        check_key(config(**own))
    check_key(config(**{**own, "backbone": "hf://lab/name@main"}))
    (tmp_path / "key").touch()
    check_key(config(**own))


@pytest.mark.parametrize(
    "card",
    [
        {"kind": "binary", "label": {"column": "bright"}},
        {"kind": "multiclass", "label": {"column": "sex"}},
        {"kind": "ordinal", "label": {"column": "bright", "levels": [0, 1]}},
        {"kind": "multilabel", "label": {"columns": ["bright", "female"]}},
        {"kind": "regression", "label": {"column": "size"}},
        {"kind": "survival", "label": {"time_days": "size", "event": "bright"}},
    ],
    ids=lambda card: card["kind"],
)
def test_a_metric_decides_where_validation_defines_it(tmp_path: Path, card: dict[str, Any]) -> None:
    cohort = ToyCohort(tmp_path)
    cohort.add(female=lambda row: int(row["sex"] == "F"))
    (part,) = parts_of(config(), cohort.task(floors=FLOORS, **card), fraction=1.0)
    check_monitor(config(), part)


def test_validation_of_one_class_cannot_choose_by_an_area(tmp_path: Path) -> None:
    cohort = ToyCohort(tmp_path)
    cohort.rewrite(lambda row: {**row, "bright": "1"} if row["split"] == "val" else row)
    task = cohort.task(floors=FLOORS)
    (part,) = parts_of(config(), task, fraction=1.0)
    with pytest.raises(TaskError, match=r"bright: its 16 validation subjects define no auroc"):
        check_monitor(config(), part)
    check_monitor(config(validation={"monitor": "loss"}), part)


def test_pooled_crops_are_one_subjects() -> None:
    with pytest.raises(ValueError, match="another subject's"):
        config(reading={"crops_per_scan": 2, "max_damaged": 1})
