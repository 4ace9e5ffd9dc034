"""Floors: their features, their estimators, and which of them stand in a task's table."""

from typing import Any

import numpy as np
import pytest

from evaluation.extraction.features import FeatureError, extract_all, pool_by_subject
from evaluation.floors.clinical import beside, clinical_table, fit_table, table_features
from evaluation.floors.constant import constant
from evaluation.floors.registry import (
    floor_candidates,
    floor_entries,
    floor_extractors,
    floor_names,
)
from evaluation.floors.svm import rbf_svm
from evaluation.floors.voxels import AUTO_CELLS, cell_shares, fit_pca, pca_features
from evaluation.probing.protocols import evaluate
from foundation.metrics.by_name import measure
from tests.evaluation.made_tasks import made_task

ALL = ["constant", "volume", "histogram", "voxels", "radiomics", "clinical", "mask",
       "clinical_mask"]  # fmt: skip


def arrays_of(task: Any, folder: Any) -> dict[str, dict[str, Any]]:
    found = extract_all(
        task.candidates, floor_extractors(task), folder=folder, title=task.card.name
    )
    return {
        name: {key: pool_by_subject(task, task.candidates, each) for key, each in arrays.items()}
        for name, arrays in found.items()
    }


def scores_of(task: Any, folder: Any) -> dict[tuple[str, str], Any]:
    candidates = floor_candidates(task, arrays_of(task, folder))
    return {
        (name, scorer.estimator.name): evaluate(task, scorer, open_test=False).scores
        for name, candidate in candidates.items()
        for scorer in candidate.scorers
    }


def test_every_floor_of_a_binary_task_is_scored(place: Any, tmp_path: Any) -> None:
    task = place.task()
    assert floor_names(task) == ALL
    assert list(floor_entries([task])) == ALL
    scores = scores_of(task, tmp_path / "features")
    assert list(scores) == [
        (name, protocol)
        for name in ALL
        for protocol in {"constant": ["constant"], "voxels": ["linear", "svm"]}.get(
            name, ["linear"]
        )
    ]
    label = task.label[task.rows("val")]
    quality = {key: measure(label, each["val"], "auroc") for key, each in scores.items()}
    assert quality["constant", "constant"] == 0.5
    assert quality["radiomics", "linear"] > 0.9  # the corner is bright
    assert quality["mask", "linear"] > 0.9


def test_a_card_may_leave_floors_out(place: Any, tmp_path: Any) -> None:
    task = place.task(floors={"volume": None, "radiomics": None, "voxels": None})
    assert floor_names(task) == ["constant", "histogram"]
    assert [each.name for each in floor_extractors(task)] == ["histogram"]
    assert list(floor_candidates(task, arrays_of(task, tmp_path))) == ["constant", "histogram"]


def test_by_default_every_image_floor_stands(place: Any, tmp_path: Any) -> None:
    task = place.task(floors={})
    assert floor_names(task) == ["constant", "volume", "histogram", "voxels", "radiomics"]
    arrays = arrays_of(task, tmp_path)
    assert arrays["voxels"]["voxels"].shape == (72, AUTO_CELLS**3)


def made_arrays(n: int) -> dict[str, dict[str, Any]]:
    """What extraction gives of n subjects, without scans; the first column of each is a signal."""
    rng = np.random.default_rng(0)
    shapes = {"histogram": {"histogram": 32}, "foreground": {"volume": 1},
              "mask": {"volume": 1, "intensity": 2}, "voxels": {"voxels": 40},
              "radiomics": {"radiomics": 27}}  # fmt: skip
    arrays = {
        name: {key: rng.normal(size=(n, width)) + 3 for key, width in each.items()}
        for name, each in shapes.items()
    }
    for each in arrays.values():
        for values in each.values():
            values[:, 0] += 3 * (np.arange(n) % 3)
    return arrays


