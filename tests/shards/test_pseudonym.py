"""Pseudonyms depend on key, cohort and subject; the key is private and made once."""

import re
import stat
from pathlib import Path

import pytest

from shards.pseudonym import load_key, pseudonym


def test_a_pseudonym_is_stable_and_keyed() -> None:
    key, other = b"k" * 32, b"o" * 32
    name = pseudonym(key, "toy", "sub-1")
    assert re.fullmatch(r"[0-9a-f]{16}", name)
    assert name == pseudonym(key, "toy", "sub-1")
    different = {
        pseudonym(other, "toy", "sub-1"),
        pseudonym(key, "toz", "sub-1"),
        pseudonym(key, "toy", "sub-2"),
        pseudonym(key, "toysub", "-1"),
    }
    assert len(different | {name}) == 5


def test_the_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "data/key"
    key = load_key(path)
    assert len(key) == 32
    assert load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("content", [b"", b"abc", b"zz" * 32, b"\xff" * 64])
def test_another_file_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ValueError, match="not a pseudonym key"):
        load_key(tmp_path / "key")
