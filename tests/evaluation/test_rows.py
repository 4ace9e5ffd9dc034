import numpy as np
import pandas
import pytest

from evaluation.storing.rows import matrices, to_rows
from evaluation.storing.store import PREDICTION_COLUMNS

SUBJECTS = ("c", "a", "b")
COLUMNS = [name for name in PREDICTION_COLUMNS if name not in ("model", "protocol", "split")]
LABELS = {
    "binary": np.array([1.0, 0.0, 1.0]),
    "multiclass": np.array([2.0, 0.0, 1.0]),
    "multilabel": np.array([[1.0, np.nan], [0.0, 1.0], [np.nan, 0.0]]),
    "survival": np.array([[30.0, 1.0], [400.0, 0.0], [7.0, 1.0]]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_matrices_come_back_in_the_order_of_subjects(kind: str) -> None:
    label = LABELS[kind]
    width = {"binary": 1, "multiclass": 3, "multilabel": 2, "survival": 1}[kind]
    score = np.arange(3.0 * width).reshape(3, width) / 7
    rows = pandas.DataFrame(to_rows(SUBJECTS, label, score, kind=kind), columns=COLUMNS)
    found = matrices(rows.sample(frac=1, random_state=0), kind=kind)
    order = [1, 2, 0]
    assert found.subjects == ("a", "b", "c")
    np.testing.assert_array_equal(found.label, label[order])
    np.testing.assert_array_equal(found.score, score[order])


def test_a_lost_output_is_told() -> None:
    score = np.ones((3, 2))
    rows = pandas.DataFrame(
        to_rows(SUBJECTS, LABELS["multiclass"], score, kind="multiclass"), columns=COLUMNS
    )
    for lost in range(len(rows)):
        with pytest.raises(ValueError, match="not all of"):
            matrices(rows.drop(index=lost), kind="multiclass")
