"""What of a backbone is trained in each mode, and adapters that disappear into its weights."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from foundation.finetuning.heads import HeadConfig, build_head
from foundation.finetuning.lora import LoraConfig, LoraLinear, has_lora, merge_lora
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.target import Target
from foundation.finetuning.tuning import TuneConfig, set_tuning, trainable_names
from foundation.running.parameters import LayerRates, parameter_groups
from foundation.vit import Crops, Vit3d, VitConfig, build_vit

PATCH, SHAPE = (2, 4, 3), (4, 12, 15)
TARGET = Target(task="t", kind="binary", outputs=("1",))
LORA = TuneConfig(mode="lora", lora=LoraConfig(rank=3, alpha=6, mlp=True))
MODES = {
    "full": TuneConfig(),
    "last_blocks": TuneConfig(mode="last_blocks", num_blocks=2),
    "lora": TuneConfig(mode="lora"),
    "head": TuneConfig(mode="head"),
}


def vit_of(**changes: object) -> Vit3d:
    torch.manual_seed(0)
    config = VitConfig(size="toy", embed_dim=48, patch_size=PATCH, depth=3, layer_scale=0.3)
    return build_vit(config.model_copy(update=changes))


def network_of(tune: TuneConfig, **changes: object) -> TunedNetwork:
    vit = vit_of(**changes)
    set_tuning(vit, tune)
    return TunedNetwork(vit, build_head(HeadConfig(), embed_dim=48, target=TARGET), TARGET)


def volume_of(num: int = 2) -> Tensor:
    return torch.randn(num, 1, *SHAPE, generator=torch.Generator().manual_seed(7))


def logits_of(network: TunedNetwork) -> Tensor:
    inside = torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    return network.pooled(Crops(volume_of()), inside=inside)


def nudge_adapters(vit: Vit3d) -> None:
    """As after some training: ``lora_b`` is no longer 0."""
    for module in vit.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_b, std=0.1)


def expected(mode: str, name: str) -> bool:
    """Whether a parameter of the network is trained."""
    if mode == "full" or name.startswith("head."):
        return True
    if mode == "last_blocks":
        return name.startswith(("vit.blocks.1.", "vit.blocks.2.", "vit.norm."))
    return mode == "lora" and name.rpartition(".")[2] in ("lora_a", "lora_b")


@pytest.mark.parametrize("mode", MODES)
def test_exactly_what_is_trained_gets_a_gradient(mode: str) -> None:
    network = network_of(MODES[mode]).train()
    nudge_adapters(network.vit)
    logits_of(network).square().sum().backward()
    with_gradient = {
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and (parameter.grad != 0).any()
    }
    names = {name for name, _ in network.named_parameters() if expected(mode, name)}
    assert with_gradient == names == set(trainable_names(network))
    assert all(p.grad is None for name, p in network.named_parameters() if name not in names)
    assert any(name.startswith("vit.") for name in names) == (mode != "head")


@pytest.mark.parametrize("mode", MODES)
def test_frozen_blocks_leave_nothing_out_and_others_do(mode: str) -> None:
    network = network_of(MODES[mode], drop_path_rate=0.9).train()
    frozen = {"full": 0, "last_blocks": 1, "lora": 0, "head": 3}[mode]
    assert [block.training for block in network.vit.blocks] == [False] * frozen + [True] * (
        3 - frozen
    )
    assert network.head.training
    evaluated = network.eval().vit(volume_of()).cls_token
    torch.manual_seed(1)
    is_same = torch.equal(network.train().vit(volume_of()).cls_token, evaluated)
    assert is_same == (mode == "head")
    assert not any(module.training for module in network.eval().modules())


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_adapters_begin_as_nothing(mlp: str) -> None:
    plain, adapted = vit_of(mlp=mlp).eval(), vit_of(mlp=mlp).eval()
    set_tuning(adapted, LORA)
    assert sum(isinstance(module, LoraLinear) for module in adapted.modules()) == 3 * 4
    for one, other in zip(plain(volume_of()), adapted(volume_of()), strict=True):
        assert torch.equal(one, other)


def test_only_attention_is_adapted_unless_asked() -> None:
    vit = vit_of()
    set_tuning(vit, TuneConfig(mode="lora"))
    found = [name for name, each in vit.named_modules() if isinstance(each, LoraLinear)]
    assert found == [f"blocks.{i}.attn.{layer}" for i in range(3) for layer in ("qkv", "proj")]
    assert vit.blocks[0].attn.qkv.lora_a.shape == (8, 48)
    assert vit.blocks[0].attn.qkv.lora_b.shape == (144, 8)


def test_an_adapted_layer_is_the_papers_sum() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 4)
    layer = LoraLinear(linear, rank=2, alpha=6)
    torch.nn.init.normal_(layer.lora_b)
    values = torch.randn(3, 5)
    weight = linear.weight + 3 * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(layer(values), values @ weight.T + linear.bias)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_merged_adapters_give_the_same_under_plain_names(mlp: str) -> None:
    vit = vit_of(mlp=mlp).eval()
    before = vit(volume_of()).cls_token
    set_tuning(vit, LORA)
    nudge_adapters(vit)
    rng = torch.get_rng_state()
    merged = merge_lora(vit)
    assert torch.equal(rng, torch.get_rng_state())
    assert has_lora(vit)
    assert not has_lora(merged)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    plain = vit_of(mlp=mlp).eval()
    plain.load_state_dict(merged.state_dict())
    wanted = vit(volume_of())
    for found in (merged(volume_of()), plain(volume_of())):
        torch.testing.assert_close(found.cls_token, wanted.cls_token, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.patch_tokens, wanted.patch_tokens, atol=1e-5, rtol=0)
    assert (wanted.cls_token - before).abs().max() > 1e-2


def test_adapted_blocks_compile_in_one_piece_and_still_merge() -> None:
    vit = vit_of().eval()
    set_tuning(vit, LORA)
    nudge_adapters(vit)
    want = vit(volume_of()).cls_token
    vit.compile_blocks(backend="eager")
    torch.testing.assert_close(vit(volume_of()).cls_token, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(merge_lora(vit)(volume_of()).cls_token, want, atol=1e-5, rtol=0)


def test_merging_a_plain_backbone_copies_it() -> None:
    vit = vit_of()
    merged = merge_lora(vit)
    assert torch.equal(merged(volume_of()).cls_token, vit(volume_of()).cls_token)
    assert merged.cls_token is not vit.cls_token


def test_the_whole_state_comes_back_with_adapters() -> None:
    network = network_of(LORA).eval()
    nudge_adapters(network.vit)
    state = {name: each.clone() for name, each in network.state_dict().items()}
    other = network_of(LORA).eval()
    assert not torch.equal(logits_of(other), logits_of(network))
    other.load_state_dict(state)
    assert torch.equal(logits_of(other), logits_of(network))


def test_weights_of_a_plain_backbone_load_beneath_adapters() -> None:
    plain, adapted = vit_of(), vit_of()
    set_tuning(adapted, LORA)
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.rpartition(".")[2] for name in missing} == {"lora_a", "lora_b"}


def test_adapters_learn_at_the_rate_of_their_block() -> None:
    network = network_of(LORA)
    groups = parameter_groups(
        network, weight_decay=0.1, rates=LayerRates(decay=0.5), backbone=network.vit
    )
    share = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {name: share[id(p)] for name, p in network.named_parameters() if p.requires_grad}
    assert len(found) == len(share) == 3 * 4 * 2 + len(list(network.head.parameters()))
    for name, scale in found.items():
        block = int(name.split(".")[2]) if name.startswith("vit.blocks.") else 3
        assert scale == 0.5 ** (3 - block)


@pytest.mark.parametrize("mode", MODES)
def test_training_lowers_the_loss_in_every_mode(mode: str) -> None:
    network = network_of(MODES[mode]).train()
    if mode == "head":  # frozen features of an untrained network hardly differ
        inside = torch.ones(2, 1, *SHAPE, dtype=torch.bool)
        network.head.standardise(network.features(Crops(volume_of()), inside=inside).detach())
    groups = parameter_groups(network, weight_decay=0.0, backbone=network.vit)
    optimiser = torch.optim.AdamW(groups, lr=3e-3)
    frozen = {n: p.detach().clone() for n, p in network.named_parameters() if not p.requires_grad}
    losses = []
    for _ in range(10):
        truth = torch.tensor([[0.0], [1.0]])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_of(network), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.08
    after = dict(network.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_blocks is 4, the backbone has 3 blocks"):
        set_tuning(vit_of(), TuneConfig(mode="last_blocks", num_blocks=4))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "last_blocks"}, "go together"),
        ({"mode": "full", "num_blocks": 2}, "go together"),
        ({"mode": "head", "lora": {}}, "belongs to mode lora, the mode is head"),
    ],
)
def test_settings_of_another_mode_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TuneConfig.model_validate(settings)
