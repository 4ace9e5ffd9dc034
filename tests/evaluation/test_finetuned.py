"""Fine-tunings as rows: their parts, what their networks say of scans, out-of-fold predictions."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from evaluation.backbones.entry import Entry
from evaluation.extraction.sharing import ALONE
from evaluation.finetuned.lines import load_lines
from evaluation.finetuned.outputs import Outputs
from evaluation.finetuned.parts import FinetunedError, read_parts
from evaluation.finetuned.scores import fill_outputs, read_out_of_fold, score_trained
from evaluation.leakage.finetuning import check_finetuning
from foundation.tasks.masks import dice, overlap
from shards.scan import read_scan
from tests.evaluation.finetuned_parts import Corner, write_out_of_fold, write_part

SEGMENTED = {"kind": "segmentation", "label": {"classes": {"corner": 1}}, "floors": {}}
FOLDS = {"protocol": {"repeated_cv": {"folds": 3, "repeats": 2}}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "ft"


def _networks(monkeypatch: pytest.MonkeyPatch, *networks: Any) -> list[Path]:
    """Each load gives the next network, the last one for ever; what was loaded is listed."""
    loaded: list[Path] = []

    def load(folder: Path, *, device: str) -> Any:
        assert device == "cpu"
        loaded.append(folder)
        return networks[min(len(loaded), len(networks)) - 1]

    monkeypatch.setattr("evaluation.finetuned.outputs.load_network", load)
    return loaded


def test_parts_by_task_and_share(place: Any, folder: Path) -> None:
    task, other = place.task(), place.task(name="another")
    for fraction in (0.2, 1.0, 0.05):
        write_part(folder, task, fraction=fraction, begun="mae", provenance={"finished": "2026-03"})
    write_part(folder, other, begun="mae")
    parts = read_parts(folder)
    assert [(part.task, part.fraction) for part in parts] == [
        ("another", 1.0), ("bright", 1.0), ("bright", 0.2), ("bright", 0.05)
    ]  # fmt: skip
    assert [part.num_train for part in parts] == [40, 40, 8, 2]
    assert len({part.digest for part in parts}) == 4
    whole = parts[1]
    assert (whole.is_whole, whole.is_scratch, whole.finished) == (True, False, "2026-03")
    before = whole.digest
    (whole.model / "SHA256SUMS").write_text("other")
    assert whole.digest != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0}, "fraction 0 is not above 0"),
        ({"fraction": 1.5}, "fraction 1.5 is not"),
        ({"tune": None}, "'tune' is missing"),
        ({"num_train": "many"}, "damaged"),
    ],
)
def test_a_damaged_part_is_named(
    place: Any, folder: Path, changes: dict[str, Any], message: str
) -> None:
    part = write_part(folder, place.task())
    path = write_part(folder, place.task(), **{"fraction": 1.0, **changes}).joinpath("part.json")
    with pytest.raises(FinetunedError, match=message) as caught:
        read_parts(folder)
    assert str(path) in str(caught.value)
    (part / "part.json").write_text("{")
    path.write_text("{")
    with pytest.raises(FinetunedError, match="cannot be read"):
        read_parts(folder)


def test_what_is_no_fine_tuning(place: Any, folder: Path) -> None:
    with pytest.raises(FinetunedError, match=r"no such folder.*foundation\.finetune"):
        read_parts(folder)
    folder.mkdir(parents=True)
    with pytest.raises(FinetunedError, match="no finished part here"):
        read_parts(folder)
    task = place.task()
    write_part(folder, task)
    shutil.copytree(folder / "bright", folder / "again")
    with pytest.raises(FinetunedError, match="again and bright are both of task bright at 100%"):
        read_parts(folder)
    (folder / "again" / "model" / "SHA256SUMS").unlink()
    assert [part.folder.name for part in read_parts(folder)] == ["bright"]
    write_part(folder, task, fraction=0.5, begun="mae")
    with pytest.raises(FinetunedError, match="bright began from scratch and bright_50 from mae"):
        read_parts(folder)


def test_lines_are_rows_of_the_tasks_they_fit(place: Any, folder: Path) -> None:
    task, size = place.task(), place.task(name="size", kind="regression", label={"column": "size"})
    seen = {"subjects": ["one"], "source_digests": ["ab"]}
    write_part(folder, task, begun="mae", provenance=seen)
    write_part(folder, size, begun="mae", fraction=0.2, provenance={"subjects": ["two"]})
    scratch = folder.parent / "scratch"
    write_part(scratch, task, trained=["x"])
    found = load_lines({"tuned": folder, "scratch": scratch}, [task, size], backbones={})
    assert {name: entry.title for name, entry in found.entries.items()} == {
        "tuned": "fine-tuned mae", "scratch": "supervised from scratch"
    }  # fmt: skip
    assert {entry.kind for entry in found.entries.values()} == {"trained"}
    assert found.entries["tuned"].provenance["initialised_from"] == {"name": "mae"}
    # Of the digests one part tells nothing, so nothing is known of the line.
    assert found.entries["tuned"].seen == {"subjects": ["one", "two"]}
    assert found.entries["scratch"].seen == {
        "subjects": [], "source_digests": [], "perceptual_hashes": []
    }  # fmt: skip
    assert set(found.of(task)) == {"tuned", "scratch"}
    assert set(found.of(size)) == {"tuned"}
    skipped = [one for each in (task, size) for one in found.skipped(each)]
    reasons = {(one["task"], one["model"]): one["reason"] for one in skipped}
    assert reasons == {
        ("size", "tuned"): "trained on 20% of the training subjects only, not on all of them",
        ("size", "scratch"): "this fine-tuning has no finished part for this task",
    }


def test_undisclosed_pretraining_stays_unknown(place: Any, folder: Path) -> None:
    task = place.task()
    write_part(folder, task, begun="foreign")
    found = load_lines({"tuned": folder}, [task], backbones={})
    assert found.entries["tuned"].seen is None
    assert found.entries_of(task)["tuned"].seen is None


def test_who_was_trained_on_was_not_seen_in_pretraining(place: Any, folder: Path) -> None:
    """A network's provenance lists both; with a split the trained ones are never scored."""
    task, folds = place.task(), place.task(name="folds", **FOLDS)
    both = {"subjects": [*task.subjects[:40], "other"], "source_digests": ["ab"]}
    write_part(folder, task, begun="runs/demo_mae/backbone", provenance=both)
    found = load_lines({"tuned": folder}, [task], backbones={})
    assert found.entries["tuned"].title == "fine-tuned demo_mae"
    assert found.entries_of(task)["tuned"].seen == {"subjects": ["other"], "source_digests": ["ab"]}
    # Where everybody is scored, nobody can tell the two apart.
    write_part(folder, folds, begun="runs/demo_mae/backbone", provenance=both, folds=[["x"]])
    found = load_lines({"tuned": folder}, [task, folds], backbones={})
    assert found.entries_of(folds)["tuned"].seen is None
    assert found.entries_of(task)["tuned"].seen is not None


