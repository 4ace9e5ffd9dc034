"""One command from scans of any kind to a table, a ledger and token maps; killed, it goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet
import pytest
import torch

from foundation import embed
from foundation.backbone import load_backbone, save_backbone
from foundation.embedding import entries, job, scans
from foundation.embedding.inputs import JobError
from foundation.embedding.job import ScansJob
from foundation.embedding.scans import embed_scans
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from shards.pseudonym import load_key, pseudonym
from shards.scan import read_scan

CONFIG = VitConfig(size="toy", patch_size=(4, 8, 6), depth=1)
PREPROCESSING = Preprocessing(crop_shape=(8, 16, 18))
SEEN = {
    "name": "toy",
    "digest": "0" * 64,
    "num_samples": 2,
    "num_subjects": 2,
    "sources": [],
    "modalities": {"CT": 2},
    "spacing_mm": {"low": [2.0, 1.0, 1.0], "high": [4.0, 2.0, 2.0]},
}


def write_backbone(folder: Path, provenance: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    save_backbone(
        folder,
        vit=build_vit(CONFIG),
        vit_config=CONFIG,
        preprocessing=PREPROCESSING,
        recipe={},
        provenance=provenance,
    )
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("artefact") / "backbone", {})


def write_scan(path: Path, *, seed: int = 0, spacing: tuple[float, ...] = (1.5, 1.0, 3.0)) -> None:
    voxels = np.random.default_rng(seed).integers(-500, 500, (18, 17, 9)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scans in folders, a damaged one, and a file that is none."""
    found = tmp_path / "scans"
    write_scan(found / "b/second.nii.gz", seed=1)
    write_scan(found / "a/first.nii", seed=2)
    content = (found / "b/second.nii.gz").read_bytes()
    (found / "b/broken.nii.gz").write_bytes(content[: len(content) // 2])
    (found / "notes.txt").write_text("not a scan")
    return found


def ledger(out: Path) -> list[dict[str, Any]]:
    text = out.with_name(f"{out.stem}.ledger.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def read_table(out: Path) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Columns by name, and (rows, 2 E) features."""
    if out.suffix == ".csv":
        with out.open(newline="") as file:
            head, *rows = csv.reader(file)
        first = head.index("cls_0")
        assert head[first + 96] == "mean_0"
        values = np.array([[float(cell) for cell in row[first:]] for row in rows], np.float32)
        return {name: [row[i] for row in rows] for i, name in enumerate(head[:first])}, values
    if out.suffix == ".npz":
        with np.load(out) as arrays:
            found = {name: list(arrays[name]) for name in arrays if name not in ("cls", "mean")}
            return found, np.concatenate([arrays["cls"], arrays["mean"]], axis=1)
    table = pyarrow.parquet.read_table(out)
    assert table.schema.field("cls").type.list_size == 96
    columns = table.to_pydict()
    values = np.hstack([np.array(columns.pop(kind), np.float32) for kind in ("cls", "mean")])
    return columns, values


def row_of(backbone: Path, scan: Path, modality: str = "CT") -> np.ndarray:
    found = load_backbone(backbone).embed_scan(read_scan(scan, modality=modality))
    return np.concatenate([found["cls"], found["mean"]])


@pytest.mark.parametrize("table", ["features.csv", "features.npz", "features.parquet"])
def test_a_row_for_each_scan_that_can_be_read(
    backbone: Path, folder: Path, tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tables" / table
    embed_scans(ScansJob(str(backbone), folder, out, modality="CT"))
    said = capsys.readouterr()
    assert "failed b/broken.nii.gz: not a readable NIfTI file" in said.err
    assert said.out.splitlines()[-1] == f"features: {out} (2 of 3 scans, 1 failed)"
    columns, values = read_table(out)
    assert list(columns["scan"]) == ["a/first.nii", "b/second.nii.gz"]
    assert list(columns["subject"]) == ["a", "b"]
    assert [float(edge) for edge in columns["spacing_d_mm"]] == [3.0, 3.0]
    assert [float(edge) for edge in columns["spacing_h_mm"]] == [1.0, 1.0]
    for name, row in zip(columns["scan"], values, strict=True):
        np.testing.assert_array_equal(row, row_of(backbone, folder / name))
    told = [(line.get("scan"), line["status"]) for line in ledger(out)]
    assert told == [
        ("a/first.nii", "embedded"),
        ("b/broken.nii.gz", "failed"),
        ("b/second.nii.gz", "embedded"),
        (None, "skipped"),
    ]
    # What was kept for a kill has gone.
    assert {path.name for path in out.parent.iterdir()} == {"features.ledger.jsonl", table}


def test_nothing_to_embed_is_one_line_and_a_non_zero_exit(
    backbone: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "features.csv"
    (folder / "empty").mkdir()
    for words, said in (
        ((folder / "empty", out), "no NIfTI, NRRD or MetaImage file and no DICOM series"),
        ((folder / "nowhere", out), "no such file or folder"),
        ((folder, tmp_path / "features.txt"), r"a table ends in \.parquet, \.csv or \.npz"),
    ):
        with pytest.raises(JobError, match=said):
            embed_scans(ScansJob(str(backbone), *words))
    words = [str(backbone), str(folder / "b/broken.nii.gz"), "--out", str(out), "--modality", "CT"]
    monkeypatch.setattr(sys, "argv", ["foundation.embed", *words])
    with pytest.raises(SystemExit) as left:
        embed.main()
    assert left.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "none of 1 scans could be embedded" in last
    assert not out.exists()
    assert ledger(out)[0]["reason"].startswith("not a readable NIfTI file")


def test_what_the_contract_does_not_cover_is_refused_or_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = write_backbone(tmp_path / "backbone", {"shards": SEEN})
    write_scan(tmp_path / "scans/fine.nii")
    write_scan(tmp_path / "scans/thick.nii", spacing=(1.5, 1.0, 5.0))
    write_scan(tmp_path / "scans/mr.nii")
    table = tmp_path / "scans.csv"
    table.write_text(
        "scan,modality\nscans/fine.nii,CT\nscans/mr.nii,MR\nscans/thick.nii,CT\n", encoding="utf-8"
    )
    out = tmp_path / "features.csv"
    embed_scans(ScansJob(str(backbone), table, out))
    assert read_table(out)[0]["scan"] == ["scans/fine.nii"]
    assert [(line["status"], line["reason"]) for line in ledger(out)] == [
        ("embedded", ""),
        ("refused", "modality MR, the backbone has seen CT"),
        ("refused", "spacing of 5 mm along D, covered is 1.82 to 4.4"),
    ]
    assert "(1 of 3 scans, 2 refused)" in capsys.readouterr().out
    embed_scans(ScansJob(str(backbone), table, out, allow_uncovered=True))
    columns, values = read_table(out)
    assert [bool(cell) for cell in columns["uncovered"]] == [False, True, True]
    assert "(3 of 3 scans, 2 not covered)" in capsys.readouterr().out
    np.testing.assert_array_equal(values[1], row_of(backbone, tmp_path / "scans/mr.nii", "MR"))
    table.write_text("scan,modality\nscans/mr.nii,MR\n")
    with pytest.raises(JobError, match=r"none of 1 .* --allow-uncovered takes and marks"):
        embed_scans(ScansJob(str(backbone), table, tmp_path / "none.csv"))


def test_several_sequences_of_a_subject_and_their_mean(backbone: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("p1_t1", "p1_t2", "p2_t1")):
        write_scan(tmp_path / f"{name}.nii", seed=number)
    table = tmp_path / "cohort.csv"
    table.write_text("subject,sequence,scan\np1,t1,p1_t1.nii\np1,t2,p1_t2.nii\np2,t1,p2_t1.nii\n")
    by_scan, by_subject = tmp_path / "scan.npz", tmp_path / "subject.parquet"
    embed_scans(ScansJob(str(backbone), table, by_scan, modality="MR"))
    embed_scans(ScansJob(str(backbone), table, by_subject, modality="MR", per="subject"))
    columns, values = read_table(by_scan)
    assert list(columns["sequence"]) == ["t1", "t2", "t1"]
    of_subjects, means = read_table(by_subject)
    assert of_subjects["subject"] == ["p1", "p2"]
    assert of_subjects["num_scans"] == [2, 1]
    np.testing.assert_array_equal(means[0], values[:2].mean(axis=0))
    np.testing.assert_array_equal(means[1], values[2])


def test_time_points_of_a_file_are_rows_of_their_own(backbone: Path, tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(0, 100, (18, 17, 9, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.0, 3.0, 1.0])), tmp_path / "both.nii")
    nib.save(nib.Nifti1Image(voxels[..., 1], np.diag([1.5, 1, 3, 1])), tmp_path / "second.nii")
    out = tmp_path / "features.npz"
    embed_scans(ScansJob(str(backbone), tmp_path / "both.nii", out, modality="MR"))
    columns, values = read_table(out)
    assert list(columns["scan"]) == ["both.nii", "both.nii@2"]
    np.testing.assert_array_equal(values[1], row_of(backbone, tmp_path / "second.nii", "MR"))


def test_pseudonyms_name_everything(
    backbone: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, key, maps = tmp_path / "features.csv", tmp_path / "key", tmp_path / "maps"
    words = {"pseudonym_key": key, "namespace": "archive", "files": maps, "modality": "CT"}
    embed_scans(ScansJob(str(backbone), folder, out, **words))
    columns, values = read_table(out)
    secret = load_key(key)
    name = pseudonym(secret, "scan archive", "a/first.nii")
    place = columns["scan"].index(name)
    assert columns["subject"][place] == pseudonym(secret, "archive", "a")
    np.testing.assert_array_equal(values[place], row_of(backbone, folder / "a/first.nii"))
    said = capsys.readouterr()
    everything = out.read_text() + str(ledger(out)) + str(list(maps.iterdir())) + said.err
    for identifier in ("first", "second", "broken", "a/", "b/"):
        assert identifier not in everything.replace(str(tmp_path), "")
    assert columns["scan"] == sorted(columns["scan"])


def test_a_killed_command_goes_on_and_gives_the_same_bytes(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        write_scan(tmp_path / f"scans/{number:02d}.nii", seed=number)
    (tmp_path / "scans/99.nii").write_bytes(b"no image")
    whole, out = tmp_path / "whole/f.parquet", tmp_path / "killed/f.parquet"
    words = {"modality": "CT", "files": tmp_path / "maps"}
    embed_scans(ScansJob(str(backbone), tmp_path / "scans", whole, **words))
    before, embedded = scans.embed_scan, []

    def counting(*words: Any) -> Any:
        embedded.append(words)
        return before(*words)

    def dying(*words: Any) -> Any:
        if len(embedded) == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return counting(*words)

    monkeypatch.setattr(scans, "embed_scan", dying)
    child = os.fork()
    if not child:
        embed_scans(ScansJob(str(backbone), tmp_path / "scans", out, **words))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    assert [path.suffix for path in (tmp_path / "killed/.f.parquet.parts").iterdir()] == [".npz"]
    (tmp_path / "maps/03.nii.tokens.nii").unlink()
    (tmp_path / "killed/.f.parquet.parts/.0123.npz.tmp").write_bytes(b"half")
    monkeypatch.setattr(scans, "embed_scan", counting)
    embed_scans(ScansJob(str(backbone), tmp_path / "scans", out, **words))
    assert not (tmp_path / "killed/.f.parquet.parts").exists()
    assert len(embedded) == 5  # four that were not kept, and one whose map had gone
    assert out.read_bytes() == whole.read_bytes()
    assert ledger(out) == ledger(whole)
    assert [line["status"] for line in ledger(out)] == ["embedded"] * 12 + ["failed"]


def test_what_is_kept_counts_for_the_same_work_only(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scan(tmp_path / "scans/one.nii")
    out = tmp_path / "f.csv"
    monkeypatch.setattr(entries.Kept, "remove", lambda _self: None)
    made = ScansJob(str(backbone), tmp_path / "scans", out, modality="CT")
    embed_scans(made)
    found = entries.Kept(out).load()
    parts = list((tmp_path / ".f.csv.parts").iterdir())

    def count_after(again: ScansJob) -> int:
        embed_scans(again)
        return len(list((tmp_path / ".f.csv.parts").iterdir()))

    assert count_after(made) == len(parts) == len(found) == 1
    assert count_after(ScansJob(str(backbone), tmp_path / "scans", out, modality="MR")) == 2
    os.utime(tmp_path / "scans/one.nii", ns=(1, 1))
    assert count_after(made) == 3
    # A damaged file of them is passed over, and its scan embedded again.
    for path in (tmp_path / ".f.csv.parts").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    assert count_after(made) == 4


def test_two_commands_do_not_share_a_table(backbone: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.csv"
    with (
        job.only_one(tmp_path / ".features.csv.lock", doing="another"),
        pytest.raises(ValueError, match="another process is at it"),
    ):
        embed_scans(ScansJob(str(backbone), folder, out, modality="CT"))


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(
    backbone: Path, folder: Path, tmp_path: Path, project: Path
) -> None:
    alone, together = tmp_path / "alone/f.csv", tmp_path / "together/f.csv"
    embed_scans(ScansJob(str(backbone), folder, alone, modality="CT"))
    launch = [sys.executable, "-m", "foundation.launch", "2", "foundation.embed", str(backbone)]

    def start(scans: Path) -> "subprocess.CompletedProcess[str]":
        words = [str(scans), "--out", str(together), "--modality", "CT"]
        return subprocess.run(
            [*launch, *words], cwd=project, capture_output=True, text=True, check=False, timeout=120
        )

    done = start(folder)
    assert done.returncode == 0, done.stderr
    assert together.read_bytes() == alone.read_bytes()
    assert ledger(together) == ledger(alone)
    assert done.stdout.count("features: ") == 1
    began = time.monotonic()
    wrong = start(folder / "nowhere")
    assert wrong.returncode == 2
    assert wrong.stderr.count("no such file or folder") == 1
    assert "Traceback" not in wrong.stderr
    assert time.monotonic() - began < 60


def test_a_backbone_of_several_sequences_is_told_at_once(tmp_path: Path, folder: Path) -> None:
    pair = CONFIG.model_copy(update={"in_chans": 2})
    where = tmp_path / "pair"
    save_backbone(
        where,
        vit=build_vit(pair),
        vit_config=pair,
        preprocessing=PREPROCESSING,
        recipe={},
        provenance={},
    )
    with pytest.raises(ValueError, match="takes 2 sequences at once"):
        embed_scans(ScansJob(str(where), folder, tmp_path / "f.csv", modality="MR"))


@pytest.mark.gpu
def test_a_gpu_gives_the_features_of_the_processor(
    backbone: Path, folder: Path, tmp_path: Path
) -> None:
    tables = {}
    for device in ("cpu", "cuda"):
        out, maps = tmp_path / f"{device}.npz", tmp_path / device
        embed_scans(ScansJob(str(backbone), folder, out, modality="CT", device=device, files=maps))
        found = nib.load(maps / "a/first.nii.tokens.nii").get_fdata()
        tables[device] = [*read_table(out)[1], found]
    for one, other in zip(tables["cpu"], tables["cuda"], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


@pytest.mark.real
def test_real_dicom_series(backbone: Path, real_data: Path, tmp_path: Path) -> None:
    found = real_data / "dicom" / "ct_crlm_1004"
    out = tmp_path / "features.npz"
    embed_scans(ScansJob(str(backbone), found, out))
    with np.load(out) as arrays:
        assert arrays["cls"].shape == (1, 96)
        assert np.isfinite(arrays["mean"]).all()
