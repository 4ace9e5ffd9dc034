"""DeepSpeed computes what plain autograd computes, and known wrong combinations do not start."""

from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.engine import DeepSpeedConfig, EngineError, check_engine, deepspeed_dict
from recipes.load import RecipeError, parse

TOLERANCE = {
    "fp32": {"gradient_error": 1e-5, "norm_error": 1e-4, "error": 1e-3},
    "bf16": {"gradient_error": 0.02, "norm_error": 0.05, "error": 0.2},
}
"""Shares: of the gradient's norm (bf16 keeps 8 bits), and of the way that the weights went, in
which Adam blows the roundings of small gradients up."""


def check_parity(lines: list[dict[str, Any]], *, ranks: int) -> None:
    cases = {(line["method"], line["precision"]) for line in lines}
    assert cases == {(m, p) for m in ("mae", "dino") for p in ("fp32", "bf16")}
    assert {line["rank"] for line in lines} == set(range(ranks))
    for line in lines:
        assert line["moved"] > 1, line
        for name, largest in TOLERANCE[line["precision"]].items():
            assert line[name] < largest, (name, line)


def test_two_ranks_equal_plain_autograd_on_the_joined_batch(on_two_ranks) -> None:
    """With accumulation, clipping, groups, layer decay, drop path and a last layer that is frozen
    at first; an update with a bad loss, and a change of stage half way."""
    lines = on_two_ranks("engine_parity.py", "short")
    places = {(line["stage"], line["offload"]) for line in lines}
    assert places == {(0, False), (1, False), (2, False), (3, False), (2, True)}
    check_parity(lines, ranks=2)


@pytest.mark.slow
def test_every_stage_equals_plain_autograd(on_two_ranks) -> None:
    lines = on_two_ranks("engine_parity.py")
    assert len(lines) == 2 * 2 * (7 + 5)
    check_parity(lines, ranks=2)


@pytest.mark.gpu
def test_every_stage_equals_plain_autograd_on_a_gpu(on_ranks) -> None:
    ranks = torch.cuda.device_count()
    check_parity(on_ranks("engine_parity.py", ranks=ranks, on_gpu=True), ranks=ranks)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"stage": 3}, "stage: 3 splits the parameters, and a teacher"),
        ({"stage": 0, "offload_optimiser": True}, "offload_optimiser: stage 0 keeps"),
    ],
)
def test_what_is_known_to_be_wrong_is_refused_with_the_reason(fields: dict, line: str) -> None:
    with pytest.raises(EngineError, match=line):
        check_engine(DeepSpeedConfig(**fields), has_teacher=True, has_gpu=True)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("offload", [False, True])
def test_sound_combinations_start(stage: int, precision: str, offload: bool) -> None:
    config = DeepSpeedConfig(
        stage=stage, precision=precision, offload_optimiser=offload and stage > 0
    )
    check_engine(config, has_teacher=False, has_gpu=True)


def test_no_compiler_is_one_line_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check_engine(DeepSpeedConfig(), has_teacher=True, has_gpu=True)
    with pytest.raises(EngineError, match=r"no compiler was found \(c\+\+, g\+\+, clang\+\+\)"):
        check_engine(DeepSpeedConfig(), has_teacher=True, has_gpu=False)


def test_the_dictionary_says_what_the_recipe_says() -> None:
    found = deepspeed_dict(
        DeepSpeedConfig(stage=2, precision="bf16", offload_optimiser=True),
        micro_batch=3,
        accumulation=4,
        world_size=5,
        clip=0.7,
        num_parameters=1000,
    )
    assert found["train_batch_size"] == 60
    assert found["gradient_clipping"] == 0.7
    assert found["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 1000,
        "offload_optimizer": {"device": "cpu"},
    }
    assert found["torch_autocast"]["dtype"] == "bfloat16"
    assert "bf16" not in found


def test_deepspeeds_own_bf16_cannot_be_asked_for() -> None:
    with pytest.raises(RecipeError, match="unknown key 'bf16'"):
        parse({"stage": 0, "bf16": {"enabled": True}}, DeepSpeedConfig, where="deepspeed")