def test_a_line_has_seen_what_its_backbone_has(place: Any, folder: Path) -> None:
    folds = place.task(name="folds", **FOLDS)
    write_part(folder, folds, begun="runs/x/backbone", folds=[["x"]])
    seen = {"subjects": ["one"], "source_digests": []}
    backbone = Entry(
        kind="backbone", title="mae", description="", digest="ab" * 32, provenance={}, seen=seen,
        architecture=None, embedder=None,
    )  # fmt: skip
    for digest, expected in (("ab" * 32, seen), ("cd" * 32, None)):
        known = {"mae": replace(backbone, digest=digest)}
        found = load_lines({"tuned": folder}, [folds], backbones=known)
        assert found.entries_of(folds)["tuned"].seen == expected
        assert found.entries["tuned"].title == f"fine-tuned {'mae' if expected else 'x'}"


def test_two_lines_of_one_title_are_told_apart(place: Any, folder: Path) -> None:
    task = place.task()
    for name in ("one", "two"):
        write_part(folder / name, task)
    found = load_lines({name: folder / name for name in ("one", "two")}, [task], backbones={})
    titles = [entry.title for entry in found.entries.values()]
    assert titles == ["supervised from scratch", "supervised from scratch (two)"]


def test_another_version_of_the_task_is_refused(place: Any, folder: Path) -> None:
    write_part(folder, place.task())
    place.rewrite(lambda row: {**row, "age": "44"})
    with pytest.raises(FinetunedError, match=r"finetuned\.ft: .*another version of task bright"):
        load_lines({"ft": folder}, [place.task()], backbones={})


