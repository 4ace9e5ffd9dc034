"""Fetching MedMNIST3D through its package, with a stub for the package and the network."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shards.scan import ScanError, read_scan
from shards.sources import medmnist
from shards.sources.medmnist import ArchiveError, archive_name, check_archive, fetch


def write_archive(path: Path, *, blank: int = 0) -> str:
    """A small archive, the last ``blank`` test volumes of one value; returns its MD5."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 3), ("val", 2), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 2, 3, 4), np.uint8)
        arrays[f"{split}_labels"] = np.zeros((count, 1), np.uint8)
    arrays["test_images"][4 - blank :] = 0
    np.savez(path, **arrays)
    return hashlib.md5(path.read_bytes()).hexdigest()


def stub(monkeypatch: pytest.MonkeyPatch, download: Callable[..., None]) -> None:
    """A package whose only set is the nodules; its class calls ``download``."""

    class NoduleMNIST3D:
        def __init__(self, **given: Any) -> None:
            download(**given)

    about = {
        "python_class": "NoduleMNIST3D",
        "license": "CC BY 4.0",
        "url": "https://zenodo.org/records/10519652/files/nodulemnist3d.npz",
        "url_64": "https://zenodo.org/records/10519652/files/nodulemnist3d_64.npz",
        "MD5": "of another file",
        "MD5_64": "of another file",
    }
    package = SimpleNamespace(INFO={"nodulemnist3d": about}, NoduleMNIST3D=NoduleMNIST3D)
    monkeypatch.setitem(sys.modules, "medmnist", package)


def test_names_are_those_of_the_package() -> None:
    assert archive_name("organ", 28) == "organmnist3d.npz"
    assert archive_name("vessel", 64) == "vesselmnist3d_64.npz"


def test_an_archive_is_fetched_checked_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def download(**given: Any) -> None:
        calls.append(given)
        md5 = write_archive(Path(given["root"]) / archive_name("nodule", given["size"]))
        sys.modules["medmnist"].INFO["nodulemnist3d"]["MD5_64"] = md5

    stub(monkeypatch, download)
    out = tmp_path / "medmnist3d"
    for _ in range(2):
        medmnist.main([str(out), "--sets", "nodule", "--sizes", "64"])
    assert calls == [{"split": "train", "download": True, "root": str(out), "size": 64}]
    assert (
        "nodulemnist3d_64.npz: train 3, val 2, test 4 volumes, CC BY 4.0" in capsys.readouterr().out
    )


def test_a_failed_download_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(**given: Any) -> None:
        del given
        raise RuntimeError("Automatic download failed!\n  1. Check your network")

    stub(monkeypatch, download)
    with pytest.raises(SystemExit) as caught:
        medmnist.main([str(tmp_path), "--sets", "nodule", "--sizes", "28"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "nodulemnist3d.npz could not be downloaded" in error
    assert "https://zenodo.org/records/10519652" in error
    assert error.count("\n") == 1


def test_without_the_package_the_names_and_the_place_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(ArchiveError, match=r"pip install medmnist, or put .* organmnist3d\.npz"):
        fetch(tmp_path, kind="organ", size=28)


def test_blank_volumes_of_an_old_edition_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "nodulemnist3d.npz"
    write_archive(path, blank=2)
    with pytest.raises(ArchiveError, match=r"blank volumes \(2 in test\): an edition before"):
        check_archive(path)
    read_scan(f"{path}#test/0", modality="OT")
    with pytest.raises(ScanError, match="a blank volume: MedMNIST before"):
        read_scan(f"{path}#test/3", modality="OT")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "organmnist3d.npz"
    path.write_bytes(b"PK and then nothing")
    with pytest.raises(ArchiveError, match="not a MedMNIST archive"):
        check_archive(path)
    assert check_archive(path, md5=write_archive(path)) == "train 3, val 2, test 4"
    with pytest.raises(ArchiveError, match="MD5 differs"):
        check_archive(path, md5="another")
