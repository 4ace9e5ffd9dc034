"""Groups of parameters: what decays, and how fast each layer learns."""

import pytest
import torch

from foundation.mae import MaeConfig, build_mae
from foundation.preprocessing import Preprocessing
from foundation.running.parameters import LayerRates, parameter_groups
from foundation.vit import VitConfig, build_vit

RATES = LayerRates(decay=0.9, patch_embed=0.2)


@pytest.fixture(scope="module")
def mae():
    torch.manual_seed(0)
    vit = build_vit(VitConfig(size="toy", patch_size=(2, 4, 3), depth=2, layer_scale=1e-5))
    config = MaeConfig(decoder_embed_dim=24, decoder_depth=2, decoder_num_heads=3)
    preprocessing = Preprocessing(crop_shape=(4, 8, 9))
    return build_mae(config, vit=vit, preprocessing=preprocessing, total_steps=3, seed=0)


def test_lower_layers_of_the_backbone_learn_less(mae) -> None:
    groups = parameter_groups(mae, weight_decay=0.1, rates=RATES, backbone=mae.backbone)
    share = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found = {name: share[id(p)] for name, p in mae.named_parameters()}
    want = {
        "backbone.cls_token": 0.9**3,
        "backbone.registers": 0.9**3,
        "backbone.patch_embed.weight": 0.9**3 * 0.2,
        "backbone.patch_embed.bias": 0.9**3 * 0.2,
        "backbone.norm.weight": 1.0,
    }
    for name in found:
        if name.startswith("backbone.blocks."):
            want[name] = 0.9 ** (2 - int(name.split(".")[2]))
        elif not name.startswith("backbone."):
            want[name] = 1.0  # the decoder's blocks too
    assert want.keys() <= found.keys()
    assert {name: found[name] for name in want} == pytest.approx(want)
    assert any(name.startswith("decoder.blocks.0.") for name in want)


def test_every_parameter_is_in_one_group_and_the_first_has_it_all(mae) -> None:
    for rates in (LayerRates(), RATES):
        groups = parameter_groups(mae, weight_decay=0.1, rates=rates, backbone=mae.backbone)
        members = [id(p) for group in groups for p in group["params"]]
        assert sorted(members) == sorted(id(p) for p in mae.parameters())
        assert (groups[0]["name"], groups[0]["lr_scale"]) == ("decay", 1.0)
        assert all(
            (group["weight_decay"] == 0) == (group["name"] == "no_decay") for group in groups
        )
    assert len(parameter_groups(mae, weight_decay=0.1)) == 2


def test_biases_norms_and_tokens_do_not_decay(mae) -> None:
    groups = parameter_groups(mae, weight_decay=0.1)
    still = {id(p) for group in groups if group["name"] == "no_decay" for p in group["params"]}
    names = {name for name, p in mae.named_parameters() if id(p) in still}
    assert {"backbone.cls_token", "backbone.registers", "decoder.mask_token"} <= names
    assert "backbone.patch_embed.bias" in names
    assert not any(name.endswith("embed.weight") for name in names)


def test_what_never_learns_is_in_no_group() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1, bias=False))
    module[0].requires_grad_(False)
    [group] = parameter_groups(module, weight_decay=0.1, last_layer={"1.weight"})
    assert group["params"] == [module[1].weight]
    assert group["last_layer"]