def test_scores_are_of_the_open_splits_and_kept(
    place: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = place.task()
    write_part(folder, task, weights="all")
    write_part(folder, task, fraction=0.2, weights="few")
    network, weak = Corner(task), Corner(task, weight=-1.0)
    loaded = _networks(monkeypatch, network, weak)
    parts = load_lines({"ft": folder}, [task], backbones={}).of(task)
    where: dict[str, Any] = {"folder": tmp_path / "features"}
    fill_outputs(task, parts, open_test=False, share=ALONE, **where)
    assert (len(loaded), len(network.shown), len(weak.shown)) == (2, 16, 16)
    found = score_trained(task, parts, open_test=False, device="cpu", **where)
    assert len(loaded) == 2
    table = found.predictions
    assert (set(table["model"]), set(table["protocol"])) == ({"ft"}, {"fine_tuned"})
    val = task.rows("val")
    assert sorted(table["subject"]) == sorted(task.subjects[row] for row in val)
    ordered = table.set_index("subject").loc[[task.subjects[row] for row in val]]
    expected = [
        Corner(task).score_scan(read_scan(task.scans[row][0].scan, modality="MR"))[0] for row in val
    ]
    assert ordered["score"].tolist() == pytest.approx(expected)
    assert ordered["label"].tolist() == task.label[val].tolist()
    by_share = found.fractions.groupby("fraction")["score"].mean()
    assert list(by_share.index) == [0.2, 1.0]
    assert by_share[0.2] != by_share[1.0]
    assert [one["num_train"] for one in found.trainings] == [40, 8]
    fill_outputs(task, parts, open_test=True, share=ALONE, **where)
    assert len(network.shown) + len(weak.shown) == 64
    opened = score_trained(task, parts, open_test=True, device="cpu", **where)
    assert opened.predictions["split"].value_counts().to_dict() == {"val": 16, "test": 16}


def test_another_network_is_asked_anew_and_a_damaged_file_too(
    place: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = place.task()
    write_part(folder, task)
    loaded = _networks(monkeypatch, Corner(task))
    parts = load_lines({"ft": folder}, [task], backbones={}).of(task)

    def outputs() -> Outputs:
        return Outputs(task, parts["ft"][0], name="ft", folder=tmp_path / "kept", device="cpu")

    outputs().fill(["val"], ALONE)
    before = outputs().scores("val")
    assert len(loaded) == 1
    next((tmp_path / "kept").rglob("*.npz")).write_bytes(b"torn")
    assert outputs().scores("val").tolist() == before.tolist()
    assert len(loaded) == 2
    write_part(folder, task, weights="others")
    outputs().fill(["val"], ALONE)
    assert len(loaded) == 3


def test_several_scans_of_a_subject_are_averaged(
    place: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = place.rows()
    first, second = [row for row in rows if row["split"] == "val" and row["bright"] == "1"][:2]
    merged = {second["subject"]: first["subject"]}
    place.rewrite(lambda row: {**row, "subject": merged.get(row["subject"], row["subject"])})
    task = place.task()
    write_part(folder, task)
    _networks(monkeypatch, Corner(task))
    (part,) = read_parts(folder)
    found = Outputs(task, part, name="ft", folder=tmp_path / "kept", device="cpu").scores("val")
    scans = [read_scan(place.data / row["scan"], modality="MR") for row in (first, second)]
    expected = np.mean([Corner(task).score_scan(scan)[0] for scan in scans])
    at = [task.subjects[row] for row in task.rows("val")].index(place.pseudonym(first["subject"]))
    assert found.shape == (15, 1)
    assert found[at, 0] == pytest.approx(expected)


def test_a_network_of_another_task_is_refused(
    place: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = place.task()
    write_part(folder, task)
    network = Corner(task)
    network.target.outputs = ("first", "second")
    _networks(monkeypatch, network)
    (part,) = read_parts(folder)
    outputs = Outputs(task, part, name="ft", folder=tmp_path / "kept", device="cpu")
    with pytest.raises(FinetunedError, match=r"predicts binary of first, second, task bright is"):
        outputs.scores("val")
    (part.model / "SHA256SUMS").unlink()
    outputs = Outputs(task, part, name="ft", folder=tmp_path / "kept", device="cpu")
    with pytest.raises(FinetunedError, match="no network here"):
        outputs.scores("val")


def test_dice_of_a_segmentation_on_the_scans_own_grid(
    place: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = place.task(name="corner", **SEGMENTED)
    write_part(folder, task)
    network = Corner(task)
    _networks(monkeypatch, network)
    parts = load_lines({"ft": folder}, [task], backbones={}).of(task)
    where: dict[str, Any] = {"folder": tmp_path / "features"}
    masks = {row.mask: Path(row.mask).rename(f"{row.mask}.away") for row in task.candidates
             if row.mask is not None}  # fmt: skip
    # Masks are labels: the network is applied without them, and they are read for the scores.
    monkeypatch.setattr("evaluation.extraction.features.fingerprint", str)
    fill_outputs(task, parts, open_test=True, share=ALONE, **where)
    assert len(network.shown) == 32
    for name, away in masks.items():
        away.rename(name)
    found = score_trained(task, parts, open_test=False, device="cpu", **where)
    val = task.rows("val")
    expected = []
    for row in val:
        (scan,) = task.scans[row]
        voxels = read_scan(scan.scan, modality="MR").voxels
        assert scan.mask is not None
        mask = (read_scan(scan.mask, modality="OT").voxels == 1).astype(np.uint8)
        expected.append(dice(overlap((voxels > 140).astype(np.uint8), mask, num_classes=1))[0])
    ordered = found.predictions.set_index("subject").loc[[task.subjects[row] for row in val]]
    assert ordered["score"].tolist() == pytest.approx(expected)
    assert 0 < np.mean(expected) < 1


def test_out_of_fold_predictions_are_of_exactly_the_subjects(place: Any, folder: Path) -> None:
    task = place.task(name="folds", **FOLDS)
    part = write_part(folder, task)
    fold, scores = np.arange(72) % 3, np.linspace(0, 1, 72)[:, None]
    write_out_of_fold(part, task, scores, fold)
    (read,) = read_parts(folder)
    found = read_out_of_fold(task, read)
    assert found.scores.tolist() == scores.tolist()
    assert found.fold.tolist() == fold.tolist()
    lines = load_lines({"ft": folder}, [task], backbones={})
    fill_outputs(task, lines.of(task), open_test=True, folder=folder, share=ALONE)
    scored = score_trained(task, lines.of(task), open_test=True, folder=folder, device="cpu")
    assert set(scored.predictions["split"]) == {"cv"}
    assert len(scored.folds["ft", "fine_tuned"]) == 3
    path = part / "predictions.csv"
    whole = path.read_text()
    for text, message in [
        ("\n".join(whole.splitlines()[:-1]), "1 of 72 are missing, 0 are of others"),
        (whole.replace(task.subjects[3], "stranger"), "1 of 72 are missing, 1 are of others"),
        (whole + whole.splitlines()[1] + "\n", "1 are there twice"),
        (whole.replace("score_0", "score"), "score_0"),
        (whole.replace(",0.0\n", ",\n"), "no number"),
    ]:
        path.write_text(text)
        with pytest.raises(FinetunedError, match=message):
            read_out_of_fold(task, read)


def test_a_cohort_without_folds_has_no_row(place: Any, folder: Path) -> None:
    task = place.task(name="folds", **FOLDS)
    write_part(folder, task, folds=[])
    found = load_lines({"ft": folder}, [task], backbones={})
    assert found.of(task) == {}
    (skipped,) = found.skipped(task)
    assert skipped["reason"] == "trained without folds, so that nobody was held out"


def test_folds_of_another_number_have_no_interval(place: Any, folder: Path) -> None:
    task = place.task(name="folds", **FOLDS)
    part = write_part(folder, task)
    write_out_of_fold(part, task, np.linspace(0, 1, 72)[:, None], np.arange(72) % 4)
    lines = load_lines({"ft": folder}, [task], backbones={})
    found = score_trained(task, lines.of(task), open_test=False, folder=folder, device="cpu")
    assert found.folds == {}


def test_empty_dice_of_a_subject_without_the_class(place: Any, folder: Path) -> None:
    task = place.task(name="corner", **SEGMENTED, **FOLDS)
    part = write_part(folder, task)
    scores = np.full((72, 1), 0.5)
    scores[3] = np.nan
    write_out_of_fold(part, task, scores, np.arange(72) % 3)
    (read,) = read_parts(folder)
    found = read_out_of_fold(task, read).scores
    assert np.isnan(found[3, 0])
    assert np.isfinite(np.delete(found, 3)).all()


def test_a_scored_subject_that_was_trained_on_fails(place: Any, folder: Path) -> None:
    task = place.task()
    write_part(folder, task)
    (check,) = check_finetuning(task, {"ft": read_parts(folder)})
    assert (check.status, check.model, check.count) == ("passed", "ft", 0)
    tested = task.subjects[task.rows("test")[0]]
    write_part(folder, task, fraction=0.2, trained=[task.subjects[0], tested])
    (check,) = check_finetuning(task, {"ft": read_parts(folder)})
    assert (check.status, check.count) == ("failed", 1)
    assert "of 32 scored subjects" in check.detail


def test_a_fold_that_was_trained_on_its_own_subject_fails(place: Any, folder: Path) -> None:
    task = place.task(name="folds", **FOLDS)
    part = write_part(folder, task)
    fold = np.arange(72) % 3
    write_out_of_fold(part, task, np.linspace(0, 1, 72)[:, None], fold)
    (check,) = check_finetuning(task, {"ft": read_parts(folder)})
    assert check.status == "unknown"
    assert "folds" in check.reason
    trained = [[task.subjects[row] for row in np.flatnonzero(fold != each)] for each in range(3)]
    write_part(folder, task, folds=trained)
    (check,) = check_finetuning(task, {"ft": read_parts(folder)})
    assert (check.status, check.count) == ("passed", 0)
    trained[1].append(task.subjects[1])
    write_part(folder, task, folds=trained)
    (check,) = check_finetuning(task, {"ft": read_parts(folder)})
    assert (check.status, check.count) == ("failed", 1)


def test_tables_have_the_columns_of_a_store(place: Any, folder: Path) -> None:
    task = place.task()
    found = score_trained(task, {}, open_test=False, folder=folder, device="cpu")
    assert isinstance(found.predictions, pandas.DataFrame)
    assert (len(found.predictions), found.trainings) == (0, [])
