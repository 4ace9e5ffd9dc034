"""What loading a backbone has found, for a person to read."""

from dataclasses import dataclass
from pathlib import Path

from foundation.artefact.golden import GOLDEN_TOLERANCE
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig


@dataclass(frozen=True)
class LoadReport:
    """What was loaded, and what was proven of it.

    Attributes:
        where: As the caller named it.
        folder: On this machine.
        came: How it got here, in words.
        digest: Of the artefact.
        version: Of the schema it was written with.
        vit_config: Of the network.
        num_tensors: All of the file, none missing and none left over.
        num_parameters: Numbers in them.
        golden_error: Largest difference between the stored embedding and the one computed now.
        preprocessing: The contract.
        predicts: What its head does, in words; None where it has none.
    """

    where: str
    folder: Path
    came: str
    digest: str
    version: int
    vit_config: VitConfig
    num_tensors: int
    num_parameters: int
    golden_error: float
    preprocessing: Preprocessing
    predicts: str | None = None

    def __str__(self) -> str:
        width, depth, heads = self.vit_config.resolved
        lines = {
            "backbone": f"{self.where} ({self.came})",
            "folder": str(self.folder),
            "digest": f"{self.digest[:16]}, every file as SHA256SUMS says, schema {self.version}",
            "network": f"3D ViT, width {width}, depth {depth}, {heads} heads, "
            f"patches of {_by(self.vit_config.patch_size)} voxels",
            "weights": f"{self.num_tensors} tensors, {self.num_parameters / 1e6:.2f} million "
            f"parameters, none missing, none left over",
            "golden": f"comes out {self.golden_error:.1e} away, {GOLDEN_TOLERANCE:g} is allowed",
            "expects": contract_in_words(self.preprocessing),
        }
        if self.predicts is not None:
            lines["predicts"] = self.predicts
        return "\n".join(f"{name:<9} {line}" for name, line in lines.items())


def contract_in_words(preprocessing: Preprocessing) -> str:
    """Orientation, spacing, crop and windows on one line."""
    spacing = preprocessing.spacing_mm
    windows = {
        "CT": (preprocessing.window_hu, " HU"),
        "PT": (preprocessing.window_suv, " SUV"),
        "OT": (preprocessing.window_other, ""),
    }
    told = ", ".join(f"{name} {w[0]:g} to {w[1]:g}{unit}" for name, (w, unit) in windows.items())
    return (
        f"{preprocessing.orientation}, {f'{_by(spacing)} mm' if spacing else 'own spacing'}, "
        f"crops of {_by(preprocessing.crop_shape)} voxels, MR by its percentiles, {told}"
    )


def _by(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
