"""A folder, an archive, a URL, a name: the same backbone from each, fetched once, never half."""

import io
import json
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from foundation.artefact.archive import unpack
from foundation.artefact.finding import as_url, find_backbone
from foundation.artefact.index import INDEX, known_backbones
from foundation.artefact.layout import ALL_FILES, FILES, SUMS
from foundation.artefact.pushing import push_backbone
from foundation.artefact.saving import seal
from foundation.backbone import BackboneError, load_backbone
from foundation.model import load_model
from shards.storage.connections import connection
from tests.foundation.tuned_models import write_model

DEMO = INDEX.with_name("demo")
DIGEST = known_backbones()["demo"].entry.digest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SCANFM_CACHE", str(folder))
    monkeypatch.setattr("shards.storage.errors.RETRY_WAITS_S", ())
    return folder


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of fsspec's that lives in this process."""
    url = "memory://artefacts/demo"
    yield url
    files, _ = connection(url)
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def find(where: str | Path) -> Path:
    return find_backbone(where, say=lambda _line: None).folder


def pack(path: Path, members: dict[str, bytes], *, prefix: str = "backbone/") -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(prefix + name, content)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(prefix + name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


def contents() -> dict[str, bytes]:
    return {name: (DEMO / name).read_bytes() for name in (*FILES, SUMS)}


def left_over(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["b.tar.gz", "b.zip"])
@pytest.mark.parametrize("prefix", ["backbone/", "", "./"])
def test_archives(tmp_path: Path, cache: Path, name: str, prefix: str) -> None:
    folder = find(pack(tmp_path / name, contents(), prefix=prefix))
    assert folder == cache / "backbones" / DIGEST
    assert {path.name for path in folder.iterdir()} == {*FILES, SUMS}
    assert not left_over(cache)


def test_an_archive_is_unpacked_once_and_again_where_the_copy_is_damaged(
    tmp_path: Path, cache: Path
) -> None:
    archive = Path(push_backbone(DEMO, tmp_path / "b.tar"))
    weights = find(archive) / "model.safetensors"
    first = weights.stat().st_ino
    find(archive)
    assert weights.stat().st_ino == first
    weights.write_bytes(b"damaged")
    backbone = load_backbone(archive)
    assert backbone.digest == DIGEST
    assert f"unpacked from {archive}" in backbone.report()
    assert not left_over(cache)
    again = push_backbone(DEMO, tmp_path / "again.tar")
    assert Path(again).read_bytes() == archive.read_bytes()


def link(archive: Path) -> None:
    name, target = "backbone/model.safetensors", "/etc/passwd"
    if archive.suffix == ".zip":
        about = zipfile.ZipInfo(name)
        about.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(about, target)
        return
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, target
        tar.addfile(member)


def bomb(archive: Path) -> None:
    pack(archive, {"model.safetensors": bytes(8 << 20)})


def twice(archive: Path) -> None:
    """Once beside the folder, once in it: the names are the same without it."""
    names = ("backbone/README.md", "README.md")
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in names:
                file.writestr(name, b"")
        return
    with tarfile.open(archive, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())


def cut_short(archive: Path) -> None:
    pack(archive, contents())
    os.truncate(archive, archive.stat().st_size // 2)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: pack(path, {"../escape.json": b""}), r"holds 'backbone/\.\./escape\.json'"),
        (lambda path: pack(path, {"config.json": b""}, prefix="/tmp/"), "holds '/tmp/config.json'"),
        (lambda path: pack(path, {"run.sh": b""}), r"run\.sh'; only the files of one backbone"),
        (lambda path: pack(path, {"a/b/config.json": b""}), "only the files of one backbone"),
        (link, "which is no plain file"),
        (bomb, "would unpack to 8388608 bytes"),
        (twice, r"holds README\.md twice"),
        (cut_short, "cannot be unpacked|is cut short"),
        (lambda path: path.write_bytes(b""), "cannot be unpacked|is no folder"),
        (lambda path: path.write_bytes(b"PK\x03\x04 nothing"), "cannot be unpacked"),
        (lambda path: pack(path, {"config.json": b"{}"}), "has no SHA256SUMS"),
    ],
)
@pytest.mark.parametrize("name", ["b.tar.gz", "b.zip"])
def test_nothing_of_an_archive_is_trusted(
    tmp_path: Path, cache: Path, make: Callable[[Path], object], line: str, name: str
) -> None:
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / name
    make(archive)
    with pytest.raises(BackboneError, match=line) as caught:
        find(archive)
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "cache"}
    assert not left_over(cache)
    assert not (cache / "backbones").exists() or not any((cache / "backbones").iterdir())


