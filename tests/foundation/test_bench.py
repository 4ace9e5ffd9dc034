"""The bench runs and says what it measured; how fast anything is, no test can tell."""

import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.bench import __main__ as command
from foundation.bench.cases import (
    Case,
    build,
    cpu_extent,
    gpu_extent,
    quick_extent,
    synthetic_batch,
)
from foundation.bench.clock import describe, ground_of, matmul_peak
from foundation.bench.model import step_figures
from foundation.bench.results import (
    Device,
    FlowFigures,
    Ratio,
    Results,
    StepFigures,
    compared,
    load_results,
    requirements,
)
from foundation.bench.table import markdown, verdict
from foundation.network.patches import patch_grid
from foundation.preprocessing import Preprocessing, normalise_batch
from shards.bench.timing import Spread

GPU = Device(
    kind="cuda",
    name="a GPU",
    memory_bytes=80 * 2**30,
    threads=16,
    system="Linux",
    architecture="x86_64",
    python="3.12.1",
    libraries={"torch": "2.9"},
)
CPU = GPU.model_copy(update={"kind": "cpu", "name": "a CPU", "memory_bytes": None})
ONE = Spread(2.0, 1.0, 3.0)
LARGE = Case("mae", "large", (8, 8, 8), (96, 96, 96), (48, 48, 48), 32)


def steps_of(case: Case, utilisation: float, *, precision: str = "bf16") -> StepFigures:
    return StepFigures(
        case=case,
        precision=precision,
        compiled=False,
        step_s=ONE,
        flops_per_volume=1e12,
        volumes_per_s=16.0,
        tokens_per_s=6912.0,
        utilisation=utilisation,
        peak_memory_bytes=41_000_000_000,
    )


def flow_of(case: Case, wait_share: float) -> FlowFigures:
    return FlowFigures(
        case=case, precision="bf16", workers=8, step_s=ONE, volumes_per_s=15, wait_share=wait_share
    )


def ratio_of(what: Any, ratio: float, *, size: Any = "large") -> Ratio:
    return Ratio(what=what, setting="here", size=size, ours_s=ONE, theirs_s=ONE, ratio=ratio)


def judged(*steps: StepFigures, flows: Any = (), ratios: Any = ()) -> list[bool | None]:
    found = requirements(GPU, steps=steps, flows=flows, ratios=ratios)
    return [each.met for each in found]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["foundation.bench", *words])
    command.main()


def test_the_quick_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("monai")
    out = tmp_path / "reports" / "bench.json"
    run(monkeypatch, "--quick", "--device", "cpu", "--out", str(out))
    told = capsys.readouterr().out
    found = load_results(out)
    assert [each.case.method for each in found.steps] == ["mae", "dino"]
    assert [each.case.method for each in found.flows] == ["mae", "dino"]
    assert [each.what for each in found.ratios] == ["packing", "augmentation"]
    for each in found.steps:
        assert each.volumes_per_s == pytest.approx(each.case.micro_batch / each.step_s.median)
        of_peak = each.flops_per_volume * each.volumes_per_s / found.peak.flops_per_s
        assert each.utilisation == pytest.approx(of_peak)
    assert all(0 < each.wait_share < 1 for each in found.flows)
    assert all(each.ratio > 0 for each in found.ratios)
    assert {each.met for each in found.requirements} == {None}
    assert found.quick
    assert platform.node() not in out.read_text()
    assert markdown(found) in told
    assert told.endswith(f"{verdict(found.requirements)}\n")
    run(monkeypatch, "--table", str(out))
    assert capsys.readouterr().out == f"{markdown(found)}\n"


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="no /proc tells a process's memory")
def test_a_case_alone_tells_its_memory() -> None:
    """Its weights, gradients, AdamW's two moments and activations; not the libraries."""
    extent = quick_extent()._replace(alone=True)
    ground, case = ground_of("cpu"), extent.cases[0]
    peak = matmul_peak(ground, edge=64, repeats=1)
    found = step_figures(case, ground=ground, extent=extent, peak=peak, compiled=False)
    trained = sum(each.numel() for each in torch.nn.Module.parameters(build(case)))
    assert found.peak_memory_bytes is not None
    assert 16 * trained < found.peak_memory_bytes < 16 * trained + 200e6


