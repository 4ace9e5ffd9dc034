import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.dino import DinoConfig, build_dino, normalised_std
from foundation.dino_loss import DinoLoss
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit

PATCH = (2, 4, 3)
SHAPE = (6, 12, 15)
PREPROCESSING = Preprocessing(crop_shape=SHAPE, window_hu=(-300, 300))
POSITIONS = [0, 1, 2, 7]
CONFIG = DinoConfig.model_validate(
    {
        "local_crops": {"num_crops": 3, "shape": [4, 8, 9]},
        "head": {"num_prototypes": 40, "hidden_dim": 32, "bottleneck_dim": 16},
        "freeze_last_layer_steps": 2,
    }
)


def _dino(config: DinoConfig = CONFIG, *, total_steps: int = 10, **vit_fields: float):
    torch.manual_seed(0)
    vit = build_vit(VitConfig(size="toy", patch_size=PATCH, depth=2, **vit_fields))
    return build_dino(config, vit=vit, preprocessing=PREPROCESSING, total_steps=total_steps, seed=3)


def _loss(num_prototypes: int = 7, *, warmup_steps: int = 0) -> DinoLoss:
    return DinoLoss(
        num_prototypes=num_prototypes,
        student_temp=0.1,
        teacher_temp=0.07,
        warmup_teacher_temp=0.04,
        warmup_teacher_temp_steps=warmup_steps,
        center_momentum=0.9,
    )


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_the_loss_is_equation_1_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 5, 7, generator=generator)
    student = torch.randn(6, 5, 7, generator=generator)
    loss = _loss()
    center = torch.randn(7, generator=generator)
    loss.center.copy_(center)
    got = loss(list(teacher), list(student), step=0)
    # min over the student of the sum over x in two globals and x' != x in all views of H(Pt, Ps).
    terms = []
    for t in range(2):
        for s in range(6):
            if s != t:
                shares_t = _softmax((teacher[t].double().numpy() - center.numpy()) / 0.07)
                shares_s = _softmax(student[s].double().numpy() / 0.1)
                terms.append(-(shares_t * np.log(shares_s)).sum(-1).mean())
    assert len(terms) == 10
    assert got.item() == pytest.approx(np.mean(terms), rel=1e-5)
    # Eq. 4, and only when the update is applied.
    torch.testing.assert_close(loss.center.flatten(), center)
    loss.update_center()
    want = 0.9 * center + 0.1 * teacher.mean((0, 1))
    torch.testing.assert_close(loss.center.flatten(), want, atol=1e-6, rtol=0)


def test_micro_batches_move_the_centre_once_and_a_skipped_update_not_at_all() -> None:
    loss = _loss()
    student = [torch.zeros(3, 7)] * 2
    loss([torch.full((3, 7), float("nan"))] * 2, student, step=4)
    assert not loss.center.any()
    loss([torch.full((3, 7), 1.0)] * 2, student, step=5)
    loss([torch.full((3, 7), 3.0)] * 2, student, step=5)
    loss.update_center()
    torch.testing.assert_close(loss.center.flatten(), torch.full((7,), 0.2))


def test_teacher_temperature_rises_and_stays() -> None:
    loss = _loss(warmup_steps=4)
    temperatures = [loss.teacher_temp(step) for step in range(6)]
    assert temperatures == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert _loss().teacher_temp(0) == 0.07


def test_entropy_is_1_for_uniform_and_0_for_one_prototype() -> None:
    loss = _loss()
    assert loss.teacher_entropy([torch.zeros(3, 7)], step=0).item() == pytest.approx(1.0)
    single = torch.zeros(3, 7)
    single[:, 2] = 100.0
    assert loss.teacher_entropy([single], step=0).item() == pytest.approx(0.0, abs=1e-6)


def test_normalised_std_tells_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(500, 96, generator=generator)
    assert normalised_std(spread).item() == pytest.approx(1.0, abs=0.02)
    collapsed = spread[:1].expand(500, 96) * (1 + torch.rand(500, 1, generator=generator))
    assert normalised_std(collapsed).item() == pytest.approx(0.0, abs=1e-5)


def test_the_teacher_moves_by_the_schedule_and_has_no_gradient(crop_batch) -> None:
    dino = _dino(total_steps=5)
    optimiser = torch.optim.SGD([p for p in dino.parameters() if p.requires_grad], lr=0.1)
    expected = {name: p.clone() for name, p in dino.teacher.named_parameters()}
    for step in range(3):
        loss, _ = dino(crop_batch(SHAPE, positions=POSITIONS), step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        dino.after_update(step)
        momentum = 1 - 0.006 * (np.cos(np.pi * step / 4) + 1) / 2
        student = dict(dino.student.named_parameters())
        for name, value in expected.items():
            value.mul_(momentum).add_(student[name].detach(), alpha=1 - momentum)
    moved = 0
    for name, parameter in dino.teacher.named_parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=0)
        moved += not torch.equal(parameter, student[name])
    assert moved > 10


def test_every_student_parameter_learns_and_is_in_one_group(crop_batch) -> None:
    dino = _dino()
    loss, _ = dino(crop_batch(SHAPE, positions=POSITIONS), 0)
    loss.backward()
    trainable = {name: p for name, p in dino.named_parameters() if p.requires_grad}
    assert all(name.startswith("student.") for name in trainable)
    silent = [name for name, p in trainable.items() if p.grad is None or not p.grad.any()]
    assert silent == []
    groups = dino.param_groups(0.04)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in trainable.values())
    last = [p for group in groups if group["last_layer"] for p in group["params"]]
    assert [p.shape for p in last] == [(40, 16)]
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "decay": 0.04,
        "no_decay": 0.0,
        "last_layer": 0.04,
    }