LABELS: dict[str, Any] = {
    "regression": np.arange(72) % 3 + np.sin(np.arange(72)),
    "multiclass": np.arange(72) % 3,
    "ordinal": np.arange(72) % 3,
    "multilabel": np.stack([np.arange(72) % 3 == 0, np.arange(72) % 5 > 1], 1),
    "survival": np.stack([100 - 30 * (np.arange(72) % 3) + np.cos(np.arange(72)),
                          np.arange(72) % 4 > 0], 1),
    "retrieval": np.arange(72) % 3,
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_floors_of_every_kind(kind: str) -> None:
    label = LABELS[kind].astype(np.float64)
    if kind == "multilabel":
        label[::7, 1] = np.nan
    task = made_task(kind, label=label, floors={"mask_intensity": True, "voxels": "auto"})
    candidates = floor_candidates(task, made_arrays(72))
    assert list(candidates) == floor_names(task)
    for name, candidate in candidates.items():
        for scorer in candidate.scorers:
            score = evaluate(task, scorer, open_test=False).scores["val"]
            assert score.shape == (16, len(task.outputs)), name
            assert np.isfinite(score).all(), name
            if name == "radiomics" and kind in ("multiclass", "ordinal", "survival"):
                assert measure(task.label[task.rows("val")], score, task.card.metric) > 0.5
    protocols = {name: [each.estimator.name for each in candidate.scorers]
                 for name, candidate in candidates.items()}  # fmt: skip
    assert ("volume" in protocols) == (kind != "retrieval")
    assert ("svm" in protocols["voxels"]) == (kind not in ("survival", "retrieval"))


def test_a_mask_that_does_not_fit_names_itself(place: Any, tmp_path: Any) -> None:
    place.rewrite(lambda row: {**row, "mask": row["scan"].replace("scan.nii", "nothing.nii")})
    with pytest.raises(FeatureError, match=r"nothing\.nii"):
        arrays_of(place.task(), tmp_path)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    rows = (rng.normal(size=shape) * np.linspace(1, 9, shape[1]) + 5).astype(np.float32)
    others = rng.normal(size=(7, shape[1])) + 4
    transform = fit_pca(rows, num_components=6)
    reference = PCA(6, svd_solver="full").fit(rows.astype(np.float64))
    for each in (rows, others):
        found, expected = transform(each), reference.transform(each)
        signs = np.sign((found * expected).sum(axis=0))
        assert np.allclose(found, expected * signs, atol=1e-4)


def test_no_more_components_than_the_rows_span() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(9, 3)) @ rng.normal(size=(3, 50)) + 2
    assert fit_pca(rows, num_components=8)(rows).shape == (9, 3)
    assert fit_pca(np.ones((4, 50)), num_components=8)(rows).shape == (9, 0)


def test_components_know_training_rows_alone() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(20, 30))
    train = np.arange(12)
    poisoned = values.copy()
    poisoned[12:] = rng.normal(size=(8, 30)) * 1000
    before = pca_features(values, num_components=5).features(train)
    after = pca_features(poisoned, num_components=5).features(train)
    assert np.array_equal(before[:12], after[:12])


def test_the_last_fit_is_remembered_by_its_rows_not_their_number() -> None:
    rng = np.random.default_rng(3)
    features = pca_features(rng.normal(size=(20, 30)), num_components=3)
    first, second = features.features(np.arange(10)), features.features(np.arange(10, 20))
    assert not np.allclose(first, second)
    assert np.array_equal(features.features(np.arange(10)), first)


def test_cells_average_a_whole_field_of_view() -> None:
    assert cell_shares(8, 4) @ np.arange(8) == pytest.approx([0.5, 2.5, 4.5, 6.5])
    shares = cell_shares(7, 4)
    assert shares.sum(axis=1) == pytest.approx(np.ones(4))
    assert shares[0] == pytest.approx([4 / 7, 3 / 7, 0, 0, 0, 0, 0])
    assert cell_shares(2, 4) @ np.array([1.0, 5.0]) == pytest.approx([1, 1, 5, 5])


def test_an_axis_of_the_scan_stays_an_axis_of_the_grid(place: Any, tmp_path: Any) -> None:
    task = place.task(floors={})
    grid = arrays_of(task, tmp_path)["voxels"]["voxels"].reshape(-1, *[AUTO_CELLS] * 3)
    bright = grid[task.label == 1].mean(axis=0) - grid[task.label == 0].mean(axis=0)
    # The file's corner x < 4, y < 4, z < 3 of (11, 9, 7) in RAS is, in (D, H, W) of LPS, the low
    # end of D and the high ends of H and W.
    edges = np.round(AUTO_CELLS * np.array([3 / 7, 1 - 4 / 9, 1 - 4 / 11])).astype(int)
    corner = np.zeros(grid.shape[1:], bool)
    corner[: edges[0] - 1, edges[1] + 1 :, edges[2] + 1 :] = True
    assert bright[corner].min() > 0.1
    assert bright[corner].min() > bright[edges[0] + 2 :, : edges[1] - 2, : edges[2] - 2].max()


