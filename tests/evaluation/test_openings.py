import json
from pathlib import Path

import pytest

from evaluation.storing.openings import (
    LedgerError,
    announce_opening,
    find_opening,
    record_opening,
)


def _open(ledger: Path, digest: str, date: str) -> dict:
    line = announce_opening(ledger, date=date, name="real", recipe_digest=digest)
    record_opening(ledger, recipe_digest=digest, scores={"t": []})
    return line


def test_one_line_per_recipe(tmp_path: Path) -> None:
    ledger = tmp_path / "openings.jsonl"
    assert find_opening(ledger, "aa") is None
    _open(ledger, "aa", "2026-01-01")
    before = ledger.read_bytes()
    assert _open(ledger, "aa", "2026-05-05")["date"] == "2026-01-01"
    assert ledger.read_bytes() == before
    _open(ledger, "bb", "2026-06-06")
    assert ledger.read_bytes().startswith(before)
    assert len(ledger.read_text().splitlines()) == 2
    assert find_opening(ledger, "bb") == {
        "date": "2026-06-06", "name": "real", "recipe_digest": "bb", "scores": {"t": []},
    }  # fmt: skip


def test_an_opening_stands_before_its_scores_and_scores_stay(tmp_path: Path) -> None:
    ledger = tmp_path / "openings.jsonl"
    announce_opening(ledger, date="2026-01-01", name="real", recipe_digest="aa")
    assert json.loads(ledger.read_text())["scores"] is None
    record_opening(ledger, recipe_digest="aa", scores={"t": [1]})
    before = ledger.read_bytes()
    announce_opening(ledger, date="2026-02-02", name="real", recipe_digest="aa")
    record_opening(ledger, recipe_digest="aa", scores={"t": [2]})
    assert ledger.read_bytes() == before
    assert json.loads(before)["scores"] == {"t": [1]}


def test_a_damaged_ledger_is_left_alone(tmp_path: Path) -> None:
    ledger = tmp_path / "openings.jsonl"
    _open(ledger, "aa", "2026-01-01")
    ledger.write_text(ledger.read_text() + "{half")
    with pytest.raises(LedgerError, match="line 2"):
        _open(ledger, "bb", "2026-01-02")
    assert ledger.read_text().endswith("{half")
