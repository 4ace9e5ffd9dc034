"""A user's path: shards from DICOM, a short pretraining, and the artefact alone on the raw DICOM.

What the command writes in a folder without any recipe is what evaluation extracts, bit by bit.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from evaluation.backbones.lines import ArtefactLine
from evaluation.backbones.own import load_artefact
from evaluation.extraction.embeddings import embedder_extractor
from evaluation.extraction.features import extract_all
from foundation.backbone import load_backbone
from foundation.embedding.coverage import coverage_of
from foundation.embedding.features import embed
from shards.phantom.cohort import write_subject
from shards.pseudonym import load_key, pseudonym
from shards.sources.cohort import CohortRow

BUILD = {
    "name": "lab",
    "out": "shards",
    "data_root": "archive",
    "pseudonym_key": "key",
    "sources": [{"dicom": "scans", "name": "lab", "licence": "CC0-1.0", "source": "phantom"}],
    "workers": 1,
}
PRETRAIN = {
    "name": "short",
    "shards": "shards",
    "vit": {"size": "toy", "depth": 2, "patch_size": [4, 8, 6], "position": "rope_mm"},
    "preprocessing": {"crop_shape": [16, 24, 30]},
    "mae": {"decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 2},
    "train": {"steps": 4, "global_batch": 2},
    "optimiser": {"lr": 1e-3, "warmup_steps": 1},
    "log": {"wandb": False},
}


def run(*words: str, folder: Path, project: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_raw_dicom_to_the_features_that_evaluation_uses(tmp_path: Path, project: Path) -> None:
    work, lab = tmp_path / "work", tmp_path / "lab"
    archive = work / "archive"
    for name in ("scans", "masks"):
        (archive / name).mkdir(parents=True)
    for index in range(3):
        write_subject(index, folder=archive, seed=3)
    for image in archive.glob("scans/*/*.nii.gz"):
        image.unlink()  # one head is an MR in NIfTI
    for name, tree in (("build", BUILD), ("pretrain", PRETRAIN)):
        (work / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    run("shards.build", "build.yaml", folder=work, project=project)
    run("foundation.pretrain", "pretrain.yaml", folder=work, project=project)

    # A lab with the artefact, the raw scans and the key; neither recipes nor shards nor the run.
    lab.mkdir()
    shutil.move(work / "runs/short/backbone", lab / "backbone")
    shutil.move(archive / "scans", lab / "scans")
    shutil.move(work / "key", lab / "key")
    shutil.rmtree(work)
    words = ["foundation.embed", "backbone", "scans", "--out"]
    said = run(*words, "plain.npz", folder=lab, project=project)
    assert "(5 of 5 scans)" in said
    hidden = ["hidden.npz", "--pseudonym-key", "key", "--namespace", "lab"]
    run(*words, *hidden, folder=lab, project=project)

    with np.load(lab / "plain.npz") as arrays:
        names, found = arrays["scan"].tolist(), {kind: arrays[kind] for kind in ("cls", "mean")}
    rows = [
        CohortRow(
            subject=name,
            scan=str(lab / "scans" / name),
            mask=None,
            split=None,
            modality="CT",
            values={},
        )
        for name in names
    ]
    line = ArtefactLine(artefact=lab / "backbone")
    embedder = load_artefact("short", line, device=torch.device("cpu")).entry.embedder
    assert embedder is not None
    extractor = embedder_extractor("short", embedder, spacing_mm=None)
    expected = extract_all(rows, [extractor], folder=lab / "features", title="")["short"]
    for kind, values in found.items():
        np.testing.assert_array_equal(values, expected[kind][:, 0])

    # In Python the same; the pseudonyms are those the shards had; and it knows what it has seen.
    backbone = load_backbone(lab / "backbone")
    with torch.inference_mode():
        first = embed(backbone, lab / "scans" / names[0], modality="CT")
    np.testing.assert_array_equal(first.cls, found["cls"][0])
    with np.load(lab / "hidden.npz") as arrays:
        subjects = set(arrays["subject"].tolist())
        np.testing.assert_array_equal(np.sort(arrays["cls"], axis=0), np.sort(found["cls"], axis=0))
    secret = load_key(lab / "key")
    patients = {f"phantom-3-000{index}" for index in range(3)}
    assert subjects == {pseudonym(secret, "lab", patient) for patient in patients}
    assert set(backbone.provenance["subjects"]) == subjects
    assert coverage_of(backbone).modalities == {"CT"}