def test_a_table_is_encoded_by_its_training_rows() -> None:
    table = np.array(
        [[10.0, "a"], [None, "b"], [30.0, None], [99.0, "c"], [None, "a"]], dtype=object
    )
    values = table_features(table).features(np.array([0, 1, 2]))
    assert values.tolist() == [
        [-10.0, 0.0, 1.0, 0.0],
        [0.0, 1.0, 0.0, 1.0],
        [10.0, 0.0, 0.0, 0.0],
        [79.0, 0.0, 0.0, 0.0],  # "c" is in no training row
        [0.0, 1.0, 1.0, 0.0],
    ]


def test_a_column_that_is_empty_in_training_or_turns_to_text() -> None:
    table = np.array([[None], [None], [7.0], ["late"]], dtype=object)
    assert fit_table(table[:2])(table).tolist() == [[0, 1], [0, 1], [7, 0], [0, 1]]


def test_clinical_columns_beside_measurements(place: Any) -> None:
    task = place.task()
    table = clinical_table(task, ["age", "sex"])
    assert table.shape == (72, 2)
    both = table_features(beside(table, np.arange(144.0).reshape(72, 2)))
    assert both.features(task.rows("train")).shape == (
        72,
        1 + 1 + 2 + 2,
    )  # age with a flag, sex, two numbers


def test_the_constant_of_each_kind() -> None:
    train = np.array([[True, True, True, False], [True, False, False, False]])
    label = np.array([1.0, 0.0, 0.0, 1.0])
    shares = constant("binary", num_outputs=1).predict(None, label, train, [{}, {}])
    assert shares[:, :, 0] == pytest.approx(np.repeat([[1 / 3], [1.0]], 4, axis=1))
    classes = constant("multiclass", num_outputs=3).predict(None, label, train, [{}, {}])
    assert classes[0] == pytest.approx(np.tile([2 / 3, 1 / 3, 0], (4, 1)))
    several = np.array([[1.0, np.nan], [0.0, 1.0], [np.nan, 0.0], [1.0, 1.0]])
    labels = constant("multilabel", num_outputs=2).predict(None, several, train, [{}, {}])
    assert labels[0, 0] == pytest.approx([0.5, 0.5])
    assert labels[1, 0] == pytest.approx([1.0, 0.0])  # nobody is known: no positives are expected
    risk = constant("survival", num_outputs=1).predict(None, several, train, [{}, {}])
    assert risk.shape == (2, 4, 1)
    assert not risk.any()


def _two_moons(n: int = 80) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, 3))
    label = (np.hypot(features[:, 0], features[:, 1]) > 1.1).astype(float)
    train = np.zeros((1, n), bool)
    train[0, : n // 2] = True
    return features, label, train


def test_the_machine_is_scikit_learns() -> None:
    from sklearn.svm import SVC

    features, label, train = _two_moons()
    score = rbf_svm("binary", num_outputs=1).predict(
        features, label, train, [{"C": 10.0, "gamma": 1.0}]
    )
    inside = features[train[0]]
    scaled = (features - inside.mean(0)) / inside.std()
    margin = SVC(C=10.0, gamma=1 / 3).fit(scaled[train[0]], label[train[0]])
    expected = 1 / (1 + np.exp(-margin.decision_function(scaled)))
    assert score[0, :, 0] == pytest.approx(expected)
    assert measure(label[~train[0]], score[0, ~train[0]], "auroc") > 0.9  # no line does this


def test_probabilities_of_classes_and_levels_add_up() -> None:
    features, _, train = _two_moons()
    level = np.digitize(features[:, 0] ** 2, [0.2, 1.0]).astype(float)
    for kind in ("multiclass", "ordinal"):
        score = rbf_svm(kind, num_outputs=3).predict(
            features, level, train, [{"C": 10.0, "gamma": 1.0}]
        )[0]
        assert score.sum(axis=1) == pytest.approx(np.ones(80))
        assert score.min() >= 0
        held_out = ~train[0]
        assert (score[held_out].argmax(1) == level[held_out]).mean() > 0.6


def test_a_label_without_one_side_in_training_has_one_score() -> None:
    features, label, train = _two_moons()
    both = np.stack([label, np.ones(80)], axis=1)
    both[::3, 0] = np.nan
    score = rbf_svm("multilabel", num_outputs=2).predict(
        features, both, train, [{"C": 1.0, "gamma": 1.0}]
    )[0]
    assert np.isfinite(score).all()
    assert len(np.unique(score[:, 1])) == 1
