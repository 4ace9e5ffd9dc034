"""A whole scan through a fine-tuned network, against its windows one by one."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foundation.finetuning.decoders import DecoderConfig, build_decoder
from foundation.finetuning.heads import HeadConfig, build_head
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.target import Target
from foundation.finetuning.whole_scan import at_spacing, scan_logits, scan_probabilities
from foundation.preprocessing import Preprocessing, window_starts
from foundation.vit import Crops, Vit3d, VitConfig, build_vit
from foundation.windows import prepare
from shards.scan import Scan

PATCH, CROP = (2, 4, 4), (4, 8, 12)
SPACING = (3.0, 1.0, 1.5)
CONTRACT = Preprocessing(crop_shape=CROP)
MASKS = Target(
    task="organs",
    kind="segmentation",
    outputs=("liver", "spleen"),
    classes=("liver", "spleen"),
    mask_values={"liver": 6, "spleen": 1},
)
LABELS = Target(task="stage", kind="multiclass", outputs=("a", "b", "c"), classes=("a", "b", "c"))


def vit() -> Vit3d:
    """With weights that are large enough for attention, and so for positions, to matter."""
    torch.manual_seed(5)
    config = VitConfig(size="toy", embed_dim=48, patch_size=PATCH, depth=2, position="rope_mm")
    made = build_vit(config)
    for each in made.blocks.parameters():
        if each.ndim == 2:
            nn.init.normal_(each, std=0.2)
    return made


@pytest.fixture(scope="module")
def of_masks() -> TunedNetwork:
    backbone = vit()
    decoder = build_decoder(DecoderConfig(features=4), vit=backbone, num_logits=MASKS.num_logits)
    return TunedNetwork(backbone, decoder, MASKS).eval()


@pytest.fixture(scope="module")
def of_labels() -> TunedNetwork:
    backbone = vit()
    head = build_head(HeadConfig(), embed_dim=backbone.embed_dim, target=LABELS)
    nn.init.normal_(head.layers[-1].weight)
    return TunedNetwork(backbone, head, LABELS).eval()


def scan(shape: tuple[int, int, int], *, spacing_mm: tuple[float, float, float] = SPACING) -> Scan:
    voxels = np.random.default_rng(0).normal(0, 400, shape).astype(np.int16)
    return Scan(voxels, spacing_mm=spacing_mm, modality="CT")


def shares_of(network: TunedNetwork, windows: Tensor) -> Tensor:
    spacing = torch.tensor([SPACING]).expand(len(windows), -1)
    return network.dense(Crops(windows, spacing)).softmax(dim=1)


@torch.inference_mode()
def test_a_scan_of_one_window_is_one_pass(of_masks: TunedNetwork) -> None:
    given = scan(CROP)
    volume = prepare(given, preprocessing=CONTRACT, device="cpu").volume
    found = scan_probabilities(of_masks, given, preprocessing=CONTRACT, device="cpu")
    assert found.dtype == torch.float32
    expected = shares_of(of_masks, volume[None, None])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_windows_are_averaged_by_a_gaussian_and_padding_is_cut_off(of_masks: TunedNetwork) -> None:
    """Thinner than the window along one axis, as long along another, longer along the third."""
    given = scan((4, 5, 25))
    found = scan_probabilities(of_masks, given, preprocessing=CONTRACT, device="cpu", overlap=0.25)
    assert found.shape == (3, 4, 5, 25)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(4, 5, 25), rtol=0, atol=1e-5)
    padded = torch.full((4, 8, 25), -1.0)
    padded[:, 1:6] = torch.from_numpy(given.voxels).float().clamp(-1000, 1000) / 1000
    # An eighth of the edge is the Gaussian's deviation, and nothing weighs less than 0.001.
    axes = [torch.exp(-((torch.arange(n) - (n - 1) / 2) ** 2) / (2 * (n / 8) ** 2)) for n in CROP]
    weight = torch.einsum("d,h,w->dhw", *axes)
    weight = weight.clamp(min=max(float(weight.min()), 1e-3))
    total, count = torch.zeros(3, 4, 8, 25), torch.zeros(4, 8, 25)
    for start in (0, 9, 13):
        part = padded[:, :, start : start + 12]
        total[..., start : start + 12] += shares_of(of_masks, part[None, None])[0] * weight
        count[..., start : start + 12] += weight
    expected = (total / count)[:, :, 1:6]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_probabilities_lie_on_the_contracts_grid(of_masks: TunedNetwork) -> None:
    given = scan((9, 6, 10), spacing_mm=(1.5, 2.0, 1.5))
    contract = Preprocessing(crop_shape=CROP, spacing_mm=SPACING)
    found = scan_probabilities(of_masks, given, preprocessing=contract, device="cpu")
    resampled = at_spacing(given, contract)
    assert resampled.voxels.shape == (4, 12, 10)
    assert found.shape[1:] == (4, 12, 10)
    again = scan_probabilities(of_masks, resampled, preprocessing=contract, device="cpu")
    assert torch.equal(found, again)
    assert at_spacing(given, CONTRACT) is given


def test_positions_in_millimetres_reach_the_network(of_masks: TunedNetwork) -> None:
    one, other = (
        scan_probabilities(
            of_masks, scan(CROP, spacing_mm=spacing), preprocessing=CONTRACT, device="cpu"
        )
        for spacing in (SPACING, (3.0, 4.0, 1.5))
    )
    assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("shape", [CROP, (4, 5, 25), (3, 17, 13)])
@torch.inference_mode()
def test_logits_are_those_of_one_bag_of_all_windows(
    of_labels: TunedNetwork, shape: tuple[int, int, int]
) -> None:
    given = scan(shape)
    prepared = prepare(given, preprocessing=CONTRACT, device="cpu")
    boxes = [
        tuple(slice(a, a + size) for a, size in zip(start, CROP, strict=True))
        for start in window_starts(prepared.volume.shape, CROP)
    ]
    volume, inside = (
        torch.stack([each[box] for box in boxes])[:, None]
        for each in (prepared.volume, prepared.inside > 0)
    )
    crops = Crops(volume, torch.tensor([SPACING]).expand(len(boxes), -1))
    expected = of_labels.pooled(crops, inside=inside, bag_size=len(boxes))[0]
    found = scan_logits(of_labels, given, preprocessing=CONTRACT, device="cpu")
    assert found.shape == (3,)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_logits_of_a_scan_do_not_depend_on_its_own_grid_where_the_contract_has_one(
    of_labels: TunedNetwork,
) -> None:
    contract = Preprocessing(crop_shape=CROP, spacing_mm=SPACING)
    given = scan((9, 6, 10), spacing_mm=(1.5, 2.0, 1.5))
    found, expected = (
        scan_logits(of_labels, each, preprocessing=contract, device="cpu")
        for each in (given, at_spacing(given, contract))
    )
    assert torch.equal(found, expected)


CORE = """
import sys

