"""One command from a folder of scans to a table of features."""

import csv
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from foundation.backbone import load_backbone, save_backbone
from foundation.embed import EmbedError, embed, find_scans
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from shards.scan import read_scan

CONFIG = VitConfig(size="toy", patch_size=(4, 8, 6), depth=1)
PREPROCESSING = Preprocessing(crop_shape=(8, 16, 18))


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "backbone"
    save_backbone(
        folder,
        vit=build_vit(CONFIG),
        vit_config=CONFIG,
        preprocessing=PREPROCESSING,
        recipe={},
        provenance={},
    )
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans in folders, a damaged one, and a file that is none."""
    folder = tmp_path / "scans"
    generator = np.random.default_rng(0)
    for name, shape in (("b/second.nii.gz", (18, 17, 9)), ("a/first.nii", (20, 16, 12))):
        voxels = generator.integers(-500, 500, shape).astype(np.int16)
        (folder / name).parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.0, 3.0, 1.0])), folder / name)
    content = (folder / "b/second.nii.gz").read_bytes()
    (folder / "b/broken.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "notes.txt").write_text("not a scan")
    return folder


@pytest.mark.parametrize("table", ["features.csv", "features.npz"])
def test_a_row_for_each_scan_that_can_be_read(
    backbone: Path, scans: Path, tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tables" / table
    embed(backbone, scans=scans, out=out, modality="CT")
    said = capsys.readouterr()
    assert said.err.startswith("skipped b/broken.nii.gz: ")
    assert said.out.splitlines()[-1] == f"features: {out} (2 of 3 scans, width 96)"
    if out.suffix == ".csv":
        with out.open(newline="") as file:
            head, *rows = csv.reader(file)
        assert head[:2] == ["scan", "cls_0"]
        assert head[97] == "mean_0"
        names = [row[0] for row in rows]
        values = np.array([[float(value) for value in row[1:]] for row in rows], np.float32)
    else:
        with np.load(out) as arrays:
            names = list(arrays["scan"])
            values = np.concatenate([arrays["cls"], arrays["mean"]], axis=1)
    assert names == ["a/first.nii", "b/second.nii.gz"]
    for name, row in zip(names, values, strict=True):
        expected = load_backbone(backbone).embed_scan(read_scan(scans / name, modality="CT"))
        np.testing.assert_array_equal(row, np.concatenate([expected["cls"], expected["mean"]]))


def test_nothing_to_embed_is_one_line_and_a_non_zero_exit(
    backbone: Path, scans: Path, tmp_path: Path, project: Path
) -> None:
    out = tmp_path / "features.csv"
    (scans / "empty").mkdir()
    with pytest.raises(EmbedError, match="no NIfTI, NRRD or MetaImage file and no DICOM series"):
        embed(backbone, scans=scans / "empty", out=out)
    with pytest.raises(EmbedError, match="no such file or folder"):
        embed(backbone, scans=scans / "nowhere", out=out)
    with pytest.raises(EmbedError, match=r"a table ends in \.csv or \.npz"):
        embed(backbone, scans=scans, out=tmp_path / "features.txt")
    command = [sys.executable, "-m", "foundation.embed", str(backbone)]
    done = subprocess.run(
        [*command, str(scans / "b/broken.nii.gz"), "--out", str(out), "--modality", "CT"],
        capture_output=True,
        text=True,
        cwd=project,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("none of 1 scans could be embedded")
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.real
def test_real_dicom_series(backbone: Path, real_data: Path, tmp_path: Path) -> None:
    scans = real_data / "dicom" / "ct_crlm_1004"
    found = list(find_scans(scans, modality=None))
    assert len(found) == 1
    out = tmp_path / "features.npz"
    embed(backbone, scans=scans, out=out)
    with np.load(out) as arrays:
        assert arrays["cls"].shape == (1, 96)
        assert np.isfinite(arrays["mean"]).all()
