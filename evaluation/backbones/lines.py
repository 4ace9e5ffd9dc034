"""The lines of a recipe's ``backbones:``, one backbone each, and the keys each sort of line has.

backbones:
  mae: runs/demo_mae/backbone
  early: {run: runs/demo_mae, step: 1000}
  untrained: {random: {like: mae, seed: 7}}
  dinov2: {timm: vit_small_patch14_dinov2.lvd142m, weights: model.safetensors, slices: 32}
  swin: {monai: SwinUNETR, args: {in_channels: 1, out_channels: 2}, weights: swin.safetensors,
         preprocessing: {crop_shape: [64, 64, 64], spacing_mm: [2, 1.5, 1.5]}}
  theirs: {function: their_package.model:Encoder, preprocessing: {crop_shape: [32, 96, 96]}}
  table: {features: embeddings.parquet}
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from foundation.preprocessing import Preprocessing, Window
from recipes.load import Section

BY_NAME = "name"


class Line(Section):
    """A backbone: a mapping with exactly one of the keys that say of which sort it is."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, tree: Any) -> Any:
        for key in tree if isinstance(tree, dict) else ():
            if key not in cls.model_fields:
                close = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.5)
                known = ", ".join(cls.model_fields)
                hint = f"did you mean {close[0]!r}?" if close else f"known here: {known}"
                raise ValueError(f"unknown key {str(key)!r}, {hint}")
        return tree


class ArtefactLine(Line):
    """A folder that a pretraining published; the path alone will do."""

    artefact: str = Field(description="a folder, an archive, hf://org/name, a URL, or a known name")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, tree: Any) -> Any:
        if isinstance(tree, str | Path):
            return {"artefact": str(tree)}
        return {**tree, "artefact": str(tree["artefact"])} if "artefact" in tree else tree


class RunLine(Line):
    """A checkpoint of a run, finished or not; nothing in the run's folder is changed."""

    run: Path = Field(description="runs/NAME")
    step: NonNegativeInt | None = Field(default=None, description="null: the newest healthy one")
    weights: Literal["student", "teacher"] | None = Field(
        default=None, description="of DINO; null: the teacher, which an export would publish"
    )


class RandomLike(Section):
    """Whose architecture, and which weights are drawn."""

    like: str = Field(description="another line of the recipe, or a folder backbone/")
    seed: NonNegativeInt = 0


class RandomLine(Line):
    """A network that was never trained: a floor. ``random_init`` makes them for all lines."""

    random: RandomLike


class ForeignLine(Line):
    """A backbone that was pretrained elsewhere, on data that nobody has told us of."""

    licence: str = Field(default="unknown", description="of the weights")
    sees: tuple[str, ...] | None = Field(
        default=None,
        description="folders of shards that it was pretrained on, [] for none; null: undisclosed, "
        "so its overlap with a task reads unknown",
    )
    seed: NonNegativeInt = Field(default=0, description="of weights that are drawn")


class TimmLine(ForeignLine):
    """A 2D network of timm over slices of the scan, each windowed to [0, 1]."""

    timm: str = Field(description="timm's name of the network")
    weights: str | None = Field(
        description="name: by its name from the hub; a .safetensors or .pth file; null: untrained"
    )
    slices: PositiveInt = Field(default=32, description="at most, spread evenly over the scan")
    axis: Literal["axial", "coronal", "sagittal"] = Field(
        default="axial", description="which way slices are cut"
    )
    window_hu: Window = (-1000.0, 1000.0)
    window_suv: Window = (0.0, 10.0)
    window_other: Window = (0.0, 255.0)


class MonaiLine(ForeignLine):
    """A 3D encoder of ``monai.networks.nets``; its deepest feature map is averaged."""

    monai: str = Field(description="class or function, such as SwinUNETR or resnet18")
    args: dict[str, Any] = Field(default_factory=dict, description="of its constructor")
    weights: Path | None = Field(description="a .safetensors or .pth file; null: untrained")
    into: str | None = Field(
        default=None, description="the submodule that the file is of; null: the whole network"
    )
    layer: str | None = Field(
        default=None, description="submodule whose output is taken; null: known for common networks"
    )
    intensities: tuple[float, float] = Field(
        default=(0.0, 1.0), description="what the ends of the window become"
    )
    preprocessing: Preprocessing


class FunctionLine(ForeignLine):
    """Anything that can be imported: see ``evaluation/backbones/functions.py``."""

    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:name")
    args: dict[str, Any] = Field(default_factory=dict)
    weights: Path | None = Field(default=None, description="handed over as the argument weights")
    preprocessing: Preprocessing | None = Field(
        default=None, description="of the windows it is given; null: it returns an embedder"
    )


class FeaturesLine(ForeignLine):
    """A table that was computed elsewhere: a row of numbers for each subject, or several."""

    features: Path = Field(description=".csv or .parquet")
    subject: str = Field(default="subject", description="its column of subjects, as in the cohort")


_KEYS = {
    "artefact": "ArtefactLine",
    "run": "RunLine",
    "random": "RandomLine",
    "timm": "TimmLine",
    "monai": "MonaiLine",
    "function": "FunctionLine",
    "features": "FeaturesLine",
}


def _sort_of(tree: Any) -> str | None:
    if isinstance(tree, Line):
        return type(tree).__name__
    if isinstance(tree, str | Path):
        return "ArtefactLine"
    found = [_KEYS[key] for key in tree if key in _KEYS] if isinstance(tree, dict) else []
    return found[0] if len(found) == 1 else None


BackboneLine = Annotated[
    Annotated[ArtefactLine, Tag("ArtefactLine")]
    | Annotated[RunLine, Tag("RunLine")]
    | Annotated[RandomLine, Tag("RandomLine")]
    | Annotated[TimmLine, Tag("TimmLine")]
    | Annotated[MonaiLine, Tag("MonaiLine")]
    | Annotated[FunctionLine, Tag("FunctionLine")]
    | Annotated[FeaturesLine, Tag("FeaturesLine")],
    Discriminator(
        _sort_of,
        custom_error_type="backbone_line",
        custom_error_message=f"a backbone is a path, or has exactly one of {', '.join(_KEYS)}",
    ),
]
"""What a recipe says of a backbone."""


def source_of(line: Line) -> str:
    """Where a backbone comes from, for people."""
    if isinstance(line, ArtefactLine):
        return line.artefact
    if isinstance(line, RandomLine):
        return f"untrained, like {line.random.like}, seed {line.random.seed}"
    sort = next(key for key, name in _KEYS.items() if name == type(line).__name__)
    told = f"{sort} {getattr(line, sort)}"
    if isinstance(line, RunLine):
        told += ", newest step" if line.step is None else f", step {line.step}"
    weights = getattr(line, "weights", None)
    if weights is None:
        return f"{told}, untrained" if isinstance(line, TimmLine | MonaiLine) else told
    return f"{told}, weights {weights}"


def run_of(line: Line) -> Path | None:
    """The folder of the pretraining that a backbone of our own comes from."""
    if isinstance(line, ArtefactLine):
        folder = Path(line.artefact)
        return folder.parent if folder.is_dir() else None
    return line.run if isinstance(line, RunLine) else None
