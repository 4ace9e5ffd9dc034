"""A checkup embeds without a trace in the training, and is the same on any number of ranks."""

import numpy as np
import pytest
import torch
from torch import Tensor

import foundation.watching.checkup
from foundation.health import knn_auroc
from foundation.preprocessing import Preprocessing, normalise_batch
from foundation.vit import Vit3d, VitConfig, build_vit
from foundation.watching.checkup import Checkup, Embedded, measure
from foundation.watching.monitors import cls_patch_cosine, feature_monitors
from foundation.watching.pinned import PinnedSet

SHAPE = (8, 16, 12)
POSITIONS = list(range(11))
LABELS = ["a", "b", "a", "b", "a", None, "b", "a", "b", "a", "b"]
PREPROCESSING = Preprocessing(crop_shape=SHAPE)


@pytest.fixture
def vit() -> Vit3d:
    torch.manual_seed(0)
    config = VitConfig(
        size="toy", depth=2, patch_size=(4, 8, 4), drop_path_rate=0.5, position="rope_mm"
    )
    return build_vit(config).train()


def checkup(
    crop_batch,
    vit: Vit3d,
    *,
    rows: slice = slice(None),
    pooled="cls",
    every_steps: int = 1,
    precision="fp32",
) -> Checkup:
    positions = POSITIONS[rows]
    chunks = [positions[start : start + 4] for start in range(0, len(positions), 4)]
    return Checkup(
        PinnedSet([crop_batch(SHAPE, positions=chunk) for chunk in chunks], LABELS[rows]),
        backbone=vit,
        preprocessing=PREPROCESSING,
        pooled=pooled,
        every_steps=every_steps,
        device=torch.device("cpu"),
        precision=precision,
    )


def expected(crop_batch, vit: Vit3d) -> tuple[Tensor, Tensor]:
    """All scans at once, straight through the backbone."""
    batch = normalise_batch(crop_batch(SHAPE, positions=POSITIONS), preprocessing=PREPROCESSING)
    with torch.no_grad():
        output = vit.eval()(batch.volume, spacing_mm=batch.spacing_mm)
    vit.train()
    return output.cls_token, output.patch_tokens.mean(dim=1)


@pytest.mark.parametrize("pooled", ["cls", "mean"])
def test_monitors_are_of_all_scans_whatever_the_ranks(
    crop_batch, vit: Vit3d, pooled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls_token, patch_mean = expected(crop_batch, vit)
    features = cls_token if pooled == "cls" else patch_mean
    monitors = {
        **feature_monitors(features),
        "cls_patch_cosine": cls_patch_cosine(cls_token, patch_mean=patch_mean),
        "knn_auroc": knn_auroc(features.double().numpy(), labels=LABELS),
    }
    parts: list[Embedded] = []
    for world_size in (1, 3):
        parts.clear()
        monkeypatch.setattr(
            foundation.watching.checkup, "gather_from_ranks", lambda mine: [*parts, mine]
        )
        for rank in reversed(range(1, world_size)):
            other = checkup(crop_batch, vit, rows=slice(rank, None, world_size), pooled=pooled)
            monkeypatch.setattr(other, "after", other._embed)
            parts.append(other.after())
        mine = checkup(crop_batch, vit, rows=slice(0, None, world_size), pooled=pooled)
        found = mine.after(1)
        assert found.keys() == monitors.keys()
        for name, value in monitors.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_training_goes_on_as_if_nothing_had_been(
    crop_batch, vit: Vit3d, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foundation.watching.checkup, "gather_from_ranks", lambda mine: [mine])
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in vit.state_dict().items()}
    vit.train(training)
    assert checkup(crop_batch, vit).after(1)
    assert all(module.training == training for module in vit.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in vit.state_dict().items())
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_a_check_is_made_when_it_is_due(
    crop_batch, vit: Vit3d, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(
        foundation.watching.checkup, "gather_from_ranks", lambda mine: calls.append(mine) or [mine]
    )
    check = checkup(crop_batch, vit, every_steps=3)
    found = [done for done in range(1, 8) if check.after(done)]
    assert found == [3, 6]
    assert len(calls) == 2


def test_half_precision_is_autocast_and_tells_nearly_the_same(
    crop_batch, vit: Vit3d, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foundation.watching.checkup, "gather_from_ranks", lambda mine: [mine])
    whole = checkup(crop_batch, vit).after(1)
    half = checkup(crop_batch, vit, precision="bf16").after(1)
    assert half != whole
    for name in ("feature_std", "gram_off_diagonal", "cls_patch_cosine"):
        assert half[name] == pytest.approx(whole[name], abs=0.01)


def test_few_scans_and_unknown_labels_give_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    cls_token, patch_mean = torch.randn(2, 9, 5, generator=generator)
    assert measure(Embedded(cls_token[:7], patch_mean[:7], [None] * 7), pooled="cls") == {}
    found = measure(Embedded(cls_token, patch_mean, [None] * 9), pooled="cls")
    assert "knn_auroc" not in found
    assert np.isfinite(list(found.values())).all()
