"""The head of labels: which features it reads, where it begins, what its dropout goes by."""

import math

import pytest
import torch
from torch.nn import functional

from foundation.finetuning.heads import Features, HeadConfig, PooledHead, build_head, head_draws
from foundation.finetuning.target import Target
from recipes.load import RecipeError, parse

WIDTH = 12
TARGET = Target(task="t", kind="multiclass", outputs=("a", "b", "c"))
DEEP = HeadConfig(hidden_dim=7, dropout=0.4)


def head_of(config: HeadConfig) -> PooledHead:
    torch.manual_seed(0)
    head = build_head(config, embed_dim=WIDTH, target=TARGET)
    # Larger than at the beginning, so that differences show.
    torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
    return head


def features_of(num: int = 4) -> torch.Tensor:
    return torch.randn(num, 2 * WIDTH, generator=torch.Generator().manual_seed(1))


def test_two_layers_are_what_they_say() -> None:
    head, features = head_of(DEEP).eval(), features_of()
    head.standardise(features)
    normed = (features - features.mean(0)) / features.std(0, correction=0)
    first, last = head.layers
    hidden = functional.gelu(normed @ first.weight.T + first.bias)
    torch.testing.assert_close(head(features), hidden @ last.weight.T + last.bias)


@pytest.mark.parametrize(
    ("features", "read"), [("cls", [True, False]), ("mean", [False, True]), ("both", [True, True])]
)
def test_it_reads_the_features_it_is_told_to(features: Features, read: list[bool]) -> None:
    given = features_of().requires_grad_()
    head_of(HeadConfig(features=features))(given).square().sum().backward()
    assert given.grad is not None
    assert [bool((part != 0).all()) for part in given.grad.split(WIDTH, dim=1)] == read
    assert [bool((part != 0).any()) for part in given.grad.split(WIDTH, dim=1)] == read


def test_a_small_mean_token_counts_as_much_as_a_large_class_token() -> None:
    head, features = head_of(HeadConfig()).eval(), features_of()
    scaled = features * torch.tensor([30.0, 0.1]).repeat_interleave(WIDTH) + 5
    head.standardise(features)
    before = head(features)
    head.standardise(scaled)
    torch.testing.assert_close(head(scaled), before, atol=1e-3, rtol=0)


def test_a_feature_that_hardly_differs_is_not_made_of_noise() -> None:
    head, features = head_of(HeadConfig()), features_of(9)
    features[:, 3] = 1.0 + 1e-6 * features[:, 3]
    head.standardise(features)
    assert head.scale[3] == 1
    spread = features.std(0, correction=0)
    torch.testing.assert_close(head.scale[4:], spread[4:])


def test_first_logits_are_small_and_so_the_first_loss_is_of_chance() -> None:
    torch.manual_seed(0)
    for config in (HeadConfig(), DEEP):
        logits = build_head(config, embed_dim=WIDTH, target=TARGET)(features_of())
        assert 0 < logits.abs().max() < 0.5
        loss = functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
        assert loss.item() == pytest.approx(math.log(3), abs=0.1)


def test_dropout_goes_by_the_draws_of_each_scan() -> None:
    head, features = head_of(DEEP).train(), features_of()
    assert head.num_draws == 2 * WIDTH + 7
    draws = head_draws(3, positions=[5, 6, 7, 8], num_values=head.num_draws)
    whole = head(features, draws)
    halves = [
        head(features[rows], head_draws(3, positions=positions, num_values=head.num_draws))
        for rows, positions in ((slice(2), [5, 6]), (slice(2, 4), [7, 8]))
    ]
    torch.testing.assert_close(whole, torch.cat(halves))
    other = head(features, head_draws(4, positions=[5, 6, 7, 8], num_values=head.num_draws))
    assert (whole != other).all()
    torch.testing.assert_close(head.eval()(features, draws), head(features))


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    head = head_of(HeadConfig(features="cls", dropout=0.25)).train()
    ones = torch.ones(4000, WIDTH)
    draws = head_draws(0, positions=range(4000), num_values=WIDTH)
    assert draws.min() > 0
    assert draws.max() <= 1
    dropped = head._drop(ones, draws, layer=0)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)


def test_draws_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    head_draws(0, positions=[1, 2], num_values=3)
    assert torch.equal(before, torch.get_rng_state())


def test_without_dropout_nothing_is_drawn() -> None:
    head = head_of(HeadConfig()).train()
    assert head.num_draws == 0
    assert torch.equal(head(features_of()), head.eval()(features_of()))


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(RecipeError, match="dropout"):
        parse({"drop_out": 0.1}, HeadConfig, where="head")
