"""What the recipe says of the optimiser reaches its parameter groups."""

import pytest

from foundation.running.optimiser import OptimiserConfig, set_groups
from foundation.running.parameters import UNIFORM
from recipes.load import RecipeError, parse


def test_the_learning_rate_scales_with_the_batch_unless_it_is_given() -> None:
    assert OptimiserConfig(base_lr=1e-3).peak_lr(64) == pytest.approx(2.5e-4)
    assert OptimiserConfig(base_lr=1e-3, lr_scaling="sqrt").peak_lr(256) == pytest.approx(5e-4)
    assert OptimiserConfig(lr=1e-3).peak_lr(64) == 1e-3


def test_warm_up_cosine_and_moving_weight_decay() -> None:
    config = OptimiserConfig(
        lr=1.0, min_lr=0.1, warmup_steps=2, weight_decay=0.04, weight_decay_end=0.2
    )
    rates = [config.lr_at(step, total=7, global_batch=1) for step in range(7)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[4] == pytest.approx(0.55)
    assert rates[6] == 0.1
    decays = [config.weight_decay_at(step, total=7) for step in (0, 3, 6)]
    assert decays == pytest.approx([0.04, 0.12, 0.2])
    assert OptimiserConfig(lr=1.0).weight_decay_at(3, total=7) == 0.05


def test_groups_get_what_is_theirs() -> None:
    groups = [
        {"name": "decay", "last_layer": False, "weight_decay": 9.0, "lr_scale": 1.0},
        {"name": "no_decay", "last_layer": False, "weight_decay": 0.0, "lr_scale": 0.5},
        {"name": "last_layer", "last_layer": True, "weight_decay": 9.0, "lr_scale": 1.0},
    ]
    set_groups(groups, lr=0.5, weight_decay=0.1, freeze_last_layer=True)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (0.5, 0.1),
        (0.25, 0.0),
        (0.0, 0.1),
    ]
    set_groups(groups, lr=0.25, weight_decay=0.2, freeze_last_layer=False)
    assert (groups[2]["lr"], groups[2]["weight_decay"]) == (0.25, 0.2)


@pytest.mark.parametrize("given", [{}, {"lr": 1e-3, "base_lr": 1e-3}])
def test_one_of_the_two_learning_rates(given: dict) -> None:
    with pytest.raises(RecipeError, match="give one of lr and base_lr"):
        parse(given, OptimiserConfig, where="optimiser")


def test_layer_decay_reaches_the_rates() -> None:
    config = OptimiserConfig(lr=1.0, layer_decay=0.9, patch_embed_scale=0.2)
    assert config.rates == (0.9, 0.2)
    assert OptimiserConfig(lr=1.0).rates == UNIFORM
