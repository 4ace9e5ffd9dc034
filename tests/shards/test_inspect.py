"""The page of ``shards.inspect``: what it shows of shards that the test writes member by member."""

import base64
import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.building.dataset import describe
from shards.building.ledger import Entry, write_ledger
from shards.codec import checksums, encode
from shards.files import sha256_of, write_json
from shards.index import DATASET, LEDGER, read_index
from shards.inspect import __main__ as inspect
from shards.inspect.facts import Duplicate, duplicates, histogram, reasons, short
from shards.inspect.pictures import PLANES, draw, window_of
from shards.measure.intensity import intensity_statistics
from shards.streaming.reader import ShardReader
from shards.write import PackedSample, ShardWriter
from tests.shards.servers import web_server

SHAPE, SPACING = (6, 10, 8), (4.0, 1.5, 2.0)
BOX = [[1, 5], [2, 9], [3, 8]]
HOSTILE = '<script>alert("1")</script>'


def ramp(modality: str) -> np.ndarray:
    """Bright towards superior, posterior and left, so that no flip goes unseen."""
    d, h, w = np.indices(SHAPE)
    return (d * 30 + h * 10 + w * 4 - (160 if modality == "CT" else 0)).astype(np.int16)


def packed(
    key: str, *, sequences: dict[str, str], masks: Sequence[str] = (), **changes: Any
) -> PackedSample:
    """A sample; ``sequences`` are names with their modality."""
    volumes = {f"{name}.b2nd": ramp(modality) for name, modality in sequences.items()}
    for name in masks:
        label = np.zeros(SHAPE, np.uint8)
        label[2:4, 4:7, 4:6] = 1
        volumes[f"{name}.mask.b2nd"] = label
    scan = {
        "key": key,
        "shape": list(SHAPE),
        "spacing_mm": list(SPACING),
        "foreground_box": BOX,
        "subject": hashlib.sha256(key.encode()).hexdigest()[:16],
        "source": "made",
        "split": None,
        "visit_day": None,
        "values": {},
        "masks": list(masks),
        "sequences": [
            {
                "name": name,
                "modality": modality,
                "slope": 1.0,
                "intercept": 0.0,
                "statistics": intensity_statistics(ramp(modality))._asdict(),
                "source_digest": hashlib.sha256(f"{key} {name}".encode()).hexdigest(),
                "perceptual_hash": "",
                "quality": 0.75,
                "series": None,
                "metadata": {},
            }
            for name, modality in sequences.items()
        ],
        **changes,
    }
    frames = {name: encode(voxels) for name, voxels in volumes.items()}
    members = {**frames, "scan.json": json.dumps(scan, sort_keys=True).encode()}
    return PackedSample(
        key=key,
        record=scan,
        members=members,
        sha256={name: hashlib.sha256(one).hexdigest() for name, one in members.items()},
        checksums={name: checksums(frame) for name, frame in frames.items()},
    )


ENTRIES = [
    Entry("made", 0, "accepted", "a" * 16, key="made-0"),
    Entry("made", 1, "accepted", key="made-1", note="near duplicate of made-0 (distance 7)"),
    Entry("made", 2, "rejected", "c" * 16, reason="duplicate of made-0"),
    Entry("made", 3, "rejected", "d" * 16, reason="near duplicate of made-1 (distance 3)"),
    Entry("made", 4, "rejected", "e" * 16, reason="a gap of 8.00 mm"),
    Entry("made", 5, "rejected", "f" * 16, reason="a gap of 8.00 mm"),
    Entry("made", 6, "skipped", reason="not an image"),
    Entry("made", 7, "skipped", reason="not selected: modality"),
]  # fmt: skip


