"""DeepSpeed computes what plain autograd computes, and known wrong combinations do not start."""

from pathlib import Path

import pytest

from foundation.engine import DeepSpeedConfig, EngineError, check_engine, deepspeed_dict
from recipes.load import RecipeError, parse

TOLERANCE = 1e-6
"""Of weights around 0.3 that move by 0.05 a step: a few roundings of float32."""


def test_two_ranks_equal_plain_autograd_on_the_joined_batch(on_two_ranks) -> None:
    """All stages and precisions, with accumulation, clipping, groups and a frozen last layer."""
    lines = on_two_ranks("engine_parity.py")
    seen = {(line["stage"], line["precision"], line["rank"]) for line in lines}
    assert seen == {(s, p, r) for s in (0, 1, 2) for p in ("fp32", "bf16") for r in (0, 1)}
    for line in lines:
        assert line["moved"] > 0.01, line
        assert line["error"] < TOLERANCE, line
        assert line["norm_error"] < TOLERANCE, line


def test_stage_3_is_refused_with_the_reason() -> None:
    with pytest.raises(EngineError, match="stage: 3 is not supported: it splits parameters"):
        check_engine(DeepSpeedConfig(stage=3), has_gpu=True)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sound_combinations_start(stage: int, precision: str) -> None:
    check_engine(DeepSpeedConfig(stage=stage, precision=precision), has_gpu=True)


def test_no_compiler_is_one_line_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check_engine(DeepSpeedConfig(), has_gpu=True)
    with pytest.raises(EngineError, match=r"no compiler was found \(c\+\+, g\+\+, clang\+\+\)"):
        check_engine(DeepSpeedConfig(), has_gpu=False)


def test_the_dictionary_says_what_the_recipe_says() -> None:
    found = deepspeed_dict(
        DeepSpeedConfig(stage=2, precision="bf16"),
        micro_batch=3,
        accumulation=4,
        world_size=5,
        clip=0.7,
        num_parameters=1000,
    )
    assert found["train_batch_size"] == 60
    assert found["gradient_clipping"] == 0.7
    assert found["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert found["torch_autocast"]["dtype"] == "bfloat16"
    assert "bf16" not in found


def test_deepspeeds_own_bf16_cannot_be_asked_for() -> None:
    with pytest.raises(RecipeError, match="unknown key 'bf16'"):
        parse({"stage": 0, "bf16": {"enabled": True}}, DeepSpeedConfig, where="deepspeed")
