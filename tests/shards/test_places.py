"""Places: one set of words for a folder, a web server and an object store; errors in one line."""

import errno
import multiprocessing
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from shards.storage import connections
from shards.storage import errors as place_errors
from shards.storage.errors import Interrupted, retried
from shards.storage.places import FileInfo, MissingFile, Place, PlaceError
from tests.shards.servers import WebServer, s3_server, web_server

NAMES = ["a b/scan #1.nii.gz", "a/x.dcm", "ä.txt"]
SCAN = b"\x1f\x8b" + bytes(range(256)) * 20
"""Begins like gzip: whoever unpacks on the way is found out."""


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(place_errors, "RETRY_WAITS_S", (0.01, 0.01))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(SCAN if name == NAMES[0] else name.encode())
    return folder


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[WebServer]:
    with web_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    with s3_server("bucket"):
        client = boto3.client("s3")
        for name in NAMES:
            client.put_object(Bucket="bucket", Key=f"in/{name}", Body=(folder / name).read_bytes())
        client.put_object(Bucket="bucket", Key="in/a/", Body=b"")  # how consoles mark a folder
        client.put_object(Bucket="bucket", Key="inside/other", Body=b"")  # the same first letters
        yield "s3://bucket/in"


@pytest.fixture(params=["local", "file", "web", "s3"])
def place(request: pytest.FixtureRequest, folder: Path) -> Place:
    if request.param == "web":
        return Place(request.getfixturevalue("web").url)
    if request.param == "s3":
        return Place(request.getfixturevalue("bucket"))
    return Place(folder if request.param == "local" else folder.as_uri())


def test_every_place_lists_and_reads_the_same(place: Place, tmp_path: Path) -> None:
    found = place.files()
    assert [(one.name, one.size) for one in found] == [
        (NAMES[0], len(SCAN)),
        (NAMES[1], len(NAMES[1])),
        (NAMES[2], len(NAMES[2].encode())),
    ]
    assert all(one.stamp for one in found)
    assert place.info(NAMES[0]) == found[0]
    assert place.exists(NAMES[0])
    assert not place.exists("a/y.dcm")
    assert place.read_bytes(NAMES[0]) == SCAN
    assert b"".join(place.stream(NAMES[0])) == SCAN
    with place.open(NAMES[0]) as file:
        assert file.read() == SCAN
    ranges = [(0, 3), (5, 9), (len(SCAN) - 1, len(SCAN) + 7), (len(SCAN) + 5, len(SCAN) + 6)]
    assert place.read_ranges(NAMES[0], ranges) == [SCAN[a:b] for a, b in ranges]
    child = place.child("a")
    assert [one.name for one in child.files()] == ["x.dcm"]
    copies = place.fetch(NAMES, tmp_path)
    assert [path.read_bytes() for path in copies] == [place.read_bytes(name) for name in NAMES]


