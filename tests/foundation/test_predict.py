"""One command from raw scans to predictions and masks in their own space; killed, it goes on."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet
import pytest

from foundation import predict
from foundation.embedding.inputs import JobError
from foundation.embedding.job import ScansJob
from foundation.finetuning import mask_space
from foundation.finetuning.calibration import Calibration
from foundation.model import load_model
from foundation.predicting import scans
from foundation.predicting.cells import cells_of
from foundation.predicting.scans import predict_scans
from shards.pseudonym import load_key, pseudonym
from shards.scan import ScanError, read_scan
from tests.foundation.tuned_models import TARGETS, write_model

SEEN = {
    "name": "toy",
    "digest": "0" * 64,
    "num_samples": 2,
    "num_subjects": 2,
    "sources": [],
    "modalities": {"CT": 2},
    "spacing_mm": {"low": [2.0, 1.0, 1.0], "high": [4.0, 2.0, 2.0]},
}
MINE = Calibration(fitted_on="validation", num_subjects=50, temperatures=(2.0,), limits=(0.6,))
HALF = Calibration(
    fitted_on="validation", num_subjects=50, temperatures=(None, 2.0), limits=(None, 0.6)
)
AFFINE = np.array([[0, -1.5, 0, 7.0], [1.0, 0, 0, -3.0], [0, 0, 3.0, 2.0], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(folder / kind, kind) for kind in TARGETS}


def write_scan(path: Path, *, seed: int = 0, affine: np.ndarray = AFFINE) -> None:
    voxels = np.random.default_rng(seed).integers(-500, 500, (18, 17, 9)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scans in folders, and a damaged one."""
    found = tmp_path / "scans"
    write_scan(found / "b/second.nii.gz", seed=1)
    write_scan(found / "a/first.nii", seed=2)
    content = (found / "b/second.nii.gz").read_bytes()
    (found / "b/broken.nii.gz").write_bytes(content[: len(content) // 2])
    return found


def rows_of(out: Path) -> list[dict[str, str]]:
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def ledger(out: Path) -> list[dict[str, Any]]:
    text = out.with_name(f"{out.stem}.ledger.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind != "segmentation"])
def test_a_row_tells_what_the_model_tells(
    models: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "tables/p.csv"
    predict_scans(ScansJob(str(models[kind]), folder, out, modality="CT"))
    said = capsys.readouterr()
    assert "failed b/broken.nii.gz: not a readable NIfTI file" in said.err
    assert said.out.splitlines()[-1] == f"predictions: {out} (2 of 3 scans, 1 failed)"
    rows = rows_of(out)
    assert [row["scan"] for row in rows] == ["a/first.nii", "b/second.nii.gz"]
    model = load_model(models[kind])
    for row in rows:
        cells = model.predict(folder / row["scan"], modality="CT").cells
        assert list(row) == ["scan", "subject", "sequence", "modality", "uncovered", *cells]
        for name, cell in cells.items():
            if isinstance(cell, str):
                assert row[name] == cell
            else:
                found = float(row[name]) if row[name] else np.nan
                np.testing.assert_allclose(found, cell, rtol=1e-8)
    assert [line["status"] for line in ledger(out)] == ["predicted", "failed", "predicted"]
    assert {path.name for path in out.parent.iterdir()} == {"p.csv", "p.ledger.jsonl"}


def test_masks_lie_on_their_scans(
    models: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, masks, where = tmp_path / "v.csv", tmp_path / "masks", str(models["segmentation"])
    predict_scans(ScansJob(where, folder, out, masks, modality="CT"))
    model = load_model(where)
    for row in rows_of(out):
        source = nib.load(folder / row["scan"])
        mask = nib.load(row["mask"])
        assert Path(row["mask"]) == masks / f"{row['scan']}.mask.nii.gz"
        assert mask.shape == source.shape
        np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
        values = np.asarray(mask.dataobj)
        assert values.dtype == np.uint8
        for name, value in TARGETS["segmentation"].mask_values.items():
            volume = (values == value).sum() * 4.5 / 1000
            assert float(row[f"volume_{name}_ml"]) == pytest.approx(volume)
        # By its own reader the mask falls on the scan, voxel by voxel.
        read = read_scan(row["mask"], modality="OT").voxels
        found = model.segment(read_scan(folder / row["scan"], modality="CT"))
        np.testing.assert_array_equal(read, found)
    assert f"{masks}/" in capsys.readouterr().out
    plain = tmp_path / "plain.csv"
    predict_scans(ScansJob(where, folder, plain, modality="CT"))
    for row, other in zip(rows_of(out), rows_of(plain), strict=True):
        assert {name: cell for name, cell in row.items() if name != "mask"} == other
    with pytest.raises(JobError, match="is of kind binary, which has no masks; drop --masks"):
        predict_scans(ScansJob(str(models["binary"]), folder, plain, masks))


@pytest.mark.parametrize("kind", ["binary", "survival", "segmentation"])
def test_a_subjects_row_is_of_the_mean_of_its_scans(
    models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    for number, name in enumerate(("p1_t1", "p1_t2", "p2_t1")):
        write_scan(tmp_path / f"{name}.nii", seed=number)
    table, out = tmp_path / "cohort.csv", tmp_path / "p.parquet"
    table.write_text("subject,sequence,scan\np1,t1,p1_t1.nii\np1,t2,p1_t2.nii\np2,t1,p2_t1.nii\n")
    masks = tmp_path / "masks" if kind == "segmentation" else None
    predict_scans(ScansJob(str(models[kind]), table, out, masks, per="subject", modality="MR"))
    found = pyarrow.parquet.read_table(out).to_pydict()
    assert found["subject"] == ["p1", "p2"]
    assert found["num_scans"] == [2, 1]
    model = load_model(models[kind])
    each = [model.predict(tmp_path / f"p1_t{n}.nii", modality="MR").outcome for n in (1, 2)]
    mean = {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}
    for name, cell in cells_of(mean, TARGETS[kind], None).items():
        told = found[name][0]
        if isinstance(cell, str):
            assert told == cell
        elif np.isnan(cell):
            assert told is None
        else:
            assert told == pytest.approx(cell)
    if masks is not None:
        assert found["mask"][0] == "; ".join(f"{masks}/p1_t{n}.nii.mask.nii.gz" for n in (1, 2))


def test_what_training_has_not_seen_is_refused_or_marked(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "binary", provenance={"shards": SEEN})
    write_scan(tmp_path / "scans/fine.nii")
    write_scan(tmp_path / "scans/thick.nii", affine=AFFINE * [1, 1, 3, 1])
    out = tmp_path / "p.csv"
    predict_scans(ScansJob(str(model), tmp_path / "scans", out, modality="CT"))
    assert [row["scan"] for row in rows_of(out)] == ["fine.nii"]
    reason = "spacing of 9 mm along D, covered is at most 6"
    assert ledger(out)[1]["reason"] == reason
    job = ScansJob(str(model), tmp_path / "scans", out, allow_uncovered=True, modality="CT")
    predict_scans(job)
    assert [row["uncovered"] for row in rows_of(out)] == ["", reason]
    with pytest.raises(JobError, match=r"none of 2 scans could be predicted.* --allow-uncovered"):
        predict_scans(ScansJob(str(model), tmp_path / "scans", tmp_path / "n.csv", modality="MR"))


def test_a_row_says_whether_its_probabilities_are_calibrated(tmp_path: Path, folder: Path) -> None:
    """0.9 at temperature 2 is 0.75; of a model without a temperature it stays 0.9."""
    told = {}
    for name, calibration in (("yes", MINE), ("no", None)):
        model = write_model(tmp_path / name, "binary", calibration=calibration)
        out = tmp_path / f"{name}.csv"
        predict_scans(ScansJob(str(model), folder, out, modality="CT"))
        told[name] = rows_of(out)
        assert {row["calibrated"] for row in told[name]} == {name}
    for calm, raw in zip(told["yes"], told["no"], strict=True):
        root = [float(raw[f"probability_{side}"]) ** 0.5 for side in "01"]
        assert float(calm["probability_1"]) == pytest.approx(root[1] / sum(root), rel=1e-6)
    cells = cells_of({"scores": np.array([0.9, 0.2])}, TARGETS["multilabel"], HALF)
    assert cells["calibrated"] == "fluid"


def test_masks_do_not_lie_among_the_scans(
    models: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    """A second command would take them for scans."""
    where = str(models["segmentation"])
    for scans_, masks in (
        (folder, folder / "masks"),
        (tmp_path, tmp_path / "scans/a"),
        (folder, folder),
    ):
        with pytest.raises(JobError, match="would take its images for scans; choose a folder out"):
            predict_scans(ScansJob(where, scans_, tmp_path / "v.csv", masks, modality="CT"))
    assert not (folder / "masks").exists()
    one = folder / "a/first.nii"
    predict_scans(ScansJob(where, one, tmp_path / "v.csv", folder / "masks", modality="CT"))
    assert (folder / "masks/first.nii.mask.nii.gz").is_file()


def test_a_table_that_it_has_not_written_stays(models: dict[str, Path], tmp_path: Path) -> None:
    write_scan(tmp_path / "one.nii")
    table, out, where = tmp_path / "cohort.csv", tmp_path / "p.csv", str(models["binary"])
    table.write_text("scan\none.nii\n")
    with pytest.raises(JobError, match=r"no cohort\.ledger\.jsonl beside it, so that it was not"):
        predict_scans(ScansJob(where, table, table, modality="CT"))
    assert table.read_text() == "scan\none.nii\n"
    for _ in range(2):
        predict_scans(ScansJob(where, table, out, modality="CT"))
    assert len(rows_of(out)) == 1


@pytest.mark.parametrize("kind", ["binary", "survival", "segmentation"])
def test_what_is_not_finite_is_no_prediction(
    models: dict[str, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a row nor a mask."""
    model = load_model(models[kind])
    for parameter in model.network.head.parameters():
        parameter.mul_(np.nan)
    monkeypatch.setattr(scans, "load_model", lambda *_words, **_named: model)
    write_scan(tmp_path / "scans/one.nii")
    masks = tmp_path / "masks" if kind == "segmentation" else None
    out = tmp_path / "p.csv"
    with pytest.raises(JobError, match="none of 1 scans could be predicted"):
        predict_scans(ScansJob("model", tmp_path / "scans", out, masks, modality="CT"))
    assert ledger(out)[0]["reason"] == "what was computed is not finite"
    with pytest.raises(ScanError, match="not finite"):
        model.predict(tmp_path / "scans/one.nii", modality="CT")
    assert not out.exists()
    assert not (tmp_path / "masks").exists()


def test_a_full_disk_is_one_line_and_gone_on_from(
    models: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, masks = tmp_path / "v.csv", tmp_path / "masks"
    words = [str(models["segmentation"]), str(folder), "--out", str(out), "--masks", str(masks)]
    monkeypatch.setattr(sys, "argv", ["foundation.predict", *words, "--modality", "CT"])
    before, written = mask_space.write_bytes, []

    def filling(path: Path, content: bytes) -> None:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        before(path, content)

    monkeypatch.setattr(mask_space, "write_bytes", filling)
    with pytest.raises(SystemExit) as left:
        predict.main()
    assert left.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: [Errno 28] No space left on device")
    assert str(masks) in last
    assert not out.exists()
    monkeypatch.setattr(mask_space, "write_bytes", before)
    predict.main()
    assert "going on: 1 of 3 done" in capsys.readouterr().out
    assert len(rows_of(out)) == 2


def test_two_scans_never_have_one_mask(models: dict[str, Path], tmp_path: Path) -> None:
    write_scan(tmp_path / "one.nii")
    write_scan(tmp_path / "tables/one.nii", seed=1)
    table = tmp_path / "tables/cohort.csv"
    table.write_text("scan\none.nii\n../one.nii\n")
    job = ScansJob(str(models["segmentation"]), table, tmp_path / "v.csv", tmp_path / "m")
    with pytest.raises(JobError, match=r"one\.nii and \.\./one\.nii would be written to one file"):
        predict_scans(job)


def test_a_sequence_that_it_has_not_learnt_from_is_refused(tmp_path: Path) -> None:
    """A model of one sequence says nothing of the others of a visit; a nameless one may be it."""
    seen = {**SEEN, "modalities": {"MR": 2}, "sequence": "t1w"}
    model = write_model(tmp_path / "model", "binary", provenance={"shards": seen})
    for number, name in enumerate(("t1", "flair", "plain")):
        write_scan(tmp_path / f"{name}.nii", seed=number)
    table, out = tmp_path / "cohort.csv", tmp_path / "p.csv"
    table.write_text("scan,sequence\nt1.nii,t1w\nflair.nii,flair\nplain.nii,\n")
    predict_scans(ScansJob(str(model), table, out, modality="MR"))
    assert [row["scan"] for row in rows_of(out)] == ["t1.nii", "plain.nii"]
    assert ledger(out)[1]["reason"] == "sequence flair, the model has learnt from t1w"


def test_pseudonyms_name_everything(
    models: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, key, masks = tmp_path / "p.csv", tmp_path / "key", tmp_path / "masks"
    predict_scans(
        ScansJob(
            str(models["segmentation"]),
            folder,
            out,
            masks,
            modality="CT",
            pseudonym_key=key,
            namespace="archive",
        )
    )
    name = pseudonym(load_key(key), "scan archive", "a/first.nii")
    assert name in [row["scan"] for row in rows_of(out)]
    assert (masks / f"{name}.mask.nii.gz").is_file()
    said = capsys.readouterr()
    headers = b"".join(path.read_bytes() for path in masks.iterdir())
    everything = out.read_text() + str(ledger(out)) + str(list(masks.iterdir())) + said.err
    for identifier in ("first", "second", "broken", "a/", "b/"):
        assert identifier not in everything.replace(str(tmp_path), "")
    assert b"second" not in headers


def test_a_killed_command_goes_on_and_gives_the_same_bytes(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        write_scan(tmp_path / f"scans/{number:02d}.nii", seed=number)
    whole, out = tmp_path / "whole/v.csv", tmp_path / "killed/v.csv"
    where, masks = str(models["segmentation"]), tmp_path / "masks"
    predict_scans(ScansJob(where, tmp_path / "scans", whole, masks, modality="CT"))
    before, written = scans.write_mask, []

    def counting(*words: Any, **named: Any) -> None:
        written.append(words)
        before(*words, **named)

    def dying(*words: Any, **named: Any) -> None:
        if len(written) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        counting(*words, **named)

    job = ScansJob(where, tmp_path / "scans", out, masks, modality="CT")
    monkeypatch.setattr(scans, "write_mask", dying)
    child = os.fork()
    if not child:
        predict_scans(job)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    monkeypatch.setattr(scans, "write_mask", counting)
    (masks / "03.nii.mask.nii.gz").unlink()
    predict_scans(job)
    assert len(written) == 12 - 8 + 1  # a chunk of eight was kept, and one of its masks has gone
    assert out.read_bytes() == whole.read_bytes()


def test_the_command_speaks_in_one_line(
    models: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for where, scans_, said in (
        ("demo", folder, "error: demo: is a backbone without a head"),
        (str(models["binary"]), folder / "nowhere", "no such file or folder"),
        (str(models["binary"]), folder / "b/broken.nii.gz", "none of 1 scans could be predicted"),
    ):
        words = [where, str(scans_), "--out", str(tmp_path / "p.csv"), "--modality", "CT"]
        monkeypatch.setattr(sys, "argv", ["foundation.predict", *words])
        with pytest.raises(SystemExit) as left:
            predict.main()
        assert left.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert said in last
    words = [str(models["binary"]), str(folder), "--out", str(tmp_path / "p.npz")]
    monkeypatch.setattr(sys, "argv", ["foundation.predict", *words, "--modality", "CT"])
    predict.main()
    with np.load(tmp_path / "p.npz") as arrays:
        assert arrays["probability_1"].shape == (2,)
        assert set(arrays["label"]) <= {"0", "1"}


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(
    models: dict[str, Path], folder: Path, tmp_path: Path, project: Path
) -> None:
    alone, together = tmp_path / "alone/p.csv", tmp_path / "together/p.csv"
    where, masks = str(models["segmentation"]), tmp_path / "masks"
    predict_scans(ScansJob(where, folder, alone, masks, modality="CT"))
    launch = [sys.executable, "-m", "foundation.launch", "2", "foundation.predict"]
    words = [where, str(folder), "--out", str(together), "--masks", str(masks), "--modality", "CT"]
    done = subprocess.run(
        [*launch, *words], cwd=project, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert together.read_bytes() == alone.read_bytes()
    assert done.stdout.count("predictions: ") == 1


@pytest.mark.gpu
def test_a_gpu_predicts_what_the_processor_does(
    models: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    for kind, column in (("binary", "probability_1"), ("segmentation", "volume_vein_ml")):
        tables = {}
        for device in ("cpu", "cuda"):
            out = tmp_path / f"{device}.csv"
            job = ScansJob(str(models[kind]), folder, out, modality="CT", device=device)
            predict_scans(job)
            tables[device] = [float(row[column]) for row in rows_of(out)]
        np.testing.assert_allclose(tables["cpu"], tables["cuda"], rtol=0.05, atol=5e-3)