def test_what_a_user_can_get_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    other = tmp_path / "other.json"
    other.write_text('{"lines": []}')
    for words, message in (
        (["--device", "cuda"], "torch sees no GPU"),
        (["--table", str(other)], "other.json holds no results of foundation.bench"),
        (["--table", str(tmp_path / "absent.json")], "absent.json"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, *words)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line


def test_the_recorded_run_is_a_whole_one() -> None:
    found = load_results(command.RECORDED)
    assert not found.quick
    assert {(each.case.method, each.case.size) for each in found.steps} >= {
        (each.method, each.size) for each in cpu_extent().cases
    } or found.device.kind == "cuda"
    judged_again = requirements(
        found.device, steps=found.steps, flows=found.flows, ratios=found.ratios
    )
    assert judged_again == found.requirements


def test_requirements_hold_at_their_limit() -> None:
    dino = LARGE._replace(method="dino", patch_size=(16, 16, 16))
    met = judged(
        steps_of(LARGE, 0.45),
        steps_of(LARGE._replace(patch_size=(16, 16, 16)), 0.1),  # patch 8 or 16
        steps_of(dino, 0.35),
        flows=[flow_of(LARGE, 0.0199), flow_of(dino, 0.0)],
        ratios=[ratio_of("packing", 1.3), ratio_of("augmentation", 10, size=None)],
    )
    assert met == [True] * 5
    missed = judged(
        steps_of(LARGE, 0.449),
        steps_of(dino, 0.349),
        flows=[flow_of(LARGE, 0.0), flow_of(dino, 0.02)],  # the worst counts
        ratios=[ratio_of("packing", 1.29), ratio_of("augmentation", 9.9, size=None)],
    )
    assert missed == [False] * 5


def test_only_what_was_asked_for_counts_as_measured() -> None:
    small = LARGE._replace(size="small")
    other_crop = LARGE._replace(crop_shape=(64, 96, 96))
    unasked = judged(
        steps_of(small, 0.9),
        steps_of(other_crop, 0.9),
        steps_of(LARGE, 0.9, precision="fp32"),
        flows=[flow_of(small, 0.5)],
        ratios=[ratio_of("packing", 2.0, size="tiny")],
    )
    assert unasked == [None] * 5
    on_cpu = requirements(
        CPU,
        steps=[steps_of(LARGE, 0.9)],
        flows=[flow_of(LARGE, 0.5)],
        ratios=[ratio_of("packing", 2.0), ratio_of("augmentation", 1.2, size=None)],
    )
    assert {(each.measured, each.met) for each in on_cpu} == {(None, None)}


def test_table_and_verdict() -> None:
    steps = (steps_of(LARGE, 0.4), steps_of(LARGE._replace(method="dino"), 0.36))
    found = Results(
        date="2026-01-02",
        quick=False,
        device=GPU,
        peak={"edge": 8192, "precision": "bf16", "flops_per_s": 7.1e14},
        steps=steps,
        flows=(flow_of(LARGE, 0.004),),
        ratios=(ratio_of("augmentation", 12.34, size=None),),
        left_out=("model only, dino large: needs more memory than the device has",),
        requirements=requirements(GPU, steps=steps, flows=(), ratios=()),
    )
    text = markdown(found)
    mae = "| mae large | 96 x 96 x 96 | 8 x 8 x 8 | 32 | eager | 16 | 6,912 | 40% | 41,000 MB |"
    for line in (
        mae,
        mae.replace("mae", "dino").replace("40%", "36%"),
        "| mae large | 8 x 8 x 8 | 32 | 8 | 15 | 0.4% |",
        "- model only, dino large: needs more memory than the device has",
    ):
        assert line in text.splitlines()
    assert "2026-01-02, a GPU (80 GiB), bf16, torch 2.9, Python 3.12.1." in text
    assert "710 TFLOP/s" in text
    assert "| 2,000 ms | 2,000 ms | 12.34 |" in text
    assert "| >= 0.45 | 0.4 | not met |" in text
    assert "| >= 0.35 | 0.36 | met |" in text
    assert "| >= 1.3 |  | not measured |" in text
    told = verdict(found.requirements)
    assert told.startswith("not met in this run: utilisation, MAE large")
    assert "not measured" in told
    assert "DINO" not in told
    rest = [each for each in found.requirements if each.met]
    assert verdict(rest) == "every requirement is met in this run"


def test_a_ratio_is_that_of_the_turns() -> None:
    """Another job that slows a whole turn down does not move it."""
    found = compared(
        "packing", size="tiny", setting="", ours=[1.0, 9.0, 1.0], theirs=[2.0, 18.0, 2.2]
    )
    assert found.ratio == 2.0
    assert found.ours_s.median == 1.0


def test_batches_fit_the_gpu() -> None:
    extent = gpu_extent(80 * 2**30, workers=8)
    assert len(set(extent.cases)) == 4 * 2 * 2
    batches = {(c.method, c.size, c.patch_size[0]): c.micro_batch for c in extent.cases}
    assert all(batch & (batch - 1) == 0 for batch in batches.values())
    assert batches["mae", "large", 16] >= 4 * batches["mae", "large", 8] / 2
    assert batches["mae", "large", 8] > batches["dino", "large", 8] >= 2
    less = gpu_extent(20 * 2**30, workers=8)
    assert all(
        b.micro_batch <= a.micro_batch for a, b in zip(extent.cases, less.cases, strict=True)
    )
    assert min(case.micro_batch for case in gpu_extent(2**30, workers=1).cases) == 1
    for case in (*extent.cases, *cpu_extent().cases):
        patch_grid(case.crop_shape, case.patch_size)
        patch_grid(case.local_shape, case.patch_size)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_synthetic_batch_is_like_one_of_the_stream(modality: Any) -> None:
    shape = (16, 40, 24)
    batch = synthetic_batch(shape, size=6, modality=modality)
    assert batch.volume.shape == (6, 1, *shape)
    assert batch.volume.dtype == torch.int16
    assert torch.equal(batch.volume[5], batch.volume[1])  # four are distinct
    assert not torch.equal(batch.volume[1], batch.volume[2])
    normalised = normalise_batch(batch, preprocessing=Preprocessing(crop_shape=shape))
    assert normalised.inside.all()
    assert normalised.volume.std() > 0.2


def test_the_peak_is_what_a_matrix_product_reaches() -> None:
    ground = ground_of("cpu")
    found = matmul_peak(ground, edge=128, repeats=3)
    assert found.precision == "fp32"
    assert 1e7 < found.flops_per_s < 1e14
    assert describe(ground).kind == "cpu"


def test_the_other_way_changes_a_volume_as_we_do() -> None:
    pytest.importorskip("monai")
    from foundation.augment import AugmentConfig
    from foundation.bench.augmentation import monai_transform
    from foundation.dino import DinoConfig

    shape = (12, 30, 20)
    scale = DinoConfig().global_scale
    sections = {name: {"probability": 1} for name in AugmentConfig.model_fields if name != "flip"}
    everything = AugmentConfig.model_validate(sections)
    nothing = AugmentConfig.model_validate({name: {"probability": 0} for name in sections})
    volume = torch.linspace(-1, 1, 12 * 30 * 20).view(1, *shape)
    for config, is_cut_only in ((everything, False), (nothing, True)):
        transform = monai_transform(config, scale=scale, shape=shape)
        found = transform.set_random_state(seed=0)(volume)
        assert found.shape == (1, *shape)
        assert torch.isfinite(found).all()
        # A part of a ramp, resized, is a ramp.
        assert bool((found.diff(dim=3) >= -1e-6).all()) is is_cut_only
