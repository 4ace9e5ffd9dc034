"""Bad input through the real commands: one clear line, an exit code, and what stood still stands.

One small project is made once and copied for each test. Commands run in this process as
``python -m`` would run them, and as processes of their own where a signal or several ranks matter.
"""

import csv
import hashlib
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import nibabel
import numpy as np
import pytest
import yaml

from foundation.backbone import save_backbone
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit

SHAPE = (11, 9, 10)  # of the files: x, y, z
NUM_SUBJECTS = 24
VIT = {"patch_size": [4, 4, 4], "size": "toy", "embed_dim": 24, "num_heads": 1, "depth": 1}
CROP = [8, 8, 12]
COHORT = {
    "name": "tiny",
    "table": "table.csv",
    "subject": "{subject}",
    "scan": "scans/{subject}.nii.gz",
    "modality": "MR",
    "split": {"column": "split"},
    "licence": "CC0-1.0",
    "source": "made by a test",
}
SOURCES = [
    {"cohort": "cohort.yaml"},
    {
        "dicom": "dicom",
        "name": "ward",
        "licence": "CC0-1.0",
        "source": "made by a test",
    },
]
RECIPES: dict[str, dict[str, Any]] = {
    "cohort": COHORT,
    "shards": {
        "name": "toy",
        "out": "shards",
        "data_root": "data",
        "pseudonym_key": "key",
        "sources": SOURCES,
        "workers": 1,
        "max_rejected_fraction": 0.0,
        "if_changed": "rebuild",
    },
    "pretrain": {
        "name": "toy",
        "shards": "shards",
        "vit": VIT,
        "preprocessing": {"crop_shape": CROP},
        "mae": {"decoder_embed_dim": 24, "decoder_depth": 1, "decoder_num_heads": 1},
        "train": {"steps": 4, "global_batch": 2},
        "optimiser": {"lr": 1e-3, "warmup_steps": 1},
        "checkpoint": {"every_steps": 2},
    },
    "finetune": {
        "name": "tuned",
        "tasks": ["task.yaml"],
        "data_root": "data",
        "pseudonym_key": "key",
        "backbone": "runs/done/backbone",
        "train": {"steps": 4, "global_batch": 2},
        "optimiser": {"lr": 1e-3, "warmup_steps": 1},
        "checkpoint": {"every_steps": 2},
        "build_workers": 0,
    },
    "task": {
        "name": "bright",
        "title": "A bright corner",
        "disease": "brightness",
        "cohort": "cohort.yaml",
        "kind": "binary",
        "label": {"column": "bright"},
        "protocol": {"split": "cohort"},
        "floors": {"clinical": ["age"]},
    },
    "evaluation": {
        "name": "toy",
        "title": "Toy",
        "data_root": "data",
        "pseudonym_key": "key",
        "backbones": {"mae": "runs/done/backbone"},
        "random_init": {"seeds": [0]},
        "tasks": ["task.yaml"],
        "few_shot": {"shots": [1], "num_draws": 2},
        "num_bootstraps": 20,
        "device": "cpu",
    },
}
# What a run of evaluation has finished stays, to be found again.
CACHES = ("features", "gate", "scored")
PICTURES = ("original", "masked", "reconstruction")
BUILD = ("shards.build", "shards.yaml")
PRETRAIN = ("foundation.pretrain", "pretrain.yaml")
FINETUNE = ("foundation.finetune", "finetune.yaml")
EMBED = ("foundation.embed", "runs/done/backbone", "data/scans", "--modality", "MR", "--out")
EVALUATE = ("evaluation.run", "evaluation.yaml")
REPORT = ("evaluation.report", "stores/toy", "--out", "reports/toy")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Place:
    """A project's folder, entered, with commands to run in it."""

    def __init__(self, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capfd = capfd

    def run(self, module: str, *words: str) -> Ended:
        """Run a command in this process."""
        self._capfd.readouterr()
        with (
            mock.patch.object(sys, "argv", [module, *words]),
            mock.patch.dict(os.environ),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", RuntimeWarning)  # the module is loaded already
            code = 0
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Ended(code, *self._capfd.readouterr())

    def refuses(self, module: str, *words: str, new: tuple[str, ...] = (), code: int = 2) -> str:
        """The one line a command ends with; it leaves every file as it was, beside ``new``."""
        before = contents(self.root)
        line = the_line(self.run(module, *words), code=code)
        after = {
            name: digest
            for name, digest in contents(self.root).items()
            if name in before or not any(f"/{cache}/" in name for cache in CACHES)
        }
        assert {name for name in after if name not in before} == set(new)
        assert {name: after[name] for name in before if name in after} == before
        return line

    def rewrite(self, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Write a recipe again, changed in place."""
        tree = yaml.safe_load((self.root / f"{name}.yaml").read_text())
        change(tree)
        write_yaml(self.root / f"{name}.yaml", tree)


def the_line(ended: Ended, *, code: int = 2) -> str:
    """The last line on stderr, the only one that tells of an error."""
    assert ended.code == code, ended
    assert "Traceback" not in ended.out + ended.err, ended.err
    lines = ended.err.rstrip("\n").split("\n")
    assert [line for line in lines if "error" in line.lower()] == lines[-1:], ended.err
    assert lines[-1].startswith("error: "), ended.err
    return lines[-1]


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below, by name; of a folder its name alone."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def write_yaml(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_scans(data: Path) -> None:
    """24 subjects in three splits; every other one has a bright corner."""
    (data / "scans").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(NUM_SUBJECTS):
        bright = number % 2
        voxels = rng.normal(100, 20, SHAPE).astype(np.float32)
        voxels[:4, :4, :3] += 60 * bright
        image = nibabel.nifti1.Nifti1Image(voxels, np.diag([1.5, 1.0, 2.0, 1.0]))
        nibabel.nifti1.save(image, data / "scans" / f"s{number:02d}.nii.gz")
        split = ("train", "val", "test")[number * 3 // NUM_SUBJECTS]
        subject = {"subject": f"s{number:02d}", "split": split}
        rows.append({**subject, "bright": bright, "age": 50 + number})
    write_table(data / "table.csv", rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose every stage has run: scans, shards, a backbone, a store and a report."""
    root = tmp_path_factory.mktemp("finished")
    write_scans(root / "data")
    for name, tree in RECIPES.items():
        write_yaml(root / f"{name}.yaml", tree)
    vit = VitConfig(**VIT)
    (root / "runs/done/pictures").mkdir(parents=True)
    (root / "runs/done/log.jsonl").write_text('{"step": 1, "loss": 0.5, "wall_s": 2.0}\n')
    pictures = {name: np.zeros((2, 9, 10), np.float32) for name in PICTURES}
    np.savez_compressed(root / "runs/done/pictures/reconstructions.npz", **pictures)
    save_backbone(
        root / "runs/done/backbone",
        vit=build_vit(vit),
        vit_config=vit,
        preprocessing=Preprocessing(crop_shape=tuple(CROP)),
        recipe={"name": "done"},
        provenance={"subjects": [], "source_digests": [], "finished": "2026-02-03"},
    )
    with entered(root):
        from evaluation.report import write_report
        from evaluation.run import main as evaluate
        from evaluation.scoring.config import EvaluationConfig
        from recipes.load import load
        from shards.build import BuildConfig
        from shards.build import main as build
        from shards.phantom.cohort import write_cohort

        write_cohort(Path("data/phantom"), subjects=1, seed=1, workers=1)
        shutil.copytree("data/phantom/scans", "data/dicom", ignore=shutil.ignore_patterns("*.gz"))
        build(load("shards.yaml", BuildConfig))
        evaluate(load("evaluation.yaml", EvaluationConfig))
        write_report([Path("stores/toy")], out=Path("reports/toy"))
    return root


@contextmanager
def entered(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def place(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Place]:
    root = tmp_path / "project"
    shutil.copytree(finished, root)
    with entered(root):
        yield Place(root, capfd)


RECIPE_COMMANDS = (BUILD, PRETRAIN, FINETUNE, EVALUATE)


@pytest.mark.parametrize("command", RECIPE_COMMANDS, ids=lambda command: command[0])
def test_a_recipe_that_cannot_be_used(place: Place, command: tuple[str, str]) -> None:
    module, recipe = command
    key = "train" if recipe == "pretrain.yaml" else "data_root"
    mistyped = key[:-1] + "e"
    line = place.refuses(module, recipe, f"{mistyped}=1")
    assert f"unknown key {mistyped!r}, did you mean {key!r}?" in line
    assert "unknown key 'Name'" in place.refuses(module, recipe, "Name=1")
    near = place.refuses(module, recipe.replace("y", "i"))
    assert f"no such recipe, did you mean {recipe}" in near.replace("./", "")
    assert "data: cannot be read" in place.refuses(module, "data")
    assert "a recipe is a mapping" in place.refuses(module, "data/table.csv")
    assert "cannot be read" in place.refuses(module, "data/scans/s00.nii.gz")


@pytest.mark.parametrize("command", RECIPE_COMMANDS, ids=lambda command: command[0])
def test_out_that_cannot_be_written(place: Place, command: tuple[str, str]) -> None:
    assert "table.csv" in place.refuses(*command, "out=data/table.csv/below", "name=other")


def refuses_data(place: Place, *said: str) -> None:
    """Both commands that read a cohort end with a line that holds all of ``said``."""
    for command in (BUILD, EVALUATE):
        line = place.refuses(*command)
        assert all(word in line for word in said), line


def change_table(place: Place, change: Callable[[dict[str, str]], Any]) -> None:
    path = place.root / "data/table.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        change(row)
    write_table(path, rows)


def test_data_that_is_not_there(place: Place) -> None:
    for command in (BUILD, EVALUATE):
        assert "nowhere/table.csv does not exist" in place.refuses(*command, "data_root=nowhere")
    assert "data/nowhere does not exist" in place.refuses(*BUILD, "sources.1.dicom=nowhere")
    nifti = "sources=[{images: none/*.nii, modality: MR, name: a, licence: b, source: c}]"
    assert "no scans; see data/none/*.nii" in place.refuses(*BUILD, nifti)
    assert "nowhere: no shards here" in place.refuses(*PRETRAIN, "shards=nowhere")
    assert "nowhere: is no folder" in place.refuses(*EVALUATE, "backbones.mae=nowhere")
    assert "did you mean task.yaml?" in place.refuses(*EVALUATE, "tasks=[tusk.yaml]")
    assert "nokey: no such key" in place.refuses(*EVALUATE, "pseudonym_key=nokey")
    assert "not a pseudonym key" in place.refuses(*BUILD, "pseudonym_key=data/table.csv")
    assert "nowhere: no shards here" in place.refuses("shards.verify", "nowhere")
    assert "nowhere: is no folder" in place.refuses(
        "foundation.embed", "nowhere", *EMBED[2:], "a.csv"
    )
    gone = place.refuses(EMBED[0], EMBED[1], "nowhere", "--out", "a.csv")
    assert "nowhere: no such file or folder" in gone
    assert "nowhere: no finished evaluation" in place.refuses("evaluation.report", "nowhere")


def test_an_empty_cohort(place: Place) -> None:
    table = place.root / "data/table.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    refuses_data(place, "cohort tiny", "has no rows")
    table.write_text("")
    refuses_data(place, "cohort tiny", "has no rows")


def test_a_table_with_a_missing_column(place: Place) -> None:
    change_table(place, lambda row: row.update(subjects=row.pop("subject")))
    refuses_data(place, "no column 'subject'; did you mean 'subjects'?")


def test_a_table_that_is_none(place: Place) -> None:
    table = place.root / "data/table.csv"
    text = table.read_text()
    for damage, said in (
        (text + "s99,train", "row 25: 2 cells, expected 4"),
        (text.replace("s03", '"s03'), "is not a CSV table"),
        (text.replace("s03", "\0"), "tiny"),
        (text.replace("s05,train", "s05,trian"), "'trian'; expected one of train, val, test"),
        (text.replace("s05,", "s06,"), "repeats subject 's06'"),
        (text.replace("age", "bright"), "the column 'bright' twice"),
        (text.replace("s03,", ","), "meets an empty 'subject' cell"),
    ):
        table.write_text(damage)
        refuses_data(place, said)
    table.write_bytes(b"subject,\xff\xfe\n1,2\n")
    refuses_data(place, "is not a CSV table")
    table.write_text(text)
    place.rewrite("cohort", lambda tree: tree.update(subject="{subject"))
    refuses_data(place, "cohort tiny: '{subject' is no template")
    table.unlink()
    table.mkdir()
    refuses_data(place, "table.csv")


def test_an_archive_that_is_damaged(place: Place) -> None:
    archive = place.root / "data/shapes.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 255, (4, 9, 10, 12)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]])
    npz = {"name": "tiny", "npz": "shapes.npz", "licence": "CC0-1.0", "source": "made by a test"}
    write_yaml(place.root / "cohort.yaml", npz)
    np.savez_compressed(archive, **arrays)
    whole = archive.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"none", whole[:-30], b"\x93NUMPY" + whole):
        archive.write_bytes(damage)
        refuses_data(place, "shapes.npz")
    labels = bytearray(whole)
    place_of_labels = whole.index(b"train_labels.npy")
    labels[place_of_labels + 60] ^= 0xFF
    archive.write_bytes(labels)
    refuses_data(place, "shapes.npz")
    del arrays["val_labels"]
    np.savez_compressed(archive, **arrays)
    refuses_data(place, "val_labels")
    arrays["val_labels"] = np.array([["a"], ["b"], ["a"], ["b"]])
    np.savez_compressed(archive, **arrays)
    refuses_data(place, "shapes.npz")


def truncate(path: Path, keep: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def slices(place: Place) -> list[Path]:
    """The files of the DICOM series, in the order of their place."""
    import pydicom

    files = (place.root / "data/dicom").rglob("*.dcm")
    heights = {path: pydicom.dcmread(path).ImagePositionPatient[2] for path in files}
    return sorted(heights, key=lambda path: heights[path])


def test_a_rejected_scan_is_in_the_ledger_with_its_reason(place: Place) -> None:
    truncate(place.root / "data/scans/s02.nii.gz")
    (place.root / "data/scans/s03.nii.gz").write_text("no image at all")
    (place.root / "data/scans/s04.nii.gz").unlink()
    series = slices(place)
    series[5].unlink()
    (series[0].parent / "notes.txt").write_text("read me")
    line = place.refuses(*BUILD, new=("shards.ledger.jsonl",))
    assert "1 of 25 scans are rejected, the recipe allows a fraction of 0" in line
    assert "most often: not a readable NIfTI file, truncated or damaged" in line
    assert "the ledger so far is shards.ledger.jsonl" in line
    ended = place.run(*BUILD, "max_rejected_fraction=0.5")
    assert ended.code == 0
    assert "26 inputs = 21 accepted + 4 rejected + 1 skipped" in ended.out
    entries = ledger(place.root / "shards/ledger.jsonl")
    assert {(entry["source"], entry["position"]): entry["reason"] for entry in entries} == {
        ("tiny", 2): "not a readable NIfTI file, truncated or damaged (EOFError)",
        ("tiny", 3): "not a readable NIfTI file, truncated or damaged (WrapStructError)",
        ("tiny", 4): "the file or folder does not exist",
        ("ward", 0): "a missing slice: a gap of 14.00 mm where 7.00 is usual",
        ("ward", 1): "not a DICOM file",
    }


def ledger(path: Path) -> list[dict[str, Any]]:
    """The entries of inputs that were not accepted."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["status"] != "accepted"]


def test_a_truncated_slice(place: Place) -> None:
    truncate(slices(place)[3])
    assert "a truncated file" in place.refuses(*BUILD, new=("shards.ledger.jsonl",))


def test_no_scan_at_all(place: Place) -> None:
    for path in (place.root / "data/scans").iterdir():
        path.write_bytes(b"")
    line = place.refuses(*BUILD, "max_rejected_fraction=1", "sources=[{cohort: cohort.yaml}]")
    assert "none of 24 scans was accepted: not a readable NIfTI file" in line


def test_a_folder_that_is_no_shards_is_left_alone(place: Place) -> None:
    assert "data: not a folder of shards" in place.refuses(*BUILD, "out=data")


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """No file may grow past ``size_bytes``: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [1_000, 3_000, 20_000])
def test_a_full_disk_while_building(place: Place, size_bytes: int) -> None:
    with full_disk(size_bytes):
        line = place.refuses(*BUILD, "shard_size_mb=0.01", "name=other")
    assert "shards: cannot be written: File too large; what stood there is unchanged" in line


def start(root: Path, project: Path, *words: str) -> "subprocess.Popen[str]":
    """A command as a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(project)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process: "subprocess.Popen[str]") -> Ended:
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)


def wait_for(process: "subprocess.Popen[str]", condition: Callable[[], Any]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_an_interrupted_build(place: Place, project: Path) -> None:
    for number in range(500):
        shutil.copy("data/scans/s01.nii.gz", f"data/scans/x{number}.nii.gz")
    before = contents(place.root)
    nifti = "{images: scans/*.gz, modality: MR, name: a, licence: b, source: c}"
    words = (f"sources=[{nifti}]", "workers=2", "max_rejected_fraction=1")
    process = start(place.root, project, *BUILD, *words)
    wait_for(process, Path(".shards.building/shard-000000.tar").exists)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C, which reaches every process of the group
    done = ended(process)
    assert done.code == 130, done
    assert done.err.endswith("\ninterrupted; what was finished is kept\n"), done.err
    assert "Traceback" not in done.err
    assert contents(place.root) == before


def test_a_flipped_byte_in_a_shard(place: Place, project: Path) -> None:
    tar = place.root / "shards/shard-000000.tar"
    index = json.loads(tar.with_suffix(".index.json").read_text())
    for sample in index["samples"]:
        member = sample["members"]["volume.b2nd"]
        flip(tar, member["offset"] + member["size"] // 2)
    verified = place.run("shards.verify", "shards")
    assert "25 problems in shards" in the_line(verified, code=1)
    assert verified.out.count("volume.b2nd is damaged at or after byte") == 25
    before = contents(place.root / "shards")
    line = the_line(ended(start(place.root, project, *PRETRAIN)))
    assert "shards/shard-000000.tar: " in line
    assert "is damaged at byte" in line
    assert "(volume.b2nd, chunk 0 of 1)" in line
    assert contents(place.root / "shards") == before


def test_damaged_tables_of_shards(place: Place) -> None:
    for name, key in (("dataset.json", b'"file"'), ("shard-000000.index.json", b'"key"')):
        whole = (place.root / "shards" / name).read_bytes()
        for damage in (whole[: len(whole) // 2], whole.replace(key, b'"kez"'), b"[]"):
            (place.root / "shards" / name).write_bytes(damage)
            the_line(place.run("shards.verify", "shards"), code=1)
            assert f"shards/{name}: damaged" in place.refuses(*PRETRAIN)
        (place.root / "shards" / name).write_bytes(whole)
    assert place.run("shards.verify", "shards").code == 0


def test_settings_that_cannot_be_trained(place: Place) -> None:
    for words, said in (
        (["train.global_batch=3", "train.micro_batch=2"], "3 scans are not a whole number of 2"),
        (["preprocessing.spacing_mm=[2,1,1]"], "preprocessing.spacing_mm: [2, 1, 1] mm, but"),
        (["preprocessing.crop_shape=[9,8,12]"], "(9, 8, 12) voxels is not a whole number"),
        (["dino={}"], "exactly one of the sections mae, dino"),
    ):
        assert said in place.refuses(*PRETRAIN, *words)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit of Linux")
def test_a_full_disk_while_pretraining(place: Place, project: Path) -> None:
    before = contents(place.root)
    words = ("train.steps=400", "checkpoint.every_steps=200", "log.every_steps=100")
    process = start(place.root, project, *PRETRAIN, *words)
    wait_for(process, Path("runs/toy/log.jsonl").exists)
    # Less than a checkpoint, more than all else; and only once DeepSpeed has built what it needs.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    line = the_line(ended(process))
    assert "runs/toy/checkpoints: a checkpoint could not be written, is the disk full?" in line
    after = contents(place.root)
    assert {name: after[name] for name in before} == before
    assert not (place.root / "runs/toy/backbone").exists()


def test_what_cannot_be_tuned(place: Place) -> None:
    for words, said in (
        (["backbone=nowhere"], "nowhere"),
        (["tasks=[nowhere.yaml]"], "nowhere.yaml: no such recipe"),
        (["tasks=[task.yaml,task.yaml]"], "two cards are named 'bright'"),
        (["data_root=nowhere"], "nowhere"),
        (["pseudonym_key=nowhere"], "nowhere: no such key"),
        (["crop_shape=[9,8,12]"], "(9, 8, 12) voxels is not a whole number"),
        (["begin=scratch", "tune.mode=lora"], "from scratch take full"),
        (["tune.mode=last_blocks", "tune.num_blocks=5"], "the backbone has 1 blocks"),
        (["loss.huber_delta=1"], "loss.huber_delta says nothing for a binary task"),
    ):
        assert said in place.refuses(*FINETUNE, *words), words
    change_table(place, lambda row: row.update(bright="1") if row["split"] == "val" else None)
    assert "validation subjects define no auroc" in place.refuses(*FINETUNE)
    place.rewrite("task", lambda tree: tree.update(kind="retrieval", floors={}))
    assert "nothing is trained for it" in place.refuses(*FINETUNE)


def test_a_scan_that_tuning_cannot_read(place: Place) -> None:
    truncate(place.root / "data/scans/s02.nii.gz")
    line = the_line(place.run(*FINETUNE))
    assert "task bright: 1 of 16 labelled subjects have no scan in data/finetune/tiny-" in line
    assert "ledger.jsonl says why" in line
    assert not (place.root / "runs/tuned/bright").exists()


def test_launch_tells_a_mistake_once(place: Place, project: Path) -> None:
    assert "foundation.nope: no such module" in place.refuses(
        "foundation.launch", "2", "foundation.nope", "pretrain.yaml"
    )
    words = ("foundation.launch", "2", *PRETRAIN, "shards=nowhere")
    before = contents(place.root)
    assert "nowhere: no shards here" in the_line(ended(start(place.root, project, *words)))
    assert contents(place.root) == before


BACKBONE_FILES = ("model.safetensors", "config.json", "provenance.json", "SHA256SUMS")


@pytest.mark.parametrize("name", BACKBONE_FILES)
def test_a_backbone_with_a_missing_or_damaged_file(place: Place, name: str) -> None:
    path = place.root / "runs/done/backbone" / name
    flip(path, 20)
    for command in (EVALUATE, (*EMBED, "features.csv")):
        assert name in place.refuses(*command)
    path.unlink()
    for command in (EVALUATE, (*EMBED, "features.csv")):
        assert name in place.refuses(*command)


def test_embedding_what_cannot_be(place: Place) -> None:
    (place.root / "features.csv").write_text("somebody else's")
    assert "was not written by this command" in place.refuses(*EMBED, "features.csv")
    (place.root / "features.ledger.jsonl").write_text("of an earlier day")
    empty = place.root / "empty"
    empty.mkdir()
    for words, said in (
        (
            (EMBED[1], "data/table.csv", "--out", "features.csv"),
            "data/table.csv: no column 'scan', it has subject, split, bright, age",
        ),
        (
            (EMBED[1], "empty", "--out", "features.csv"),
            "no NIfTI, NRRD or MetaImage file and no DICOM series here",
        ),
        ((*EMBED[1:], "features.txt"), "a table ends in .parquet, .csv or .npz"),
        ((*EMBED[1:], "data/table.csv/features.csv"), "data/table.csv"),
        ((*EMBED[1:], "features.csv", "--device", "cuda:99"), "device 'cuda:99' cannot be used"),
        ((*EMBED[1:], "features.csv", "--device", "tpu?"), "device 'tpu?' cannot be used"),
    ):
        assert said in place.refuses(EMBED[0], *words)
    with full_disk(500):
        assert "File too large: 'features.csv'" in place.refuses(*EMBED, "features.csv")
    truncate(place.root / "data/scans/s02.nii.gz")
    done = place.run(*EMBED, "features.csv")
    assert done.code == 0
    assert "failed s02.nii.gz: not a readable NIfTI file, truncated or damaged" in done.err
    assert "(23 of 24 scans" in done.out


def test_a_training_split_with_one_class(place: Place) -> None:
    change_table(place, lambda row: row.update(bright="0") if row["split"] == "train" else None)
    assert "task bright: the train split has one class" in place.refuses(*EVALUATE)


def test_labels_that_cannot_be_scored(place: Place) -> None:
    for value, said in (
        ("2", "a label of a binary task is 0 or 1, 'bright' holds 2"),
        ("yes", "'bright' holds"),
        ("nan", "'bright' holds"),
    ):
        change_table(place, lambda row, value=value: row.update(bright=value))
        assert said in place.refuses(*EVALUATE)
    change_table(place, lambda row: row.update(bright=""))
    assert "no scan of cohort tiny has a label" in place.refuses(*EVALUATE)
    place.rewrite("task", lambda tree: tree.update(label={"column": "brigth"}))
    assert "no column 'brigth'; did you mean 'bright'?" in place.refuses(*EVALUATE)


def test_a_split_without_subjects(place: Place) -> None:
    change_table(place, lambda row: row.update(split="test") if row["split"] == "train" else None)
    assert "task bright: the train split has no subject" in place.refuses(*EVALUATE)
    quantile = {"column": "age", "at_most_quantile": 0.3}
    place.rewrite("task", lambda tree: tree.update(label=quantile, floors={}))
    assert "task bright: the train split has no subject" in place.refuses(*EVALUATE)


@pytest.mark.parametrize("number", [0, 13])
def test_a_scan_that_evaluation_cannot_read(place: Place, number: int) -> None:
    """It says which one, and keeps the features of the scans before it."""
    scan = place.root / f"data/scans/s{number:02d}.nii.gz"
    truncate(scan)
    line = place.refuses(*EVALUATE)
    assert f"data/scans/s{number:02d}.nii.gz: not a readable NIfTI file, truncated" in line
    scan.unlink()
    assert f"s{number:02d}.nii.gz: no such scan" in place.refuses(*EVALUATE)


def test_a_mask_that_evaluation_cannot_read(place: Place) -> None:
    shutil.copytree(place.root / "data/scans", place.root / "data/masks")
    place.rewrite("cohort", lambda tree: tree.update(mask="masks/{subject}.nii.gz"))
    truncate(place.root / "data/masks/s00.nii.gz")
    cached = place.run(*EVALUATE)  # no floor asks for it, a picture does
    assert "data/masks/s00.nii.gz: not a readable NIfTI file" in the_line(cached)
    place.rewrite("task", lambda tree: tree.update(floors={"volume": "mask"}))
    assert "data/masks/s00.nii.gz: not a readable NIfTI file" in place.refuses(*EVALUATE)


@pytest.mark.parametrize("size_bytes", [1_000, 3_000, 5_000, 6_000])
def test_a_full_disk_while_evaluating(place: Place, size_bytes: int) -> None:
    with full_disk(size_bytes):
        assert "stores/toy/" in place.refuses(*EVALUATE, "seed=1")
    assert place.run(*EVALUATE).out.endswith("up to date: stores/toy\n")


def test_a_damaged_cache_of_features(place: Place) -> None:
    cached = sorted((place.root / "stores/toy/features/mae").parent.glob("mae-*/*.npz"))[0]
    whole = cached.read_bytes()
    damages = (whole[:-20], whole[:50], b"", whole[:60] + b"????" + whole[64:])
    for seed, damage in enumerate(damages, start=1):
        cached.write_bytes(damage)
        ended = place.run(*EVALUATE, f"seed={seed}")
        assert ended.code == 0, ended.err
        assert f"{cached.name}: damaged" in ended.out
        assert cached.read_bytes() == whole


def test_a_damaged_ledger_of_openings(place: Place) -> None:
    (place.root / "openings.jsonl").write_text('{"recipe_digest": "a"}\n{"recipe')
    line = place.refuses(*EVALUATE, "test=open", "ledger=openings.jsonl")
    assert "openings.jsonl, line 2: not the record of an opening" in line


STORED = (
    "run.json",
    "leakage.json",
    "statistics/bright.json",
    "curves/mae.json",
    "pictures/cohort.npz",
    "pictures/mae_reconstructions.npz",
)


@pytest.mark.parametrize("name", STORED)
def test_a_damaged_store(place: Place, name: str) -> None:
    path = place.root / "stores/toy" / name
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:-9], b""):
        path.write_bytes(damage)
        assert f"stores/toy/{name}: " in place.refuses(*REPORT)


def test_a_full_disk_while_reporting(place: Place) -> None:
    sizes = [path.stat().st_size for path in (place.root / "reports").iterdir()]
    for size_bytes in (min(sizes) - 10, max(sizes) - 10):
        for path in (place.root / "reports").iterdir():
            path.write_text("of an earlier day")
        with full_disk(size_bytes):
            line = place.refuses(*REPORT)
        assert "reports/toy." in line
        assert "cannot be written (File too large)" in line


def test_a_report_that_cannot_be_written(place: Place) -> None:
    assert "table.csv" in place.refuses(*REPORT[:3], "data/table.csv/toy")
    (place.root / "reports/other.md").mkdir()
    assert "reports/other.md: cannot be written" in place.refuses(*REPORT[:3], "reports/other")


def test_phantom_leaves_other_folders_alone(place: Place) -> None:
    for out in ("data", "data/table.csv"):
        line = place.refuses("shards.phantom", out, "--subjects", "1", "--overwrite")
        assert f"{out}: holds no phantom cohort; choose another folder" in line
    assert "holds a phantom cohort of" in place.refuses("shards.phantom", "data/phantom")
    assert "expected at least 1" in place.refuses("shards.phantom", "x", "--subjects", "0")
    beneath = place.refuses("shards.phantom", "data/table.csv/below", "--subjects", "1")
    assert "table.csv" in beneath
    again = ("shards.phantom", "data/phantom", "--subjects", "2", "--workers", "1", "--overwrite")
    with full_disk(5_000):
        line = place.refuses(*again)
    assert "data/phantom: cannot be written: File too large; what stood there is" in line


def test_make_real_without_the_data(project: Path) -> None:
    # -o: what make installs counts as there.
    words = ["make", "-o", ".venv/.ready", "real", "DATA=/nowhere"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: no real data at /nowhere; name the folder with make real DATA=")
    assert all(line.startswith("make") for line in rest)
