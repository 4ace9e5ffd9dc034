"""What a backbone says it has seen is every scan of its shards."""

from types import SimpleNamespace
from typing import Any

from foundation.running.provenance import seen_in


def reader(subjects: list[str], scans: list[list[tuple[str, str]]]) -> Any:
    """Stands for a folder of shards: of each sample, its sequences' digests and hashes."""
    records = [
        {"sequences": [{"source_digest": one, "perceptual_hash": two} for one, two in sample]}
        for sample in scans
    ]
    return SimpleNamespace(
        dataset={"subjects": subjects}, samples=SimpleNamespace(scans=lambda: iter(records))
    )


def test_every_sequence_of_every_folder_is_listed_once() -> None:
    first = reader(["b", "a"], [[("2", "ff"), ("1", "")], [("3", "ee")]])
    second = reader(["c", "a"], [[("3", "ee")], [("4", "aa")]])
    assert seen_in([first, second]) == {
        "subjects": ["a", "b", "c"],
        "source_digests": ["1", "2", "3", "4"],
        "perceptual_hashes": ["aa", "ee", "ff"],
    }
