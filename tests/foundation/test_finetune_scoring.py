"""Scores of subjects from whole scans: however many ranks share them, the same numbers."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foundation.finetuning import scoring
from foundation.finetuning.scoring import Scored, score_rows, standardise_head
from foundation.finetuning.whole_scan import scan_features
from foundation.running.ranks import Ranks
from shards.scan import Scan
from tests.foundation.test_finetune_method import LABELS, MASKS, method_of

SAMPLES = {"b": [0, 3], "a": [1], "d": [2], "c": [4]}
"""Of subjects, in no order; the first has two scans."""
SUBJECTS = ("a", "b", "c", "d")
ROWS = np.array([1, 0, 3])


class Scans:
    """Five scans, anisotropic and of several sizes, one smaller than a patch."""

    samples = SAMPLES

    def scan(self, index: int) -> Scan:
        rng = np.random.default_rng(index)
        shape = (9 + index, 13, 22 - index) if index != 2 else (1, 3, 2)
        voxels = rng.normal(100 * index, 300, shape).astype(np.float32)
        return Scan(voxels=voxels, spacing_mm=(3.0, 1.0, 1.5), modality="CT")

    def classes(self, index: int, target: Any) -> np.ndarray:
        assert target == MASKS
        return (
            np.random.default_rng(index).random(self.scan(index).voxels.shape) > 0.5
        ) * np.uint8(2)


def task_of(kind: str) -> Any:
    label = np.array([4.0, 11.0, 30.0, 7.0])
    return SimpleNamespace(subjects=SUBJECTS, label=label, card=SimpleNamespace(kind=kind))


class Waits(Exception):
    """A rank has told its part."""


def on_ranks(call: Callable[[Ranks], Any], world: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What every rank of several gets: each tells its part, then one of them hears all."""
    parts: list[Any] = []

    def tell(found: Any) -> None:
        parts.append(found)
        raise Waits

    monkeypatch.setattr(scoring, "gather_from_ranks", tell)
    for rank in range(world):
        with pytest.raises(Waits):
            call(Ranks(rank, world, torch.device("cpu")))
    monkeypatch.setattr(scoring, "gather_from_ranks", lambda _: parts)
    return call(Ranks(0, world, torch.device("cpu")))


@pytest.mark.parametrize("target", [LABELS, MASKS], ids=lambda each: each.kind)
def test_any_number_of_ranks_gives_the_same_scores(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of(target)
    beats: list[int] = []

    def scored(ranks: Ranks) -> Scored:
        count = 0

        def alive() -> None:
            nonlocal count
            count += 1

        try:
            return score_rows(
                method, task_of(target.kind), ROWS, scans=Scans(), ranks=ranks,  # type: ignore[arg-type]
                precision="fp32", overlapping=0.0, alive=alive,
            )  # fmt: skip
        finally:
            beats.append(count)

    found = {world: on_ranks(scored, world, monkeypatch) for world in (1, 2, 5)}
    for world in (2, 5):
        assert np.array_equal(found[world].scores, found[1].scores, equal_nan=True)
        assert found[world].loss == found[1].loss
    assert beats == [4, 4, 2, 2, 2, 1, 1, 1, 1, 1, 1]  # as many of each rank: none looks behind
    assert found[1].scores.shape == (3, len(target.outputs))
    assert method.network.training


def test_a_subject_is_the_mean_of_its_scans_and_scores_stand_in_the_order_of_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = {index: torch.tensor([float(index)]) for index in range(5)}
    seen = {float(Scans().scan(index).voxels[0, 0, 0]): index for index in range(5)}
    monkeypatch.setattr(
        scoring, "scan_logits", lambda _, scan, **__: logits[seen[float(scan.voxels[0, 0, 0])]]
    )
    monkeypatch.setattr(scoring, "gather_from_ranks", lambda found: [found])
    found = score_rows(
        method_of(LABELS), task_of("regression"), ROWS, scans=Scans(),  # type: ignore[arg-type]
        ranks=Ranks(0, 1, torch.device("cpu")), precision="fp32", overlapping=0.0,
        alive=lambda: None,
    )  # fmt: skip
    by_hand = [(10 + 2 * 0 + 10 + 2 * 3) / 2, 10 + 2 * 1, 10 + 2 * 2]
    assert found.scores[:, 0].tolist() == pytest.approx(by_hand)
    # Labels 11 of both scans of b, 4 of a, 7 of d, in deviations of 2 about 10.
    errors = [0 - 0.5, 3 - 0.5, 1 + 3.0, 2 + 1.5]
    assert found.loss == pytest.approx(np.square(errors).mean())


def test_dice_adds_the_voxels_of_a_subjects_scans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def probabilities(_: nn.Module, scan: Scan, **__: Any) -> torch.Tensor:
        """The second class wherever a voxel is above 0; never the first."""
        there = torch.from_numpy(scan.voxels > 0).float()
        return torch.stack([1 - there, torch.zeros_like(there), there])

    monkeypatch.setattr(scoring, "scan_probabilities", probabilities)
    monkeypatch.setattr(scoring, "gather_from_ranks", lambda found: [found])
    scans = Scans()
    found = score_rows(
        method_of(MASKS), task_of("segmentation"), ROWS, scans=scans,  # type: ignore[arg-type]
        ranks=Ranks(0, 1, torch.device("cpu")), precision="fp32", overlapping=0.0,
        alive=lambda: None,
    )  # fmt: skip
    assert np.isnan(found.scores[:, 0]).all()  # in neither
    both = total = 0
    for index in SAMPLES["b"]:
        predicted, true = scans.scan(index).voxels > 0, scans.classes(index, MASKS) == 2
        both += int((predicted & true).sum())
        total += int(predicted.sum() + true.sum())
    assert found.scores[0, 1] == pytest.approx(2 * both / total)


def test_the_head_is_standardised_by_the_scans_it_is_told_and_on_any_ranks_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = {}
    for world in (1, 3):
        method = method_of(LABELS)
        method.bag_size = 99  # every window of a scan, as prediction sees it

        def standardise(ranks: Ranks, method: Any = method) -> None:
            standardise_head(
                method, ["d", "b", "c"], scans=Scans(), ranks=ranks,  # type: ignore[arg-type]
                precision="fp32", alive=lambda: None,
            )  # fmt: skip

        on_ranks(standardise, world, monkeypatch)
        heads[world] = method.network.head
    assert heads[1].centre.equal(heads[3].centre)
    assert heads[1].scale.equal(heads[3].scale)
    chosen = features_of(["b", "c", "d"])
    assert torch.allclose(heads[1].centre.double(), chosen.mean(dim=0), atol=1e-5)
    assert not torch.allclose(heads[1].centre.double(), features_of(["a", "b", "c"]).mean(dim=0))
    method.bag_size = 1
    on_ranks(standardise, 1, monkeypatch)
    assert not torch.allclose(method.network.head.centre, heads[1].centre, atol=1e-3)
    heads[1].centre.sub_(1)  # a plain tensor, as training and checkpoints take it


def features_of(names: Sequence[str]) -> torch.Tensor:
    """(n, 2 E) float64 of each one's first scan, by an untouched network."""
    method = method_of(LABELS)
    method.network.eval()
    return torch.stack(
        [
            scan_features(
                method.network, Scans().scan(SAMPLES[name][0]),
                preprocessing=method.preprocessing, device="cpu",
            ).double()
            for name in names
        ]
    )  # fmt: skip
