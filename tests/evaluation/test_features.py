import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.extraction.features import (
    Extractor,
    FeatureError,
    extract_all,
    fingerprint,
    pool_by_subject,
)
from shards.scan import Scan
from shards.sources.cohort import CohortRow


def _counting(calls: list[str], name: str = "mean", digest: str = "a") -> Extractor:
    def extract(scan: Scan, row: CohortRow) -> dict[str, np.ndarray]:
        calls.append(row.subject)
        return {"mean": np.array([scan.voxels.mean()]), "spacing": np.array(scan.spacing_mm)}

    return Extractor(name, digest, None, extract)


@pytest.fixture
def extract(place: Any) -> Callable[..., dict[str, dict[str, np.ndarray]]]:
    task = place.task()
    return lambda *extractors: extract_all(
        task.candidates, extractors, folder=place.root / "features", title="features"
    )


def test_a_second_pass_reads_nothing(extract: Any) -> None:
    calls: list[str] = []
    first = extract(_counting(calls))
    assert len(calls) == 72
    second = extract(_counting(calls))
    assert len(calls) == 72
    np.testing.assert_array_equal(first["mean"]["mean"], second["mean"]["mean"])
    np.testing.assert_allclose(first["mean"]["spacing"], np.tile([2.0, 1.0, 1.5], (72, 1)))


def test_a_kill_loses_the_scan_in_hand(extract: Any) -> None:
    calls: list[str] = []

    def dies(scan: Scan, row: CohortRow) -> dict[str, np.ndarray]:
        if len(calls) == 20:
            raise KeyboardInterrupt
        return _counting(calls).extract(scan, row)

    with pytest.raises(KeyboardInterrupt):
        extract(Extractor("mean", "a", None, dies))
    extract(_counting(calls))
    assert len(calls) == 72


def test_a_changed_scan_or_extractor_is_extracted_again(place: Any, extract: Any) -> None:
    calls: list[str] = []
    extract(_counting(calls))
    os.utime(place.data / "scans" / "040_scan.nii", ns=(1, 1))
    extract(_counting(calls))
    assert len(calls) == 72 + 1
    extract(_counting(calls, digest="b"))
    assert len(calls) == 72 + 1 + 72


def test_files_of_one_name_size_and_time_are_told_apart(place: Any) -> None:
    """Two visits of a subject, unpacked from an archive that keeps times."""

    def into_folders(row: dict[str, str]) -> dict[str, str]:
        number = int(row["subject"][-3:])
        folder = place.data / str(number)
        folder.mkdir()
        (place.data / row["scan"]).rename(folder / "scan.nii")
        os.utime(folder / "scan.nii", ns=(1, 1))
        return {**row, "subject": f"p{number // 2:02d}", "scan": f"{number}/scan.nii", "mask": ""}

    place.rewrite(into_folders)
    rows = place.task(floors={}).candidates
    found = extract_all(rows, [_counting([])], folder=place.root / "features", title="features")[
        "mean"
    ]["mean"]
    assert len(np.unique(found)) == 72


def test_a_header_has_its_voxels_beside_it(tmp_path: Path) -> None:
    for name in ("one.mhd", "one.raw", "other.raw"):
        (tmp_path / name).write_bytes(b"1")
    before = fingerprint(str(tmp_path / "one.mhd"))
    (tmp_path / "other.raw").write_bytes(b"12")
    assert fingerprint(str(tmp_path / "one.mhd")) == before
    (tmp_path / "one.raw").write_bytes(b"12")
    assert fingerprint(str(tmp_path / "one.mhd")) != before


def test_a_new_extractor_does_not_repeat_the_others(extract: Any) -> None:
    calls: list[str] = []
    more: list[str] = []
    extract(_counting(calls))
    extract(_counting(calls), _counting(more, name="more"))
    assert (len(calls), len(more)) == (72, 72)


def test_views_are_resampled(extract: Any) -> None:
    shapes: list[tuple[int, ...]] = []

    def note(scan: Scan, _: CohortRow) -> dict[str, np.ndarray]:
        shapes.append(scan.voxels.shape)
        return {"spacing": np.array(scan.spacing_mm)}

    found = extract(Extractor("view", "a", (4.0, 2.0, 3.0), note))
    np.testing.assert_allclose(found["view"]["spacing"], np.tile([4.0, 2.0, 3.0], (72, 1)))
    assert set(shapes) == {(3, 4, 5)}


def test_several_scans_are_averaged(place: Any) -> None:
    place.rewrite(lambda row: {**row, "subject": f"p{int(row['subject'][-3:]) // 2:02d}"})
    task = place.task()
    values = np.arange(72.0)[:, None]
    pooled = pool_by_subject(task, task.candidates, values)
    assert pooled.shape == (36, 1)
    assert sorted(pooled[:, 0].tolist()) == [2.0 * pair + 0.5 for pair in range(36)]


def test_a_damaged_scan_is_one_line_that_names_it(place: Any, extract: Any) -> None:
    path = place.data / "scans" / "005_scan.nii"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(FeatureError, match=r"005_scan\.nii: .*mend the scan"):
        extract(_counting([]))
    path.unlink()
    with pytest.raises(FeatureError, match=r"005_scan\.nii: no such scan"):
        extract(_counting([]))


def test_features_that_are_not_finite_are_refused_before_they_are_kept(
    place: Any, extract: Any
) -> None:
    def broken(scan: Scan, _: CohortRow) -> dict[str, np.ndarray]:
        return {"mean": np.array([scan.voxels.mean(), np.nan])}

    with pytest.raises(FeatureError, match=r"scan\.nii: mean gives mean that is not finite"):
        extract(Extractor("mean", "a", None, broken))
    assert not list((place.root / "features").rglob("*.npz"))


def test_no_identifier_is_in_the_cache(place: Any, extract: Any) -> None:
    extract(_counting([]))
    for path in Path(place.root / "features").rglob("*"):
        assert "patient" not in path.name
        assert path.is_dir() or b"patient" not in path.read_bytes()
