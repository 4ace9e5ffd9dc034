"""A cohort of 72 subjects without scans, which loading a task never opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from foundation.tasks.task import Task, load_task
from shards.pseudonym import pseudonym

KEY = b"k" * 32
SPLITS = ("train", "train", "val", "test")
COHORT = {
    "name": "tiny", "table": "cohort.csv", "subject": "{subject}", "scan": "{scan}",
    "mask": "{mask}", "modality": "MR", "split": {"column": "split"}, "licence": "CC0-1.0",
    "source": "made by a test",
}  # fmt: skip


class ToyCohort:
    """Its table, recipe and card, written anew for each task that is loaded."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows = [
            {
                "subject": f"patient{number:03d}",
                "scan": f"{number:03d}_scan.nii",
                "mask": f"{number:03d}_mask.nii",
                "split": SPLITS[number // 4 % 4],
                "bright": str(number // 2 % 2),
                "size": str(100 + number / 8),
                "age": "" if number % 9 == 0 else str(50 + number % 20),
                "sex": "MF"[number % 2],
                "part": "head",
            }
            for number in range(72)
        ]
        self.recipe: dict[str, Any] = COHORT

    def rewrite(self, change: Callable[[dict[str, str]], dict[str, str] | None]) -> None:
        """Each row changed; None takes a row out."""
        self.rows = [row for row in map(change, self.rows) if row is not None]

    def add(self, **columns: Callable[[dict[str, str]], object]) -> None:
        """Further columns, each computed from its row."""
        self.rewrite(lambda row: row | {name: str(make(row)) for name, make in columns.items()})

    def task(self, **card: Any) -> Task:
        tree = {
            "name": "bright", "title": "Tiny", "disease": "none", "kind": "binary",
            "cohort": str(self.root / "cohort.yaml"), "label": {"column": "bright"},
            "protocol": {"split": "cohort"}, "groups": ["sex"],
        }  # fmt: skip
        lines = [",".join(self.rows[0]), *(",".join(row.values()) for row in self.rows)]
        (self.root / "cohort.csv").write_text("\n".join(lines) + "\n")
        (self.root / "cohort.yaml").write_text(yaml.safe_dump(self.recipe))
        (self.root / "card.yaml").write_text(yaml.safe_dump({**tree, **card}, sort_keys=False))
        return load_task(self.root / "card.yaml", data_root=self.root, key=KEY)

    def pseudonym(self, subject: str) -> str:
        return pseudonym(KEY, "tiny", subject)


def number_of(row: dict[str, str]) -> int:
    return int(row["subject"][-3:])
