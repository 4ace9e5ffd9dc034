"""The cache of features: bags, marks, damage, and several processes that fill it together."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.backbones.embedder import Dense, Embedder
from evaluation.backbones.own import embedder_of
from evaluation.backbones.tables import TableEmbedder
from evaluation.extraction.cache import CacheFile
from evaluation.extraction.dense import dense_features, load_dense
from evaluation.extraction.embeddings import embedder_extractor
from evaluation.extraction.features import Extractor, FeatureError, extract_all, pool_by_subject
from evaluation.probing.estimator import Bags
from foundation.backbone import random_backbone
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig
from shards.scan import Scan, read_scan, resample
from shards.sources.cohort import CohortRow
from tests.evaluation.extraction_ranks import extractor_of, rows_of


def tokens_of(row: CohortRow) -> int:
    return int(row.subject[-3:]) % 3


def tokens(scan: Scan, row: CohortRow) -> dict[str, np.ndarray]:
    """As many tokens as the subject's number asks, none for some."""
    values = scan.voxels.reshape(-1, 7).astype(np.float32)
    return {"mean": values.mean(keepdims=True)[0], "patch": values[: tokens_of(row)]}


EXTRACTOR = Extractor("tokens", "a", None, tokens, ragged=("patch",))


@pytest.fixture
def extract(place: Any) -> Callable[..., Any]:
    task = place.task()
    return lambda extractor=EXTRACTOR: extract_all(
        task.candidates, [extractor], folder=place.root / "features", title="features"
    )[extractor.name]


def files(place: Any) -> list[Path]:
    return sorted((place.root / "features").rglob("*.npz"))


def test_tokens_of_each_scan_are_a_bag(place: Any, extract: Any) -> None:
    task = place.task()
    for found in (extract(), extract()):
        bags = found["patch"]
        assert isinstance(bags, Bags)
        assert bags.tokens.dtype == np.float32
        assert len(bags) == 72
        for number, row in enumerate(task.candidates):
            expected = read_scan(row.scan, modality="MR").voxels.reshape(-1, 7)[: tokens_of(row)]
            np.testing.assert_array_equal(bags[number], expected.astype(np.float32))


def test_bags_of_several_scans_are_joined(place: Any) -> None:
    place.rewrite(lambda row: {**row, "subject": f"p{int(row['subject'][-3:]) // 2:02d}"})
    task = place.task()
    values = np.arange(72 * 3, dtype=np.float32)[:, None]
    bags = Bags(values, np.arange(0, 72 * 3 + 1, 3))
    pooled = pool_by_subject(task, task.candidates, bags)
    assert len(pooled) == 36
    for number, scans in enumerate(task.scans):
        first = 3 * task.candidates.index(scans[0])
        assert pooled[number][:, 0].tolist() == list(range(first, first + 6))


def test_a_file_of_something_else_is_refused(place: Any, extract: Any) -> None:
    extract()
    first, second, *_ = files(place)
    second.write_bytes(first.read_bytes())
    with pytest.raises(FeatureError, match="made of something else than its name says") as caught:
        extract()
    assert str(second) in str(caught.value)
    assert second.is_file(), "nothing is deleted"
    with np.load(first) as whole:
        unmarked = {key: whole[key] for key in whole.files if key != "made_of"}
    np.savez(second, **unmarked)
    with pytest.raises(FeatureError, match="features of two origins would be mixed"):
        extract()


