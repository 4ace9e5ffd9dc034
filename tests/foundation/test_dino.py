"""The whole method: its loss beside a slow one, what moves when, and who gets a gradient."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from foundation.dino import Dino, DinoConfig, build_dino
from foundation.preprocessing import Preprocessing
from foundation.running.optimiser import set_groups
from foundation.running.parameters import LayerRates
from foundation.vit import Crops, VitConfig, build_vit

PATCH = (2, 4, 3)
SHAPE = (6, 12, 15)
PREPROCESSING = Preprocessing(crop_shape=SHAPE, window_hu=(-300, 300))
POSITIONS = [0, 1, 2, 7]
SUBJECTS = [5, 6, 5, 8]
SHARED = DinoConfig.model_validate(
    {
        "local_crops": {"num_crops": 3, "shape": [4, 8, 9]},
        "head": {"num_prototypes": 40, "hidden_dim": 32, "bottleneck_dim": 16},
        "weight": 0.7,
        "ibot": {"weight": 1.3},
        "freeze_last_layer_steps": 2,
    }
)
CONFIG = SHARED.model_copy(
    update={
        "targets": "centring",
        "ibot": SHARED.ibot.model_copy(update={"separate_head": True}),
    }
)
PLAIN = SHARED.model_copy(update={"ibot": None, "koleo_weight": 0.0})


def toy_dino(config: DinoConfig = CONFIG, *, total_steps: int = 10, **vit_fields) -> Dino:
    torch.manual_seed(0)
    vit = build_vit(VitConfig(size="toy", patch_size=PATCH, depth=2, **vit_fields))
    return build_dino(config, vit=vit, preprocessing=PREPROCESSING, total_steps=total_steps, seed=3)


@pytest.fixture
def batch(crop_batch):
    return crop_batch(SHAPE, positions=POSITIONS)._replace(subject=torch.tensor(SUBJECTS))


def _trained(dino: Dino) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in dino.named_parameters() if p.requires_grad}


def _one_by_one(dino: Dino, batch, step: int, config: DinoConfig) -> torch.Tensor:
    """The loss from the papers' equations: crop by crop, patch by patch, pair by pair."""
    crops, size = dino.views(batch), len(batch.volume)
    masks = dino.hiding(batch.position, num_views=2).hidden
    temp, student_temp = dino.temperatures.teacher_at(step), config.student_temp
    patch_head = {side: side.patch_head or side.head for side in (dino.student, dino.teacher)}
    rows, hidden_rows, cls_tokens = [], [], []
    for part in crops:
        for index, volume in enumerate(part.volume):
            hidden = masks[index : index + 1] if part is crops[0] else None
            single = Crops(volume[None], part.spacing_mm[index : index + 1], hidden=hidden)
            token = dino.student.mask_token
            [seen] = dino.student.backbone.packed([single], mask_token=token)
            rows.append(dino.student.head(seen.cls_token)[0])
            if hidden is not None:
                cls_tokens.append(seen.cls_token[0])
                for place in hidden[0].nonzero()[:, 0]:
                    hidden_rows.append(patch_head[dino.student](seen.patch_tokens[0, place]))
    with torch.no_grad():
        targets, patch_targets = [], []
        for index, volume in enumerate(crops[0].volume):
            seen = dino.teacher.backbone(volume[None])
            targets.append(dino.teacher.head(seen.cls_token)[0])
            for place in masks[index].nonzero()[:, 0]:
                patch_targets.append(patch_head[dino.teacher](seen.patch_tokens[0, place]))
        targets = dino.targets(torch.stack(targets), temp=temp, step=step)
        patch_targets = dino.patch_targets(torch.stack(patch_targets), temp=temp, step=step)

    def cross_entropy(shares: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return -(shares * (logits / student_temp).log_softmax(0)).sum()

    num_views = len(rows) // size
    pairs = [
        cross_entropy(targets[t * size + b], rows[s * size + b])
        for t in range(2)
        for s in range(num_views)
        for b in range(size)
        if s != t
    ]
    of_crops, patch = [], 0
    for mask in masks:
        count = int(mask.sum())
        if count:
            each = range(patch, patch + count)
            terms = [cross_entropy(patch_targets[i], hidden_rows[i]) for i in each]
            of_crops.append(torch.stack(terms).mean())
            patch += count
    koleo = []
    for view in range(2):
        unit = [functional.normalize(token, dim=0) for token in cls_tokens[view * size :][:size]]
        for i in range(size):
            others = [j for j in range(size) if SUBJECTS[j] != SUBJECTS[i]]
            nearest = min((unit[i] - unit[j]).norm() for j in others)
            koleo.append(-(nearest + 1e-6).log() / size)
    return (
        config.weight * torch.stack(pairs).mean()
        + config.ibot.weight * torch.stack(of_crops).mean()
        + config.koleo_weight * torch.stack(koleo).sum()
    )


@pytest.mark.parametrize("config", [CONFIG, SHARED], ids=["own head", "shared head"])
def test_one_packed_call_equals_a_slow_loss_crop_by_crop(config: DinoConfig, batch) -> None:
    dino, slow = toy_dino(config), toy_dino(config)
    with torch.no_grad():  # a teacher that is not its student, and a mask token that shows
        for module in (dino, slow):
            generator = torch.Generator().manual_seed(1)
            for parameter in module.teacher.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
            module.student.mask_token.mul_(20)
            module.student.backbone.patch_embed.weight.mul_(3)
    loss, metrics = dino(batch, 0)
    want = _one_by_one(slow, batch, 0, config)
    torch.testing.assert_close(loss, want, atol=0, rtol=1e-5)
    assert metrics["loss"] == loss.detach()
    loss.backward()
    want.backward()
    others = _trained(slow)
    for name, parameter in _trained(dino).items():
        scale = others[name].grad.abs().max()
        torch.testing.assert_close(parameter.grad, others[name].grad, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("config", [CONFIG, SHARED, PLAIN], ids=["own head", "shared", "plain"])
def test_every_trained_parameter_learns_and_is_in_one_group(config: DinoConfig, batch) -> None:
    dino = toy_dino(config)
    dino(batch, 0)[0].backward()
    trained = _trained(dino)
    assert all(name.startswith("student.") for name in trained)
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert ("student.mask_token" in trained) == (config.ibot is not None)
    groups = dino.param_groups(0.04)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in trained.values())
    last = [p.shape for group in groups if group["last_layer"] for p in group["params"]]
    assert last == [(40, 16)] * (2 if config is CONFIG else 1)


@pytest.mark.parametrize("config", [CONFIG, SHARED], ids=["own head", "shared head"])
def test_every_layer_of_the_student_runs_once_a_step(config: DinoConfig, batch) -> None:
    """A submodule that ran twice has had wrong gradients under ZeRO-2 in bf16 (DeepSpeed #8224)."""
    dino = toy_dino(config)
    calls: dict[str, int] = {}
    for name, module in dino.student.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            calls[name] = 0
            module.register_forward_hook(
                lambda *_, name=name: calls.update({name: calls[name] + 1})
            )
    dino(batch, 0)
    # The branch and its backbone hold tokens of their own, which `packed` reads once.
    layers = {name: count for name, count in calls.items() if name not in ("", "backbone")}
    assert len(layers) > 15
    assert set(layers.values()) == {1}


def test_with_missing_channels_every_parameter_learns(crop_batch) -> None:
    dino = toy_dino(CONFIG.model_copy(update={"channel_drop": 0.5}), in_chans=2)
    one = crop_batch(SHAPE, positions=POSITIONS)
    two = one._replace(
        volume=one.volume.repeat(1, 2, 1, 1, 1),
        present=torch.tensor([[True, True], [True, True], [True, False], [True, True]]),
        slope=one.slope.repeat(1, 2),
        intercept=one.intercept.repeat(1, 2),
        modality=one.modality.repeat(1, 2),
        statistics=one.statistics.repeat(1, 2, 1),
    )
    loss, _ = dino(two, 0)
    loss.backward()
    assert loss.isfinite()
    assert "student.backbone.absent_embed" in _trained(dino)
    assert [name for name, p in _trained(dino).items() if not p.grad.any()] == []


def test_every_weight_is_initialised() -> None:
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        dino = toy_dino()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(value.isfinite().all() for value in dino.state_dict().values())


def test_under_autocast_only_the_layers_lose_precision(batch) -> None:
    dino = toy_dino(SHARED)
    loss, _ = dino(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rough, metrics = dino(batch, 0)
    assert rough.dtype == torch.float32
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert rough.item() == pytest.approx(loss.item(), rel=0.02)


def test_heads_learn_whole_and_lower_blocks_less() -> None:
    dino = toy_dino()
    groups = dino.param_groups(0.04, rates=LayerRates(decay=0.5, patch_embed=0.2))
    set_groups(groups, lr=1.0, weight_decay=0.1, freeze_last_layer=True)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    student = dino.student
    assert rate[id(student.backbone.patch_embed.weight)] == pytest.approx(0.5**3 * 0.2)
    assert rate[id(next(student.backbone.blocks[1].parameters()))] == 0.5
    assert rate[id(student.head.layers[0].weight)] == 1.0
    assert rate[id(student.head.last_layer.weight_v)] == 0
    assert rate[id(student.patch_head.last_layer.weight_v)] == 0


@pytest.mark.parametrize("part", ["cls_token", "patches", "koleo"])
def test_a_gradient_flows_only_where_a_loss_looks(part: str, batch) -> None:
    dino = toy_dino()
    dino.weights = dino.weights._replace(
        **{name: float(name == part) for name in dino.weights._fields}
    )
    dino(batch, 0)[0].backward()
    moved = {
        name.split(".")[1]
        for name, p in _trained(dino).items()
        if p.grad is not None and p.grad.any()
    }
    heads = {"cls_token": {"head"}, "patches": {"patch_head"}, "koleo": set()}
    assert moved == {"backbone", "mask_token"} | heads[part]
    assert all(p.grad is None for p in dino.teacher.parameters())


def test_the_teacher_moves_by_the_schedule_and_has_no_gradient(batch) -> None:
    config = CONFIG.model_copy(update={"momentum_teacher": 0.9, "momentum_teacher_end": 0.98})
    dino = toy_dino(config, total_steps=5)
    optimiser = torch.optim.SGD(_trained(dino).values(), lr=0.1)
    expected = {name: p.clone() for name, p in dino.teacher.named_parameters()}
    for step in range(3):
        loss, _ = dino(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        dino.after_update(step)
        momentum = 0.98 - 0.08 * (np.cos(np.pi * step / 4) + 1) / 2
        student = dict(dino.student.named_parameters())
        for name, value in expected.items():
            value.mul_(momentum).add_(student[name].detach(), alpha=1 - momentum)
    moved = 0
    for name, parameter in dino.teacher.named_parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=1e-6)
        moved += not torch.equal(parameter, student[name])
    assert moved > 10


def test_the_teacher_never_drops_a_path(batch) -> None:
    dino = toy_dino(drop_path_rate=0.5).train()
    assert dino.student.training
    [crops, _] = dino.views(batch)
    first, again = (dino.teacher([crops], None).logits for _ in range(2))
    assert torch.equal(first, again)
    first, again = (dino.student([crops], None).logits for _ in range(2))
    assert not torch.equal(first, again)


def test_the_loss_is_a_function_of_batch_and_seed(batch) -> None:
    dino = toy_dino()
    torch.manual_seed(1)
    first, _ = dino(batch, 0)
    torch.manual_seed(2)
    again, _ = dino(batch, 0)
    assert torch.equal(first, again)


def test_a_state_dict_resumes_exactly(batch, crop_batch) -> None:
    dino, resumed = toy_dino(), toy_dino()
    optimiser = torch.optim.SGD(_trained(dino).values(), lr=0.1)
    dino(batch, 0)[0].backward()
    optimiser.step()
    dino.after_update(0)
    resumed.load_state_dict(dino.state_dict())
    following = crop_batch(SHAPE, positions=[3, 4])
    assert dino.targets.center.any()
    assert dino.patch_targets.center.any()
    assert torch.equal(dino(following, 1)[0], resumed(following, 1)[0])


def test_a_weight_of_0_leaves_a_part_out(batch) -> None:
    without = SHARED.model_copy(update={"ibot": SHARED.ibot.model_copy(update={"weight": 0.0})})
    dino = toy_dino(without)
    assert dino.student.mask_token is None
    assert dino.patch_targets is None
    _, metrics = dino(batch, 0)
    assert "loss_patches" not in metrics
    _, metrics = toy_dino(PLAIN)(batch, 0)
    assert {name for name in metrics if name.startswith("loss_")} == {"loss_cls_token"}


def test_without_local_crops_the_globals_teach_each_other(batch) -> None:
    local = CONFIG.local_crops.model_copy(update={"num_crops": 0})
    loss, _ = toy_dino(CONFIG.model_copy(update={"local_crops": local}))(batch, 0)
    assert loss.isfinite()


def test_local_crops_that_patches_do_not_tile_are_refused() -> None:
    local = CONFIG.local_crops.model_copy(update={"shape": (4, 8, 10)})
    with pytest.raises(ValueError, match=r"\(4, 8, 10\) voxels"):
        toy_dino(CONFIG.model_copy(update={"local_crops": local}))


def test_dropping_the_only_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="channel_drop needs several channels"):
        toy_dino(CONFIG.model_copy(update={"channel_drop": 0.2}))


def test_positions_in_millimetres_get_the_spacing_of_each_view(batch) -> None:
    dino = toy_dino(position="rope_mm", rope_periods=(5.0, 60.0))
    loss, _ = dino(batch, 0)
    wider, _ = dino(batch._replace(spacing_mm=3 * batch.spacing_mm), 0)
    assert loss.isfinite()
    assert not torch.isclose(loss, wider, rtol=1e-6)


def test_a_warm_teacher_shows_as_uniform_shares(batch) -> None:
    dino = toy_dino(PLAIN.model_copy(update={"teacher_temp": 1.0}))
    _, metrics = dino(batch, 0)
    assert metrics["teacher_entropy"].item() > 0.98
    assert metrics["loss_cls_token"] / math.log(40) == pytest.approx(
        1 - metrics["ln_k_distance"].item(), rel=1e-5
    )
    assert 0 < metrics["prototype_use"].item() <= 1


def _smooth_batch(crop_batch, *, first: int):
    """Eight CT crops that differ by their large structures, the same for the same positions."""
    positions = list(range(first, first + 8))
    batch = crop_batch(SHAPE, positions=positions)
    volumes = []
    for position in positions:
        generator = torch.Generator().manual_seed(position % 64)
        coarse = torch.randn(1, 1, 3, 3, 3, generator=generator)
        smooth = functional.interpolate(coarse, size=SHAPE, mode="trilinear", align_corners=True)
        volumes.append((200 * smooth[0]).round().to(torch.int16))
    inside = torch.tensor([[[0, size] for size in SHAPE]] * 8)
    return batch._replace(volume=torch.stack(volumes), inside=inside)


def test_a_short_run_spreads_features_and_lowers_the_loss(crop_batch) -> None:
    """The spread goes from 0.42 to 0.59, the loss from 5.9 to 4.2 (ln 40 is 3.7)."""
    steps = 25
    config = DinoConfig.model_validate(
        SHARED.model_dump()
        | {
            "global_scale": {"in_plane": [0.6, 1.0], "across": [0.6, 1.0]},
            "local_crops": {"num_crops": 1, "shape": [4, 8, 9]},
        }
    )
    dino = toy_dino(config, total_steps=steps, position_scale=0.1)
    optimiser = torch.optim.AdamW(dino.param_groups(0.04), lr=5e-4)
    history = []
    for step in range(steps):
        loss, metrics = dino(_smooth_batch(crop_batch, first=8 * step), step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        dino.after_update(step)
        history.append(metrics)
    first, last = history[0], history[-1]
    assert last["student_std"] > 1.1 * first["student_std"]
    assert last["loss_cls_token"] < 0.8 * first["loss_cls_token"]
    assert last["loss_patches"] < 0.8 * first["loss_patches"]


def test_the_teacher_is_an_average_that_bf16_could_not_hold() -> None:
    """At a momentum of 0.9995 it moves by less than half a step of bf16, and moves all the same."""
    slow = SHARED.model_copy(update={"momentum_teacher": 0.9995, "momentum_teacher_end": 0.9995})
    dino = toy_dino(slow)
    before = {name: p.clone() for name, p in dino.teacher.named_parameters()}
    student = dict(dino.student.named_parameters())
    with torch.no_grad():
        for name in before:
            student[name].mul_(1.1).add_(0.01)
    for step in range(3):
        dino.after_update(step)
    share = 1 - 0.9995**3
    for name, parameter in dino.teacher.named_parameters():
        assert parameter.dtype == torch.float32
        want = before[name] + share * (student[name] - before[name]).detach()
        torch.testing.assert_close(parameter, want, rtol=1e-5, atol=1e-7)
        moved = (parameter - before[name]).norm() / (student[name] - before[name]).norm()
        assert float(moved.detach()) == pytest.approx(share, rel=1e-2), name
    rounded = before["backbone.patch_embed.weight"].bfloat16()
    for _ in range(3):
        rounded.lerp_(student["backbone.patch_embed.weight"].bfloat16(), 1 - 0.9995)
    assert (rounded == before["backbone.patch_embed.weight"].bfloat16()).float().mean() > 0.9