def test_the_teacher_never_drops_a_path() -> None:
    dino = _dino(drop_path_rate=0.5).train()
    assert dino.student.training
    volume = torch.rand(4, 1, *SHAPE)
    first, again = dino.teacher(volume)[1], dino.teacher(volume)[1]
    assert torch.equal(first, again)
    assert not torch.equal(dino.student(volume)[1], dino.student(volume)[1])


def test_the_loss_is_a_function_of_batch_and_seed(crop_batch) -> None:
    dino = _dino()
    torch.manual_seed(1)
    first, _ = dino(crop_batch(SHAPE, positions=POSITIONS), 0)
    torch.manual_seed(2)
    again, _ = dino(crop_batch(SHAPE, positions=POSITIONS), 0)
    assert torch.equal(first, again)


def test_a_state_dict_resumes_exactly(crop_batch) -> None:
    dino, resumed = _dino(), _dino()
    optimiser = torch.optim.SGD([p for p in dino.parameters() if p.requires_grad], lr=0.1)
    dino(crop_batch(SHAPE, positions=POSITIONS), 0)[0].backward()
    optimiser.step()
    dino.after_update(0)
    resumed.load_state_dict(dino.state_dict())
    batch = crop_batch(SHAPE, positions=[3, 4])
    assert dino.loss.center.any()
    assert torch.equal(dino(batch, 1)[0], resumed(batch, 1)[0])


def test_without_local_crops_the_globals_teach_each_other(crop_batch) -> None:
    config = CONFIG.model_copy(
        update={"local_crops": CONFIG.local_crops.model_copy(update={"num_crops": 0})}
    )
    loss, _ = _dino(config)(crop_batch(SHAPE, positions=POSITIONS), 0)
    assert loss.isfinite()


def test_local_crops_that_patches_do_not_tile_are_refused() -> None:
    local = CONFIG.local_crops.model_copy(update={"shape": (4, 8, 10)})
    with pytest.raises(ValueError, match=r"\(4, 8, 10\) voxels"):
        _dino(CONFIG.model_copy(update={"local_crops": local}))


def _smooth_batch(crop_batch, *, first: int):
    """Eight CT crops that differ by their large structures, the same for the same positions."""
    positions = list(range(first, first + 8))
    batch = crop_batch(SHAPE, positions=positions)
    volumes = []
    for position in positions:
        generator = torch.Generator().manual_seed(position % 64)
        coarse = torch.randn(1, 1, 3, 3, 3, generator=generator)
        smooth = torch.nn.functional.interpolate(
            coarse, size=SHAPE, mode="trilinear", align_corners=True
        )
        volumes.append((200 * smooth[0]).round().to(torch.int16))
    inside = torch.tensor([[[0, size] for size in SHAPE]] * 8)
    return batch._replace(volume=torch.stack(volumes), inside=inside)


def test_a_healthy_run_does_not_collapse(crop_batch) -> None:
    """Uniform collapse: the spread of the student's outputs falls to 0, the entropy rises to 1.

    This run ends at a spread of 0.14 and an entropy of 0.95; with positions at full strength it
    collapses to 0.04 and 0.99.
    """
    steps = 60
    config = DinoConfig.model_validate(
        CONFIG.model_dump() | {"global_scale": {"in_plane": [0.6, 1.0], "across": [0.6, 1.0]}}
    )
    dino = _dino(config, total_steps=steps, position_scale=0.1)
    optimiser = torch.optim.AdamW(dino.param_groups(0.04), lr=5e-4)
    for step in range(steps):
        loss, metrics = dino(_smooth_batch(crop_batch, first=8 * step), step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        dino.after_update(step)
    assert metrics["student_std"] > 0.08
    assert metrics["teacher_entropy"] < 0.98


_RANK = """
import sys
sys.path[:0] = [{tests!r}, {project!r}]
import torch, torch.distributed as dist
from conftest import _crop_batch
from test_dino import POSITIONS, SHAPE, _dino
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
dino = _dino()
for step in range(2):
    dino.zero_grad()
    loss, metrics = dino(_crop_batch(SHAPE, positions=POSITIONS[2 * rank : 2 * rank + 2]), step)
    loss.backward()
    dino.after_update(step)
gradient = dino.student.backbone.patch_embed.weight.grad
for value in (loss := loss.detach(), gradient):
    dist.all_reduce(value)
if rank == 0:
    torch.save([loss / 2, gradient / 2, dino.loss.center], sys.argv[3])
dist.destroy_process_group()
"""


def test_two_ranks_equal_one_rank_on_the_whole_batch(crop_batch, project: Path, tmp_path) -> None:
    script = tmp_path / "rank.py"
    tests = str(Path(__file__).parent)
    script.write_text(_RANK.format(tests=tests, project=str(project)))
    result = tmp_path / "result.pt"
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "store", result], env=dict(os.environ)
        )
        for rank in range(2)
    ]
    dino = _dino()
    for step in range(2):
        dino.zero_grad()
        loss, _ = dino(crop_batch(SHAPE, positions=POSITIONS), step)
        loss.backward()
        dino.after_update(step)
    gradient = dino.student.backbone.patch_embed.weight.grad
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    got_loss, got_gradient, got_center = torch.load(result)
    torch.testing.assert_close(got_loss, loss.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(got_center, dino.loss.center, atol=1e-6, rtol=0)
    torch.testing.assert_close(got_gradient, gradient, atol=1e-6, rtol=1e-4)