def test_the_files_of_another_backbone_are_refused(place: Any, extract: Any) -> None:
    extract()
    mine = files(place)[0].parent
    others = Extractor("tokens", "b", None, tokens, ragged=("patch",))
    extract(others)
    theirs = next(each for each in (place.root / "features").iterdir() if each != mine)
    for path in mine.iterdir():
        path.replace(theirs / path.name)
    with pytest.raises(FeatureError, match="features of two origins would be mixed"):
        extract(others)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_made_again(
    place: Any, extract: Any, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = extract()
    path = files(place)[3]
    whole = path.read_bytes()
    middle = whole.rindex(b"NUMPY") + 130  # in the numbers of the last array
    changed = bytearray(whole)
    changed[middle] ^= 1
    path.write_bytes(whole[:-9] if damage == "cut" else bytes(changed))
    after = extract()
    assert capsys.readouterr().out == f"redone  {path}: damaged\n"
    np.testing.assert_array_equal(before["patch"].tokens, after["patch"].tokens)
    assert path.read_bytes() == whole


def test_a_mark_is_checked_without_reading_the_arrays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = CacheFile(tmp_path, "x", "a" * 64, "b" * 64)
    assert not file.is_there()
    file.write({"tokens": np.zeros((3, 4))})
    assert file.is_there()
    file.path.write_bytes(file.path.read_bytes()[:200])
    assert not file.is_there()
    assert capsys.readouterr().out.endswith("damaged\n")
    other = CacheFile(tmp_path, "x", "a" * 64, "b" * 63 + "c")
    other.write({"tokens": np.zeros((3, 4))})
    with pytest.raises(FeatureError, match="something else"):
        file.is_there()


def launch(project: Path, processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "foundation.launch", str(processes),
         "tests.evaluation.extraction_ranks", *words],
        cwd=project, capture_output=True, text=True, check=False, timeout=200,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_two_ranks_fill_one_cache(place: Any, project: Path, tmp_path: Path) -> None:
    for number in range(72):
        (place.data / "scans" / f"{number:03d}_mask.nii").unlink()
    scans = str(place.data / "scans")
    two = launch(project, 2, scans, str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    lines = two.stdout.splitlines()
    assert len(lines) == 1, "rank 0 alone goes on"
    said = json.loads(lines[0])
    assert said["by"] == [number % 2 for number in range(72)], "each rank had its share"
    rows = rows_of(Path(scans))
    one = extract_all(rows, [extractor_of(0)], folder=tmp_path / "one", title="features")
    assert list(one["mean"]["mean"]) == said["mean"]
    names = [
        {path.relative_to(tmp_path / each) for path in (tmp_path / each).rglob("*.npz")}
        for each in ("one", "two")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 72


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("kill", 137, "error: rank 1 was ended by SIGKILL (out of memory?)"),
        ("fail", 2, ".nii: is odd"),
    ],
)
def test_a_lost_rank_ends_the_job_with_one_line(
    place: Any, project: Path, tmp_path: Path, fault: str, code: int, line: str
) -> None:
    done = launch(project, 2, str(place.data / "scans"), str(tmp_path / "cache"), fault)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.count("error:") == 1, done.stderr
    assert any(each.endswith(line) for each in done.stderr.splitlines())
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def backbone() -> Embedder:
    config = VitConfig(size="toy", patch_size=(2, 3, 4), embed_dim=24, num_heads=1, depth=2)
    contract = Preprocessing(crop_shape=(4, 6, 8), spacing_mm=(2.5, 1.0, 1.5))
    return embedder_of(
        random_backbone(config, preprocessing=contract, seed=1), device=torch.device("cpu")
    )


def test_a_backbone_is_an_extractor(place: Any, extract: Any, backbone: Embedder) -> None:
    found = extract(embedder_extractor("mae", backbone, spacing_mm=None))
    assert found["cls"].shape == (72, 2, 24)
    assert isinstance(found["crop_cls"], Bags)
    first = place.task().candidates[0]
    scan = resample(read_scan(first.scan, modality="MR"), (2.5, 1.0, 1.5))
    for name, values in backbone.embed(scan).items():
        np.testing.assert_array_equal(found[name][0], values)
    other = embedder_extractor("mae", backbone, spacing_mm=(3.0, 2.0, 2.0))
    assert other.spacing_mm == (3.0, 2.0, 2.0)


def test_a_table_is_an_extractor_by_subject(place: Any, extract: Any) -> None:
    values = {f"patient{number:03d}": np.full(3, number, np.float32) for number in range(72)}
    found = extract(embedder_extractor("t", TableEmbedder(values, "t.csv", "d"), spacing_mm=None))
    rows = place.task().candidates
    assert found["cls"][:, 0, 0].tolist() == [float(row.subject[-3:]) for row in rows]
    del values["patient033"]
    with pytest.raises(FeatureError, match="has no row of a subject"):
        extract(embedder_extractor("t", TableEmbedder(values, "t.csv", "e"), spacing_mm=None))


def test_tokens_of_whole_scans_are_files(
    place: Any, backbone: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    task = place.task()
    asked: list[Scan] = []

    class Counting:
        digest, spacing_mm, embed = backbone.digest, backbone.spacing_mm, backbone.embed

        def dense(self, scan: Scan) -> Dense | None:
            asked.append(scan)
            return backbone.dense(scan)

    def paths() -> list[list[Path]]:
        found = dense_features(task, Counting(), name="mae", folder=place.root / "features")
        assert found is not None
        return found

    found = paths()
    assert [len(scans) for scans in found] == [1] * 72
    assert len(asked) == 72
    row = task.scans[5][0]
    expected = backbone.dense(resample(read_scan(row.scan, modality="MR"), (2.5, 1.0, 1.5)))
    dense = load_dense(found[5][0])
    assert expected is not None
    np.testing.assert_array_equal(dense.tokens, expected.tokens)
    assert vars(dense).keys() == vars(expected).keys()
    for name in ("patch_voxels", "offset_voxels", "shape", "spacing_mm"):
        assert getattr(dense, name) == getattr(expected, name)

    whole = found[5][0].read_bytes()
    found[5][0].write_bytes(whole[:100])
    with pytest.raises(FeatureError, match="cannot be read"):
        load_dense(found[5][0])
    assert paths() == found
    assert len(asked) == 73
    assert found[5][0].read_bytes() == whole
    assert "damaged" in capsys.readouterr().out


def test_a_backbone_without_a_grid_has_no_dense_features(place: Any) -> None:
    table = TableEmbedder({}, "t.csv", "d")
    found = dense_features(place.task(), table, name="t", folder=place.root / "features")
    assert found is None
