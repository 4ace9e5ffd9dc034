"""What a fine-tuned network says of a whole scan: logits, or the class of each voxel.

The scan comes as it was read. It is brought to the contract's spacing, padded with air evenly to
one window of ``crop_shape`` at least, and seen window by window, as embedding sees it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from foundation.embedding.features import Spacing, network_of
from foundation.finetuning.network import TunedNetwork
from foundation.network.patches import Shape
from foundation.preprocessing import Preprocessing
from foundation.vit import Crops
from foundation.windows import Prepared, pool_scan, prepare
from shards.scan import Scan, resample

_WINDOWS_AT_ONCE = 8


def at_spacing(scan: Scan, preprocessing: Preprocessing) -> Scan:
    """The scan on the grid that a network of this contract sees; its own where that is free.

    Raises:
        ScanError: It is thinner than a voxel there.
    """
    spacing_mm = preprocessing.spacing_mm
    return scan if spacing_mm is None else resample(scan, spacing_mm)


@torch.inference_mode()
def scan_logits(
    network: TunedNetwork, scan: Scan, *, preprocessing: Preprocessing, device: torch.device | str
) -> Tensor:
    """Logits of a scan, of any kind but segmentation: one bag of all its windows.

    Args:
        network: In evaluation mode.
        scan: Voxels in physical units.
        preprocessing: The contract.
        device: Where the network lives.

    Returns:
        (num_logits,) float32 on the CPU.

    Raises:
        ScanError: The scan is thinner than a voxel of the contract's spacing.
    """
    features = scan_features(network, scan, preprocessing=preprocessing, device=device)
    logits: Tensor = network.head(features[None])[0].float().cpu()
    return logits


@torch.inference_mode()
def scan_features(
    network: TunedNetwork, scan: Scan, *, preprocessing: Preprocessing, device: torch.device | str
) -> Tensor:
    """What the head reads of a scan, (2 E,) float32 on the device; as :func:`scan_logits`."""
    scan = at_spacing(scan, preprocessing)
    pooled = pool_scan(
        network_of(network.vit, scan.spacing_mm),
        prepare(scan, preprocessing=preprocessing, device=device),
        crop_shape=preprocessing.crop_shape,
        patch_size=network.vit.patch_size,
    )
    return torch.cat([pooled.cls[0], pooled.mean[0]])


@torch.inference_mode()
def scan_probabilities(
    network: TunedNetwork,
    scan: Scan,
    *,
    preprocessing: Preprocessing,
    device: torch.device | str,
    overlap: float = 0.5,
    kept_on: torch.device | str = "cpu",
) -> Tensor:
    """Probabilities of background and each class in each voxel at the contract's spacing.

    Softmaxes of overlapping windows are averaged, each weighted by a Gaussian about its middle.

    Args:
        network: Of a segmentation, in evaluation mode.
        scan: Voxels in physical units.
        preprocessing: The contract.
        device: Where the network lives.
        overlap: Of neighbouring windows, as a part of a window's edge; less is faster.
        kept_on: Where windows are added up: the CPU has more memory than most devices.

    Returns:
        (num_logits, D, H, W) float32 on ``kept_on``; the grid is that of :func:`at_spacing`.

    Raises:
        ScanError: The scan is thinner than a voxel of the contract's spacing.
    """
    scan = at_spacing(scan, preprocessing)
    prepared = prepare(scan, preprocessing=preprocessing, device=device)
    merged = _merged(
        network,
        prepared,
        spacing_mm=scan.spacing_mm,
        crop_shape=preprocessing.crop_shape,
        overlap=overlap,
        kept_on=torch.device(kept_on),
    )
    own = (
        slice(first, first + size)
        for first, size in zip(prepared.before, scan.voxels.shape, strict=True)
    )
    return merged[(slice(None), *own)]


def _merged(
    network: TunedNetwork,
    prepared: Prepared,
    *,
    spacing_mm: Spacing,
    crop_shape: Shape,
    overlap: float,
    kept_on: torch.device,
) -> Tensor:
    """(num_logits, D, H, W) of a scan with its padding."""
    from monai.inferers import sliding_window_inference

    volume = prepared.volume[None, None]
    spacing = torch.tensor([spacing_mm], device=volume.device)

    def shares(windows: Tensor) -> Tensor:
        logits = network.dense(Crops(windows, spacing.expand(len(windows), -1)))
        return functional.softmax(logits.float(), dim=1)

    merged: Tensor = sliding_window_inference(
        volume,
        roi_size=crop_shape,
        sw_batch_size=_WINDOWS_AT_ONCE,
        predictor=shares,
        overlap=overlap,
        mode="gaussian",
        sw_device=volume.device,
        device=kept_on,
    )
    return merged[0]