HIDDEN = {"deepspeed", "webdataset", "wandb", "lightly", "blosc2", "scipy", "pandas", "sklearn"}
HIDDEN |= {"pyarrow", "skimage", "matplotlib", "torchio", "fsspec"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # versions of packages, which MONAI asks for
        return getattr(self.finder, name)

sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
import numpy as np
from foundation.finetuning.decoders import DecoderConfig, build_decoder
from foundation.finetuning.mask_space import classes_of, write_mask
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.target import Target
from foundation.finetuning.whole_scan import scan_probabilities
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from shards.scan import Scan

vit = build_vit(VitConfig(size="toy", depth=1, patch_size=(2, 4, 4)))
named = {"outputs": ("a",), "mask_values": {"a": 1}}
target = Target(task="t", kind="segmentation", **named)
network = TunedNetwork(vit, build_decoder(DecoderConfig(), vit=vit, num_logits=2), target).eval()
scan = Scan(np.zeros((5, 9, 8), np.int16), (3.0, 1.0, 1.5), "CT")
contract = Preprocessing(crop_shape=(4, 8, 8), spacing_mm=(2.0, 1.0, 1.0))
shares = scan_probabilities(network, scan, preprocessing=contract, device="cpu")
write_mask("mask.nii.gz", classes_of(shares, scan, spacing_mm=contract.spacing_mm), scan)
"""


@pytest.mark.slow
def test_the_core_install_makes_masks(tmp_path: Path, project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CORE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mask.nii.gz").exists()


@pytest.mark.gpu
def test_a_device_adds_up_what_the_cpu_does(of_masks: TunedNetwork) -> None:
    given = scan((5, 9, 25))
    expected = scan_probabilities(of_masks, given, preprocessing=CONTRACT, device="cpu")
    network = of_masks.to("cuda")
    try:
        for kept_on in ("cpu", "cuda"):
            found = scan_probabilities(
                network, given, preprocessing=CONTRACT, device="cuda", kept_on=kept_on
            )
            assert found.device.type == kept_on
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-3)
    finally:
        network.to("cpu")


def test_every_window_is_seen_once(of_masks: TunedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of at most eight."""
    seen: list[int] = []
    dense = of_masks.dense

    def counting(crops: Crops) -> Tensor:
        seen.append(len(crops.volume))
        return dense(crops)

    monkeypatch.setattr(of_masks, "dense", counting)
    scan_probabilities(of_masks, scan((7, 8, 36)), preprocessing=CONTRACT, device="cpu")
    starts = list(itertools.product((0, 2, 3), (0,), (0, 6, 12, 18, 24)))
    assert sum(seen) == len(starts) == 15
    assert max(seen) <= 8
