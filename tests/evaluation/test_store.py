from pathlib import Path

import numpy as np
import pandas
import pytest

from evaluation.storing import store


def _predictions() -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            "model": ["mae", "mae", "age"],
            "protocol": ["linear", "knn", "linear"],
            "split": "val",
            "subject": ["b", "a", "c"],
            "output": 0,
            "label": [1.0, 0.0, 1.0],
            "event": float("nan"),
            "score": [0.7, 0.2, 0.5],
        }
    )


def test_tables_come_back_and_do_not_depend_on_row_order(tmp_path: Path) -> None:
    store.write_predictions(tmp_path / "a", "t", _predictions())
    store.write_predictions(tmp_path / "b", "t", _predictions().iloc[::-1])
    first, second = (tmp_path / name / "predictions" / "t.parquet" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    back = store.read_predictions(tmp_path / "a", "t")
    assert tuple(back.columns) == store.PREDICTION_COLUMNS
    assert back.score.tolist() == [0.5, 0.2, 0.7]


def test_two_predictions_for_one_subject_are_our_fault(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="two rows"):
        store.write_predictions(tmp_path, "t", pandas.concat([_predictions(), _predictions()]))


def test_a_failed_write_leaves_the_former_file(tmp_path: Path) -> None:
    store.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == '{\n "a": 1\n}\n'


def test_pictures_keep_names_and_refuse_pickles(tmp_path: Path) -> None:
    store.write_pictures(tmp_path, "cohort", {"CT__1__0": np.zeros((3, 5), np.float32)})
    assert store.read_pictures(tmp_path, "cohort")["CT__1__0"].shape == (3, 5)
    assert store.read_pictures(tmp_path, "other") == {}
    with pytest.raises(TypeError, match="pickles"):
        store.write_pictures(tmp_path, "cohort", {"x": np.array([None])})


def test_an_unfinished_or_foreign_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match=r"evaluation\.run RECIPE"):
        store.read_run(tmp_path)
    store.write_json(tmp_path / "run.json", {"schema_version": 99})
    with pytest.raises(store.StoreError, match="schema version 99"):
        store.read_run(tmp_path)
    store.write_run(tmp_path, {"name": "demo"})
    assert store.read_run(tmp_path)["name"] == "demo"


def test_statistics_beside_other_predictions_are_refused(tmp_path: Path) -> None:
    store.write_predictions(tmp_path, "t", _predictions())
    store.write_statistics(tmp_path, "t", {"metric": "auroc"})
    assert store.read_statistics(tmp_path, "t")["metric"] == "auroc"
    store.write_predictions(tmp_path, "t", _predictions().assign(score=0.5))
    with pytest.raises(store.StoreError, match="other predictions than those in the store"):
        store.read_statistics(tmp_path, "t")
    store.write_statistics(tmp_path, "t", {"metric": "auroc"})
    path = tmp_path / "statistics" / "t.json"
    path.write_text(path.read_text().replace("auroc", "brier"))
    with pytest.raises(store.StoreError, match="damaged"):
        store.read_statistics(tmp_path, "t")


def test_a_store_is_complete_with_the_statistics_of_every_task(tmp_path: Path) -> None:
    store.write_predictions(tmp_path, "t", _predictions())
    store.write_run(tmp_path, {"tasks": {"t": {}}})
    assert not store.is_complete(tmp_path)
    store.write_statistics(tmp_path, "t", {})
    assert store.is_complete(tmp_path)