def test_a_file_that_lies_about_its_size(tmp_path: Path) -> None:
    archive = pack(tmp_path / "b.zip", {"config.json": bytes(500)})
    content = bytearray(archive.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24  # the size in the directory
    content[at : at + 4] = (100).to_bytes(4, "little")
    archive.write_bytes(content)
    (tmp_path / "into").mkdir()
    with pytest.raises(BackboneError, match=r"cannot be unpacked|larger than|cut short"):
        unpack(archive, tmp_path / "into")


def test_a_url_is_fetched_once_and_taken_from_the_cache_out_of_reach(
    memory: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push_backbone(DEMO, memory) == memory
    said: list[str] = []
    backbone = load_backbone(Path(memory), say=said.append)
    assert backbone.digest == DIGEST
    assert f"(from {memory})" in said[-1]
    (note,) = (cache / "addresses").iterdir()
    assert json.loads(note.read_text()) == {"digest": DIGEST}  # and no address, nor its password
    files, _ = connection(memory)
    monkeypatch.setattr(type(files), "cat_file", _unreachable)
    monkeypatch.setattr(type(files), "_open", _unreachable)
    assert load_backbone(memory, say=said.append).digest == DIGEST
    assert f"takes the copy of before, digest {DIGEST[:16]}" in said[1]
    shutil.rmtree(cache)
    with pytest.raises(BackboneError, match="cannot be reached"):
        load_backbone(memory)


def _unreachable(*_words: object, **_options: object) -> None:
    raise ConnectionError("no route")


def test_a_url_that_holds_no_whole_backbone(memory: str, cache: Path) -> None:
    with pytest.raises(BackboneError, match="has no SHA256SUMS, so no backbone is there"):
        load_backbone(memory)
    push_backbone(DEMO, memory)
    files, root = connection(memory)
    files.pipe_file(f"{root}/model.safetensors", b"other")
    with pytest.raises(BackboneError, match=f"{memory}/model.safetensors: its SHA-256 is not"):
        load_backbone(memory)
    files.pipe_file(f"{root}/SHA256SUMS", b"x" * 100_000)
    with pytest.raises(BackboneError, match="does not list the files of a backbone"):
        load_backbone(memory)
    assert not left_over(cache)


def test_an_archive_behind_a_url(memory: str, tmp_path: Path) -> None:
    files, root = connection(memory)
    archive = push_backbone(DEMO, tmp_path / "b.tgz")
    files.pipe_file(f"{root}/b.tgz", Path(archive).read_bytes())
    assert load_backbone(f"{memory}/b.tgz").digest == DIGEST


def test_many_at_once_keep_one_copy(tmp_path: Path, cache: Path) -> None:
    archive = push_backbone(DEMO, tmp_path / "b.tar")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(find, [Path(archive)] * 8))
    assert found == {cache / "backbones" / DIGEST}
    assert not left_over(cache)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = push_backbone(DEMO, tmp_path / "b.tar")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCANFM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BackboneError, match="name another folder with SCANFM_CACHE"):
        find(Path(archive))


