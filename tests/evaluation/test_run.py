"""The whole command on a tiny cohort, with published toy backbones."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.backbones.embedder import EmbedderError
from evaluation.leakage.gate import LeakageError
from evaluation.run import main
from evaluation.scoring.config import EvaluationConfig
from evaluation.scoring.inputs import ROOT, code_files, load_inputs
from evaluation.storing import store
from foundation.metrics.by_name import measure
from foundation.tasks.labels import TaskError
from recipes.load import parse
from shards.codec import source_digest
from shards.pseudonym import load_key
from shards.scan import read_scan


@pytest.fixture
def config(place: Any) -> Callable[..., EvaluationConfig]:
    def build(**changes: Any) -> EvaluationConfig:
        tree = {
            "name": "tiny",
            "title": "Tiny",
            "data_root": str(place.data),
            "out": str(place.root / "stores"),
            "pseudonym_key": str(place.key_path),
            "backbones": {"mae": str(place.root / "runs" / "mae" / "backbone")},
            "random_init": {"seeds": [0]},
            "tasks": [str(place.card())],
            "few_shot": {"shots": [1, 4, 32], "fractions": [0.5], "num_draws": 5},
            "num_bootstraps": 50,
            "num_permutations": 50,
            "spread": 3,
            "protocols": ["linear", "knn"],
            "ledger": str(place.root / "openings.jsonl"),
            "device": "cpu",
            **changes,
        }
        return parse(tree, EvaluationConfig, where="test")

    return build


def _cards(place: Any) -> list[str]:
    return [
        str(place.card()),
        str(place.card(name="size", kind="regression", label={"column": "size"})),
        str(place.card(name="folds", protocol={"repeated_cv": {"folds": 3, "repeats": 2}})),
    ]


def test_the_whole_command(place: Any, config: Any, capsys: Any) -> None:
    folder = place.backbone("mae")
    log = [{"step": step, "loss": 1 / step, "wall_s": step / 10} for step in (1, 2, 3)]
    (folder.parent / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (folder.parent / "pictures").mkdir()
    np.savez(folder.parent / "pictures" / "reconstructions.npz", original=np.zeros((1, 3, 4), "f4"))
    main(config(tasks=_cards(place)))
    where = place.root / "stores" / "tiny"
    run = store.read_run(where)
    assert (run["split"], run["date"]) == ("val", "2026-02-03")
    assert run["tasks"]["bright"]["n"] == {"train": 40, "val": 16, "test": 16}
    assert run["tasks"]["bright"]["positives"] == {"train": 20, "val": 8, "test": 8}
    assert run["tasks"]["folds"]["n"] == {"cv": 72}
    assert run["models"]["mae"]["kind"] == "backbone"
    assert "subjects" not in run["models"]["mae"]["provenance"]
    assert {"random_mae_0", "constant", "voxels", "clinical", "clinical_mask"} < set(run["models"])
    rows = store.read_predictions(where, "bright")
    assert set(rows["split"]) == {"val"}
    assert set(rows["subject"]) == {
        place.pseudonym(row["subject"]) for row in place.rows() if row["split"] == "val"
    }
    pairs = set(zip(rows["model"], rows["protocol"], strict=True))
    assert {("mae", "linear"), ("mae", "knn"), ("voxels", "svm"), ("constant", "constant")} < pairs
    voxels = rows[(rows["model"] == "voxels") & (rows["protocol"] == "linear")]
    assert measure(voxels["label"], voxels["score"], "auroc") > 0.9
    assert set(store.read_predictions(where, "folds")["split"]) == {"cv"}
    drawn = store.read_few_shot(where, "bright")
    assert set(zip(drawn["x"], drawn["unit"], strict=True)) == {
        (1, "shots"), (4, "shots"), (0.5, "fraction")
    }  # fmt: skip
    assert set(store.read_few_shot(where, "size")["unit"]) == {"fraction"}
    assert store.read_few_shot(where, "folds") is None
    reasons = {(each["task"], each["reason"].split(":")[0]) for each in run["skipped"]}
    assert ("bright", "32 shots") in reasons
    assert (
        "folds",
        "few-shot draws need a training split; this task is cross-validated",
    ) in reasons
    assert store.read_curves(where)["mae"]["loss"] == [1.0, 0.5, 1 / 3]
    assert store.read_pictures(where, "mae_reconstructions")["original"].shape == (1, 3, 4)
    assert store.read_pictures(where, "cohort")["bright__1__0"].shape == (9, 11)
    assert store.read_leakage(where)["passed"] is True
    assert not (place.root / "openings.jsonl").exists()
    assert "stored in" in capsys.readouterr().out
    for path in where.rglob("*"):
        assert path.is_dir() or b"patient" not in path.read_bytes(), path


def test_a_second_run_is_up_to_date_and_a_changed_backbone_is_not(
    place: Any, config: Any, capsys: Any
) -> None:
    place.backbone("mae")
    main(config())
    run = place.root / "stores" / "tiny" / "run.json"
    before = run.stat().st_mtime_ns
    capsys.readouterr()
    main(config())
    assert "up to date" in capsys.readouterr().out
    assert run.stat().st_mtime_ns == before
    place.backbone("mae", steps=2)
    main(config())
    assert run.stat().st_mtime_ns != before


def test_the_same_inputs_give_the_same_bytes(place: Any, config: Any) -> None:
    place.backbone("mae")
    main(config())
    main(config(name="twin"))
    one, two = (place.root / "stores" / name for name in ("tiny", "twin"))
    for path in sorted(one.rglob("*")):
        if path.is_file() and path.name != "run.json":
            assert path.read_bytes() == (two / path.relative_to(one)).read_bytes(), path


def test_opening_the_test_split_once(place: Any, config: Any, capsys: Any) -> None:
    place.backbone("mae")
    main(config())
    where, ledger = place.root / "stores" / "tiny", place.root / "openings.jsonl"
    closed = store.read_run(where)
    main(config(test="open"))
    opened = store.read_run(where)
    assert opened["split"] == "test"
    chosen = [[each["chosen"] for each in run["selections"]] for run in (closed, opened)]
    assert chosen[0] == chosen[1]
    (line,) = [json.loads(text) for text in ledger.read_text().splitlines()]
    assert line["recipe_digest"] == opened["recipe_digest"] == closed["recipe_digest"]
    first = line["scores"]["bright"][0]
    assert set(first) == {"model", "protocol", "metric", "score", "interval", "n"}
    assert first["n"] == 16
    assert set(store.read_predictions(where, "bright")["split"]) == {"val", "test"}
    main(config())
    capsys.readouterr()
    main(config(test="open"))
    assert f"was opened on {line['date']}" in capsys.readouterr().out
    assert len(ledger.read_text().splitlines()) == 1


def test_a_run_that_dies_has_opened_the_test_split(
    place: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = place.root / "features.csv"
    rows = [f"{row['subject']},{number}" for number, row in enumerate(place.rows())]
    table.write_text("\n".join(["subject,first", *rows]))
    few = place.card(floors={"volume": None, "radiomics": None, "voxels": None})
    opened = config(
        test="open",
        tasks=[str(few)],
        backbones={"it": {"features": str(table)}},
        protocols=["linear"],
        few_shot=None,
    )

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("evaluation.run.store_task", die)
        with pytest.raises(KeyboardInterrupt):
            main(opened)
    ledger = place.root / "openings.jsonl"
    assert json.loads(ledger.read_text())["scores"] is None
    main(opened)
    assert json.loads(ledger.read_text())["scores"]["bright"][0]["n"] == 16


def test_another_key_makes_everything_again(place: Any, config: Any) -> None:
    """A pseudonym is of a key, and so is the proof that a backbone has not seen a subject."""
    place.backbone("mae")
    before = load_inputs(config(), device="cpu")
    place.key_path.unlink()
    load_key(place.key_path)
    after = load_inputs(config(), device="cpu")
    assert before.recipe_digest == after.recipe_digest
    assert before.inputs_digest != after.inputs_digest
    one, two = (each.made_from(each.tasks[0]) for each in (before, after))
    assert all(one[model] != two[model] for model in one)


def test_the_code_that_scores_are_made_by() -> None:
    scoring, statistics = (
        {path.relative_to(ROOT).as_posix() for path in files} for files in code_files()
    )
    own = {f"evaluation/{name}" for name in ("probing/linear.py", "storing/rows.py")}
    assert own | {"foundation/metrics/rows.py", "foundation/tasks/labels.py"} <= scoring
    own = {"scoring/statistics.py", "storing/rows.py", "statistics/coverage.json"}
    assert {f"evaluation/{name}" for name in own} | {"foundation/metrics/binary.py"} <= statistics
    others = {"run.py", "bench/probes.py", "reporting/plots.py"}
    assert not scoring & {f"evaluation/{name}" for name in others}


def test_a_backbone_that_saw_a_scored_subject_stops_the_run(place: Any, config: Any) -> None:
    tested = next(row for row in place.rows() if row["split"] == "test")
    place.backbone("mae", subjects=[place.pseudonym(tested["subject"])])
    with pytest.raises(LeakageError, match="scored subjects are in the pretraining shards"):
        main(config())
    where = place.root / "stores" / "tiny"
    assert json.loads((where / "leakage_failed.json").read_text())["passed"] is False
    assert not (where / "run.json").exists()
    assert not (where / "predictions").exists()


def test_a_backbone_that_saw_a_scored_scan_stops_the_run(place: Any, config: Any) -> None:
    tested = next(row for row in place.rows() if row["split"] == "val")
    scan = read_scan(place.data / tested["scan"], modality="MR")
    place.backbone("mae", source_digests=[source_digest(scan)])
    with pytest.raises(LeakageError, match="voxels of a pretraining scan"):
        main(config())


def test_a_copied_scan_across_splits_stops_the_run(place: Any, config: Any) -> None:
    place.backbone("mae")
    scans = place.data / "scans"
    (scans / "011_scan.nii").write_bytes((scans / "000_scan.nii").read_bytes())
    with pytest.raises(LeakageError, match="same voxels in two splits"):
        main(config())


def test_a_missing_key_cannot_prove_anything(place: Any, config: Any) -> None:
    place.backbone("mae")
    with pytest.raises(ValueError, match="the key the shards were made with"):
        main(config(pseudonym_key=str(place.root / "other_key")))


def test_what_a_user_can_get_wrong_is_one_line(place: Any, config: Any) -> None:
    with pytest.raises(EmbedderError, match="is no folder"):
        main(config())
    place.backbone("mae")
    with pytest.raises(ValueError, match=r"backbones\.volume: this is the name of a floor"):
        main(config(backbones={"volume": str(place.root / "runs" / "mae" / "backbone")}))
    with pytest.raises(ValueError, match="two cards are named 'bright'"):
        main(config(tasks=[str(place.card()), str(place.card())]))
    place.rewrite(lambda row: {**row, "bright": "0"} if row["split"] == "train" else row)
    with pytest.raises(TaskError, match="train"):
        main(config())


def test_a_split_of_one_class_has_no_score_but_a_reason(place: Any, config: Any) -> None:
    place.backbone("mae")
    place.rewrite(lambda row: {**row, "bright": "0"} if row["split"] == "test" else row)
    main(config(test="open", protocols=["linear"], few_shot=None))
    found = store.read_statistics(place.root / "stores" / "tiny", "bright")
    score = found["models"][0]["scores"]["auroc"]
    assert (score["value"], score["low"]) == (None, None)
    assert "both classes" in score["reason"]
    line = json.loads((place.root / "openings.jsonl").read_text())
    assert line["scores"]["bright"][0]["score"] is None


def test_the_command_ends_in_one_line(place: Any, project: Path) -> None:
    import subprocess

    recipe = place.write("evaluation", {"name": "x", "titel": "X"})
    words = [sys.executable, "-m", "evaluation.run", str(recipe)]
    ended = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "did you mean 'title'" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