def write_shards(folder: Path, samples: Sequence[PackedSample], *, licence: str = "CC0") -> Path:
    """A whole folder of shards, two samples or fewer to a tar."""
    folder.mkdir()
    shards: list[dict[str, Any]] = []
    writer = ShardWriter(folder, shard_size_mb=0.02, finished=lambda _, entry: shards.append(entry))
    for sample in samples:
        writer.add(sample)
    writer.close()
    write_ledger(folder / LEDGER, ENTRIES)
    content = describe(
        about={
            "name": "toy",
            "recipe_digest": "0" * 64,
            "spacing_mm": None,
            "sources": [{"name": "made", "licence": licence, "source": "written by a test"}],
        },
        samples=[sample for shard in shards for sample in read_index(folder, shard)],
        shards=shards,
        entries=ENTRIES,
        ledger_sha256=sha256_of(folder / LEDGER),
        history=[],
        withdrawn=["9" * 16],
        next_shard=len(shards),
    )
    write_json(folder / DATASET, content)
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CT, one MR with two sequences and two masks; to be read only."""
    folder = tmp_path_factory.mktemp("inspect") / "toy"
    return write_shards(
        folder,
        [
            packed("made-0", sequences={"volume": "CT"}),
            packed("made-1", sequences={"volume": "CT"}, visit_day=12),
            packed("made-2", sequences={"t1w": "MR", "flair": "MR"}, masks=["face", "lesion"]),
        ],
    )


def page_of(folder: Path, out: Path, *, num_scans: int = 24, seed: int = 0) -> str:
    inspect.inspect(folder, out=out, num_scans=num_scans, seed=seed)
    return out.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Checks that tags close in order, and collects attributes and the text outside styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if "style" in self.open else f" {data}"


def test_the_page_says_what_the_shards_hold(toy: Path, tmp_path: Path) -> None:
    text = " ".join(Tags(page_of(toy, tmp_path / "page.html")).text.split())
    digest = json.loads((toy / DATASET).read_text())["digest"]
    for told in (
        f"Digest {digest}",
        "3 of 3 subjects in ",
        "CT 2, MR 2",
        "volume 2, flair 1, t1w 1",
        "face 1, lesion 1",
        "Withdrawn 1 subject ",
        "made 3 3 CC0 written by a test",
        "8 entries: 2 accepted, 4 rejected, 2 skipped",
        "a gap of 8.00 mm 2 duplicate of another scan 1 near duplicate of another scan 1",
        "not an image 1 not selected: modality 1",
        "1 exact and 2 near duplicates",
        "input 2 of made made-0 exact rejected",
        "input 3 of made made-1 3 rejected made-1 made-0 7 kept, marked",
        "6 x 10 x 8 voxels of 4 x 1.5 x 2 mm",
        "quality 0.75",
        "shown -160 to 240",
    ):
        assert told in text


def test_the_page_makes_no_request(toy: Path, tmp_path: Path) -> None:
    page = page_of(toy, tmp_path / "page.html")
    for tag, name, value in Tags(page).attributes:
        assert tag not in ("script", "link", "iframe", "object", "img")
        if name in ("href", "src"):
            assert value.startswith(("#", "data:image/png;base64,"))
    assert "url(" not in page
    assert "@import" not in page


def test_every_sequence_has_three_slices_of_true_proportions(toy: Path, tmp_path: Path) -> None:
    page = page_of(toy, tmp_path / "page.html")
    boxes = re.findall(r'<svg viewBox="0 0 (\S+) (\S+)" role="img" aria-label="(\w+) slice', page)
    d, h, w = (length * edge for length, edge in zip(SHAPE, SPACING, strict=True))
    sizes = {"axial": (w, h), "coronal": (w, d), "sagittal": (h, d)}
    assert len(boxes) == 4 * 3
    for width, height, plane in boxes:
        assert (float(width), float(height)) == sizes[plane]


def test_slices_are_the_right_ones_the_right_way_up(toy: Path) -> None:
    reader = ShardReader(toy)
    drawn = draw(reader, reader.samples[0]).sequences[0]
    grey = np.clip((ramp("CT") + 160.0) / 400, 0, 1) * 255
    middle = [(first + last) // 2 for first, last in BOX]
    expected = [grey[middle[0]], grey[::-1, middle[1]], grey[::-1, :, middle[2]]]
    boxes = [(3, 2, 5, 7), (3, 1, 5, 4), (2, 1, 7, 4)]  # x, y, width, height
    assert [plane.name for plane in drawn.planes] == list(PLANES)
    for plane, values, box in zip(drawn.planes, expected, boxes, strict=True):
        content = base64.b64decode(plane.png.partition(",")[2])
        shown = np.asarray(Image.open(io.BytesIO(content)))
        np.testing.assert_allclose(shown, values, atol=0.51)
        assert plane.box == box


def test_masks_are_outlined_where_they_lie(toy: Path) -> None:
    reader = ShardReader(toy)
    first, _ = draw(reader, reader.samples[2]).sequences
    axial, coronal, _ = first.planes
    assert [number for number, _ in axial.outlines] == [0, 1]
    assert axial.outlines[0][1] == "M4 4h2M4 7h2M4 4v3M6 4v3"
    assert coronal.outlines[0][1] == "M4 2h2M4 4h2M4 2v2M6 2v2"  # rows 2 and 3 of 6, turned over


@pytest.mark.parametrize(
    ("modality", "window"), [("CT", (-160, 240)), ("MR", (5, 90)), ("PT", (0, 90)), ("OT", (5, 90))]
)
def test_each_modality_has_its_window(
    toy: Path, modality: str, window: tuple[float, float]
) -> None:
    sequence = ShardReader(toy).samples[0].sequences["volume"]
    statistics = {**sequence.statistics, "p00_5": 5.0, "p99_5": 90.0}
    assert window_of(replace(sequence, modality=modality, statistics=statistics)) == window


def test_damage_is_shown_and_not_a_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = packed("made-2", sequences={"t1w": "MR", "flair": "MR"}, masks=["face", "lesion"])
    folder = write_shards(
        tmp_path / "secret-name", [packed("made-0", sequences={"volume": "CT"}), masked]
    )
    samples = ShardReader(folder).samples
    broken = {0: "volume.b2nd", 1: "flair.b2nd"}
    for index, name in [*broken.items(), (1, "lesion.mask.b2nd")]:
        tar, member = folder / samples[index].shard, samples[index].members[name]
        content = bytearray(tar.read_bytes())
        content[member.offset + member.size - 40] ^= 0xFF
        tar.write_bytes(content)
    page = page_of(folder, tmp_path / "page.html")
    text = Tags(page).text
    assert len(re.findall(r"damaged: shard-\d{6}\.tar, byte \d+", text)) == 2
    assert "mask lesion: damaged" in text
    assert "mask face: damaged" not in text
    assert page.count("aria-label") - page.count('class="chart"') == 3 + 1  # t1w, and the contents
    assert "secret-name" not in page
    assert "2 of the 2 scans drawn are damaged" in capsys.readouterr().out


def test_the_same_shards_and_seed_give_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    pages = [
        page_of(toy, tmp_path / f"{name}.html", num_scans=2, seed=seed)
        for name, seed in (("a", 0), ("b", 0))
    ]
    assert pages[0] == pages[1]
    reader = ShardReader(toy)
    drawn = {tuple(inspect.choose(reader, num_scans=2, seed=seed)) for seed in range(20)}
    assert drawn == {(0, 2), (1, 2)}  # one CT and one MR, whatever the seed
    assert inspect.choose(reader, num_scans=99, seed=0) == [0, 1, 2]
    assert inspect.choose(reader, num_scans=0, seed=0) == []


def test_a_url_gives_the_page_of_the_folder(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    local = page_of(toy, tmp_path / "local.html")
    with web_server(toy) as server:
        inspect.inspect(server.url, out=tmp_path / "remote.html", num_scans=24, seed=0)
    assert (tmp_path / "remote.html").read_text(encoding="utf-8") == local


def test_text_of_a_recipe_is_escaped(tmp_path: Path) -> None:
    folder = write_shards(
        tmp_path / "toy", [packed("made-0", sequences={"volume": "CT"})], licence=HOSTILE
    )
    page = page_of(folder, tmp_path / "page.html")
    assert HOSTILE not in page
    assert HOSTILE in Tags(page).text


def test_histograms() -> None:
    few = histogram("Few", [3, 1, 3, 3, 2.5], unit="mm")
    assert few.bars == [("1", 1), ("2.5", 1), ("3", 3)]
    assert (few.low, few.high, few.note) == ("1 mm", "3 mm", "n = 5, median 3 mm")
    even = histogram("Even", list(range(48)))
    assert [bar.number for bar in even.bars] == [2] * 24
    wide = histogram("Wide", np.geomspace(0.1, 1e6, 240).tolist())
    assert sum(bar.number for bar in wide.bars) == 240
    assert max(bar.number for bar in wide.bars) <= 12
    assert wide.note.endswith("logarithmic")
    assert [short(value) for value in (5.0, 0.79688, 443530.2, 1.7e6, -1024)] == [
        "5", "0.797", "443530", "1.7e+06", "-1024",
    ]  # fmt: skip


def test_a_folder_whose_last_subject_was_withdrawn_has_a_page(tmp_path: Path) -> None:
    page = page_of(write_shards(tmp_path / "toy", []), tmp_path / "page.html")
    assert "0 of 0 samples" in Tags(page).text


def test_duplicates_are_found_by_their_words_alone() -> None:
    assert duplicates(ENTRIES) == [
        Duplicate("input 2 of made", "made-0", None, "rejected"),
        Duplicate("input 3 of made", "made-1", 3, "rejected"),
        Duplicate("made-1", "made-0", 7, "accepted"),
    ]
    assert dict(reasons(ENTRIES, status="rejected")) == {
        "a gap of 8.00 mm": 2,
        "duplicate of another scan": 1,
        "near duplicate of another scan": 1,
    }


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shards.inspect", *words], capture_output=True, text=True
    )


def test_the_command_says_what_it_reads_and_where_the_page_is(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    done = run(str(toy), "--out", str(out), "--scans", "1")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == (f"reads {toy}, writes {out}", f"page: {out}")
    assert "scans" in done.stderr
    assert "1 of 3 samples" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", ["no shards", "no ledger", "bad ledger", "bad seed", "bad out"])
def test_what_a_user_can_cause_ends_in_one_line(toy: Path, tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "copy"))
    words = [str(folder), "--out", str(tmp_path / "page.html")]
    if case == "no shards":
        words[0] = str(tmp_path / "nothing")
    elif case == "no ledger":
        (folder / LEDGER).unlink()
    elif case == "bad ledger":
        (folder / LEDGER).write_text("{}")
    elif case == "bad seed":
        words += ["--seed", "-1"]
    else:
        (tmp_path / "file").write_text("")
        words[2] = str(tmp_path / "file" / "page.html")
    done = run(*words)
    assert done.returncode == 2
    told = done.stderr.splitlines()[-1]
    assert told.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_missing_library_is_named(toy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jinja2" else found(name)
    )
    with pytest.raises(ValueError, match=r"needs jinja2.*scanfm\[evaluate\]"):
        page_of(toy, tmp_path / "page.html")