def test_names_of_the_index_and_of_a_labs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder that is no backbone hides no name
    assert "(demo of the index, a folder)" in load_backbone("demo").report()
    with pytest.raises(BackboneError, match=r"demmo: is no folder, and no name .* mean 'demo'"):
        load_backbone("demmo")
    shutil.copytree(DEMO, tmp_path / "lab/ours")
    own = tmp_path / "lab/own.yaml"
    entry = {"where": "ours", "digest": DIGEST, "card": "ours/README.md"}
    own.write_text(yaml.safe_dump({"backbones": {"ours": entry}}))
    monkeypatch.setenv("SCANFM_BACKBONES", str(own))
    assert load_backbone("ours").digest == DIGEST
    (tmp_path / "lab/ours/README.md").write_text("another card")
    seal(tmp_path / "lab/ours")
    with pytest.raises(BackboneError, match=f"the index says digest {DIGEST[:16]}, .*another one"):
        load_backbone("ours")
    own.write_text("backbones: {ours: {where: ours, digest: none}}")
    with pytest.raises(BackboneError, match=r"own\.yaml: .*digest"):
        load_backbone("ours")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("hf://a/b@v1", "hf://a/b@v1"),
        ("hf:/a/b@v1", "hf://a/b@v1"),
        ("S3://bucket/x", "s3://bucket/x"),
        ("https:/host/x.tar", "https://host/x.tar"),
        ("file:/folder/x", "file:///folder/x"),
        ("runs/demo", None),
        ("C:/runs/demo", None),
        ("a:b", None),
    ],
)
def test_a_url_keeps_its_meaning_as_a_path(text: str, url: str | None) -> None:
    assert as_url(text) == url


def test_publishing_to_a_folder(tmp_path: Path) -> None:
    at = push_backbone(DEMO, tmp_path / "out")
    assert load_backbone(at).digest == DIGEST
    other = tmp_path / "other"
    shutil.copytree(DEMO, other)
    (other / "README.md").write_text("another card")
    seal(other)
    with pytest.raises(BackboneError, match="holds another backbone"):
        push_backbone(other, at)
    assert load_backbone(push_backbone(other, at, overwrite=True)).digest != DIGEST
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(BackboneError, match="is there, and is no backbone"):
        push_backbone(DEMO, tmp_path / "full", overwrite=True)
    (other / "config.json").write_text(json.dumps({}))
    with pytest.raises(BackboneError, match=r"config\.json: its SHA-256"):
        push_backbone(other, tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model", "binary")


def test_a_head_goes_wherever_its_backbone_goes(model: Path, tmp_path: Path, memory: str) -> None:
    digest = load_model(model).digest
    names = (*ALL_FILES, SUMS)
    packed = pack(tmp_path / "m.zip", {name: (model / name).read_bytes() for name in names})
    for place in (packed, push_backbone(model, tmp_path / "m.tar"), push_backbone(model, memory)):
        found = load_model(place)
        assert found.digest == digest
        assert found.backbone.loaded is not None
        assert {path.name for path in found.backbone.loaded.folder.iterdir()} == set(names)
    assert load_backbone(push_backbone(DEMO, memory, overwrite=True)).digest == DIGEST
    with pytest.raises(BackboneError, match="is a backbone without a head"):
        load_model(memory)


def test_half_a_head_is_none(model: Path, tmp_path: Path, cache: Path, memory: str) -> None:
    folder = tmp_path / "half"
    shutil.copytree(model, folder)
    (folder / "head.json").unlink()
    with pytest.raises(BackboneError, match=r"head\.json: missing"):
        push_backbone(folder, tmp_path / "never")
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BackboneError, match=r"head\.json: missing"):
        load_model(pack(tmp_path / "listed.zip", content))
    seal(folder)
    content[SUMS] = (folder / SUMS).read_bytes()
    with pytest.raises(BackboneError, match=r"must list exactly .* differs in head\.json"):
        load_model(pack(tmp_path / "half.zip", content))
    files, root = connection(memory)
    for name, each in content.items():
        files.pipe_file(f"{root}/{name}", each)
    with pytest.raises(BackboneError, match="does not list the files of a backbone"):
        load_model(memory)
    assert not left_over(cache)