def test_only_copies_of_remote_files_are_made(folder: Path, web: WebServer, tmp_path: Path) -> None:
    assert Place(folder).fetch(NAMES[:2], tmp_path) == [folder / name for name in NAMES[:2]]
    assert not list(tmp_path.iterdir())
    assert Place(web.url).fetch(NAMES[:2], tmp_path) == [tmp_path / name for name in NAMES[:2]]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_nothing_is_unpacked_on_the_way(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(web, "encoding", "gzip")
    place = Place(web.url)
    assert place.read_bytes(NAMES[0]) == SCAN
    assert place.fetch(NAMES[:1], tmp_path)[0].read_bytes() == SCAN
    with place.open(NAMES[0]) as file:
        assert file.read() == SCAN
    assert place.info(NAMES[0]).size == -1  # such a server says the size of something else


def test_a_stamp_changes_with_the_file(bucket: str, tmp_path: Path) -> None:
    for place in (Place(tmp_path), Place(bucket).child("stamps")):
        place.write_bytes("x", b"one")
        before = place.info("x")
        place.write_bytes("x", b"two")
        assert place.info("x").stamp != before.stamp
        place.delete("x")


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_what_is_written_is_read_and_deleted(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    where = {"local": tmp_path / "out", "memory": "memory://out"}.get(kind)
    place = Place(where or request.getfixturevalue("bucket")).child("new")
    source = tmp_path / "source"
    source.write_bytes(SCAN)
    place.upload(source, "deep/scan.nii.gz")
    place.write_bytes("dataset.json", b"{}")
    assert [(one.name, one.size) for one in place.files()] == [
        ("dataset.json", 2),
        ("deep/scan.nii.gz", len(SCAN)),
    ]
    assert place.read_bytes("deep/scan.nii.gz") == SCAN
    place.delete("deep/scan.nii.gz")
    place.delete("deep/scan.nii.gz")
    assert [one.name for one in place.files()] == ["dataset.json"]
    place.delete("dataset.json")


def test_a_missing_file_is_named(place: Place) -> None:
    for read in (place.read_bytes, place.info, lambda name: list(place.stream(name)), place.open):
        with pytest.raises(MissingFile, match=r"a/gone\.dcm"):
            read("a/gone.dcm")
    with pytest.raises(MissingFile, match=r"gone"):
        place.read_ranges("a/gone.dcm", [(0, 1)])
    assert issubclass(MissingFile, FileNotFoundError)


def test_a_missing_folder() -> None:
    with pytest.raises(MissingFile, match="no such folder"):
        Place("/nowhere/at/all").files()


def test_a_web_server_is_only_read(web: WebServer, tmp_path: Path) -> None:
    place = Place(web.url)
    for write in (
        lambda: place.write_bytes("x", b""),
        lambda: place.upload(tmp_path, "x"),
        lambda: place.delete("x"),
    ):
        with pytest.raises(PlaceError, match=r"/x: a web server can only be read; write to"):
            write()


@pytest.mark.parametrize("status", [401, 403])
def test_no_permission(web: WebServer, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(web, "fail", lambda _: status)
    place = Place(web.url)
    for ask in (place.read_bytes, place.exists):  # what may not be seen is not absent
        with pytest.raises(PlaceError, match=r"x\.dcm: no permission .*credentials") as caught:
            ask("a/x.dcm")
        assert "\n" not in str(caught.value)


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(PlaceError, match=r"y: no permission .* credentials in the environment"):
        Place(f"{bucket}/elsewhere").read_bytes("y")


def test_an_overloaded_server_is_asked_again(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def busy_twice(name: str) -> int:
        asked.append(name)
        return 503 if len(asked) < 3 else 0

    monkeypatch.setattr(web, "fail", busy_twice)
    assert Place(web.url).read_bytes(NAMES[0]) == SCAN
    assert len(asked) == 3
    monkeypatch.setattr(web, "fail", lambda _: 503)
    with pytest.raises(Interrupted, match=r"x\.dcm: cannot be reached .*503.* gave up after 3"):
        Place(web.url).read_bytes("a/x.dcm")
    with pytest.raises(Interrupted, match="gave up"):
        Place(web.url).exists("a/x.dcm")


def test_nobody_answers(folder: Path) -> None:
    with web_server(folder) as server:
        url = server.url
    with pytest.raises(Interrupted, match=r"cannot be reached .*; gave up after 3 tries"):
        Place(url).read_bytes("a/x.dcm")


@pytest.mark.parametrize("url", ["s3://nosuch/in", "s3://nosuch"])
def test_a_missing_bucket(bucket: str, url: str) -> None:
    assert bucket
    with pytest.raises(MissingFile, match="s3://nosuch"):
        Place(url).files()
    with pytest.raises(MissingFile, match=r"x: not there"):
        Place(url).write_bytes("x", b"")


def test_one_line_for_what_cannot_be_a_place(folder: Path) -> None:
    with pytest.raises(PlaceError, match=r"foo://x/y: cannot be used \(Protocol not known: foo"):
        Place("foo://x").read_bytes("y")
    with pytest.raises(PlaceError, match=r"^https://host/shards: the URL of a folder has no"):
        Place("https://host/shards?sig=secret")
    for name in ("../x", "/etc/hosts", "", "a/../../b"):
        with pytest.raises(PlaceError, match="is not the relative name"):
            Place(folder).read_bytes(name)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    assert fsspec
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3a", raising=False)
    monkeypatch.setattr(connections, "_open", {})
    with pytest.raises(PlaceError, match=r"pip install 'scanfm\[remote\]'"):
        Place("s3://b/x").read_bytes("y")


def test_credentials_are_never_shown(web: WebServer) -> None:
    url = web.url.replace("://", "://doctor:s3cret@")
    place = Place(url)
    assert str(place) == web.url
    assert "s3cret" not in repr(place)
    assert place.read_bytes(NAMES[0]) == SCAN
    with pytest.raises(MissingFile) as caught:
        place.read_bytes("gone")
    assert "s3cret" not in str(caught.value)
    text = "cannot GET https://u:s3cret@host/x?X-Amz-Signature=abc (see s3://bucket/y)"
    assert place_errors.without_credentials(text) == "cannot GET https://host/x (see s3://bucket/y)"


@pytest.mark.parametrize("write", ["upload", "write_bytes"])
def test_a_full_disk_leaves_what_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    place = Place(tmp_path / "out")
    place.write_bytes("x", b"old")
    source = tmp_path / "source"
    source.write_bytes(SCAN)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlaceError, match=r"out/x: the disk is full; free space and run again"):
        place.upload(source, "x") if write == "upload" else place.write_bytes("x", SCAN)
    assert place.files() == [FileInfo("x", 3, place.info("x").stamp)]
    assert place.read_bytes("x") == b"old"


def test_a_broken_fetch_leaves_nothing(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "fail", lambda name: 500 if name == NAMES[1] else 0)
    with pytest.raises(PlaceError, match=r"a/x\.dcm: cannot be reached"):
        Place(web.url).fetch(NAMES[:2], tmp_path)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert set(left) <= {NAMES[0]}


def test_only_what_may_pass_is_tried_again() -> None:
    tries: list[int] = []

    def refused() -> None:
        tries.append(1)
        raise PlaceError("no permission")

    with pytest.raises(PlaceError, match=r"^no permission$"):
        retried(refused)
    assert len(tries) == 1


def _read_in_child(place: Place, answer: "multiprocessing.Queue[bytes]") -> None:
    answer.put(place.read_bytes(NAMES[0]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["web", "s3"])
def test_it_goes_along_into_another_process(
    kind: str, method: str, web: WebServer, bucket: str
) -> None:
    place = Place(web.url if kind == "web" else bucket)
    assert place.read_bytes(NAMES[0]) == SCAN  # a connection of this process is open
    context = multiprocessing.get_context(method)
    answer = context.Queue()
    child = context.Process(target=_read_in_child, args=(place, answer))
    child.start()
    assert answer.get(timeout=60) == SCAN
    child.join(timeout=60)
    assert child.exitcode == 0
    assert pickle.loads(pickle.dumps(place)).read_bytes(NAMES[0]) == SCAN
