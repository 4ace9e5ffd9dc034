"""Scans are read from a URL, shards are written to one: the same bytes as on a disk."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from shards.build import BuildConfig, BuildError, main
from shards.building.publication import RemoteOutput
from shards.storage import errors as place_errors
from shards.storage.places import Place
from shards.streaming.reader import ShardReader
from shards.verify import verify
from shards.withdraw import withdraw
from tests.shards.servers import s3_server, web_server

Archive = Callable[[Path], Path]
Recipe = Callable[..., BuildConfig]


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(place_errors, "RETRY_WAITS_S", (0.01, 0.01))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, archive: Archive, toy_recipe: Recipe) -> Path:
    root = archive(tmp_path_factory.mktemp("archive"))
    main(toy_recipe(root))
    return root


@pytest.fixture(scope="module")
def s3(root: Path) -> Iterator[str]:
    """A bucket that holds the archive below ``in``."""
    with s3_server("built"):
        client = boto3.client("s3")
        for path in root.rglob("*"):
            if path.is_file() and path.parent.parent.name in ("dicom", root.name):
                name = path.relative_to(root).as_posix()
                client.put_object(Bucket="built", Key=f"in/{name}", Body=path.read_bytes())
        yield "s3://built"


def _fetched(url: str) -> dict[str, bytes]:
    place = Place(url)
    names = [file.name for file in place.files()]
    return {name: place.read_bytes(name) for name in names if name != ".inputs"}


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".inputs"}


def test_built_into_a_bucket(
    root: Path,
    s3: str,
    tmp_path: Path,
    toy_recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Built, added to, verified, read, withdrawn from: all without a local folder of shards."""
    words = {"out": f"{s3}/out/toy", "staging": str(tmp_path)}
    main(toy_recipe(root, **words))
    assert _fetched(f"{s3}/out/toy") == _content(root / "shards")
    assert not list(tmp_path.iterdir())
    capsys.readouterr()
    main(toy_recipe(root, **words))
    assert "up to date" in capsys.readouterr().out
    assert list(verify(f"{s3}/out/toy")) == []
    reader, local = ShardReader(f"{s3}/out/toy"), ShardReader(root / "shards")
    assert (reader.read_volume(4) == local.read_volume(4)).all()
    subject = reader.samples[0].subject
    withdraw(f"{s3}/out/toy", subject, key=root / "key", runs=root / "runs", staging=tmp_path / "w")
    left = _fetched(f"{s3}/out/toy")
    assert json.loads(left["dataset.json"])["num_samples"] == 8
    assert local.samples[0].shard not in left
    assert list(verify(f"{s3}/out/toy")) == []


def test_an_upload_that_breaks_goes_on(
    root: Path, s3: str, tmp_path: Path, toy_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_recipe(root, out=f"{s3}/out/broken", staging=str(tmp_path))
    whole, count = RemoteOutput.deliver, iter(range(100))

    def deliver(self: RemoteOutput, *words: Any) -> None:
        if next(count) == 2:
            raise OSError(5, "the line is cut")
        whole(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteOutput, "deliver", deliver)
        with pytest.raises(BuildError, match=r"the line is cut.*the same command goes on"):
            main(config)
    assert "dataset.json" not in _fetched(f"{s3}/out/broken")
    main(config)
    assert _fetched(f"{s3}/out/broken") == _content(root / "shards")


def _volumes(folder: Path) -> dict[str, bytes]:
    """Source digest to voxels."""
    reader = ShardReader(folder)
    return {
        sample.sequences["volume"].source_digest: reader.read_volume(place).tobytes()
        for place, sample in enumerate(reader.samples)
    }


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_built_from_a_url(
    root: Path, s3: str, tmp_path: Path, toy_recipe: Recipe, kind: str
) -> None:
    with web_server(root) as server:
        where = f"{s3}/in" if kind == "s3" else server.url
        main(toy_recipe(root, out=str(tmp_path / "shards"), data_root=where, workers=2))
    assert _volumes(tmp_path / "shards") == _volumes(root / "shards")
    assert list(verify(tmp_path / "shards")) == []
    for content in _content(tmp_path / "shards").values():
        assert b"127.0.0.1" not in content
        assert b"s3://" not in content
