"""A MONAI bundle, run by MONAI's own parser and workflow, gives the features of embedding."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from foundation.backbone import load_backbone, random_backbone, save_backbone
from foundation.convert import convert
from foundation.converting import bundle
from foundation.converting.bundle import INFERENCE, METADATA, bundle_parser
from foundation.converting.bundle_config import WEIGHTS
from foundation.converting.bundled import OwnWindowd
from foundation.converting.network import ConvertError
from foundation.preprocessing import Preprocessing, normalise
from foundation.vit import VitConfig, build_vit
from foundation.windows import Prepared, Tokens, merge_windows, prepare
from shards.measure.intensity import intensity_statistics
from shards.scan import read_scan, resample

pytest.importorskip("monai")

CONFIG = VitConfig(size="toy", depth=1, patch_size=(4, 8, 6), position="rope_mm", num_registers=2)
CONTRACT = Preprocessing(crop_shape=(8, 24, 18), spacing_mm=(3.0, 1.5, 2.0))
FILTER = "ignore::UserWarning"  # MONAI's, of readers that are not installed
pytestmark = [
    pytest.mark.filterwarnings(FILTER),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def save(folder: Path, contract: Preprocessing) -> Path:
    torch.manual_seed(6)
    save_backbone(
        folder,
        vit=build_vit(CONFIG),
        vit_config=CONFIG,
        preprocessing=contract,
        recipe={"name": "small"},
        provenance={"name": "small", "initialised_from": None},
    )
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, its bundle for CT, and a folder with two scans in odd orders of axes."""
    folder = tmp_path_factory.mktemp("monai")
    save(folder / "backbone", CONTRACT)
    convert(folder / "backbone", to="monai", out=folder / "bundle", modality="CT")
    write_scan(folder / "scans" / "a" / "one.nii.gz", shape=(41, 13, 50), order=(2, 0, 1))
    write_scan(folder / "scans" / "two.nii", shape=(14, 6, 15), order=(1, 2, 0))
    return folder


def write_scan(path: Path, *, shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    """A blob in noise; array axis i runs along patient axis ``order[i]``, some backwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    blob = 900 * np.exp(-4 * sum((axis - 0.2 * i) ** 2 for i, axis in enumerate(axes)))
    noise = np.random.default_rng(len(path.name)).normal(-500, 60, shape)
    affine = np.zeros((4, 4))
    for axis, (patient, mm) in enumerate(zip(order, (1.7, 3.4, 1.1), strict=True)):
        affine[patient, axis] = -mm if patient else mm
    affine[:, 3] = (3.0, -40.0, 11.0, 1.0)
    nib.save(nib.Nifti1Image((blob + noise).astype(np.int16), affine), path)


def scan_of(made: Path) -> Any:
    return read_scan(made / "scans" / "a" / "one.nii.gz", modality="CT")


def test_monais_workflow_writes_the_features_of_embedding(made: Path, tmp_path: Path) -> None:
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        config_file=str(made / "bundle" / INFERENCE),
        meta_file=str(made / "bundle" / METADATA),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(made / "bundle"),
        dataset_dir=str(made / "scans"),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    workflow.initialize()
    assert not workflow.check_properties()
    workflow.run()
    with (tmp_path / "out" / "features.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:2] == ["scan", "cls_0"]
    assert [row[0] for row in rows] == ["a/one.nii.gz", "two.nii"]
    backbone = load_backbone(made / "backbone")
    for name, *values in rows:
        ours = backbone.embed_scan(read_scan(made / "scans" / name, modality="CT"))
        found = np.array(values, dtype=np.float32)
        np.testing.assert_allclose(found, np.concatenate([*ours.values()]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("modality", "spacing_mm"), [("MR", None), ("MR", (2.0, 1.1, 3.0)), ("PT", None), ("OT", None)]
)
def test_every_modality_with_and_without_a_spacing(
    modality: str, spacing_mm: tuple[float, float, float] | None, tmp_path: Path
) -> None:
    contract = CONTRACT.model_copy(update={"spacing_mm": spacing_mm})
    backbone = load_backbone(save(tmp_path / "backbone", contract))
    checked = bundle.write_bundle(backbone, tmp_path / "bundle", modality=modality)
    assert set(checked.differences) == {"cls", "mean"}
    assert max(checked.differences.values()) <= 1e-5


def test_monais_transforms_alone_give_our_volume_and_spacing(made: Path) -> None:
    """Orientation and window by MONAI, the grid by us: voxel by voxel what the backbone sees."""
    parser = parser_of(made)
    image = parser.get_parsed_content("dataset")[0]["image"]
    scan = resample(scan_of(made), CONTRACT.spacing_mm)
    volume, _, _ = prepare(scan, preprocessing=CONTRACT, device="cpu")
    seen = tuple(slice(0, size) for size in image.shape[1:])
    assert image.shape[1:] == scan.voxels.shape
    np.testing.assert_allclose(image[0].numpy(), volume[seen].numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(image.pixdim, CONTRACT.spacing_mm, rtol=1e-6)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    np.testing.assert_allclose(image.affine.numpy(), lps_to_ras @ scan.affine, atol=1e-9)


def parser_of(made: Path, **settings: Any) -> Any:
    place = {"dataset_dir": str(made / "scans"), "device": "cpu"}
    return bundle_parser(made / "bundle", **{**place, **settings})


def test_monais_own_spacing_is_near_but_not_equal(made: Path) -> None:
    """What the bundle's README says of ``Spacingd``, measured: so it is not the default."""
    ours = load_backbone(made / "backbone").embed_scan(scan_of(made))["mean"]
    spacing = {"_target_": "Spacingd", "keys": "image", "pixdim": list(CONTRACT.spacing_mm or ())}
    parser = parser_of(made)
    parser["preprocessing#transforms#3"] = spacing
    image = parser.get_parsed_content("dataset")[0]["image"]
    theirs = parser.get_parsed_content("evaluator").embed(image)["mean"]
    difference = np.abs(theirs - ours).max()
    cosine = theirs @ ours / np.linalg.norm(theirs) / np.linalg.norm(ours)
    assert difference > 1e-3
    assert cosine > 0.95


def test_monais_sliding_window_gives_our_token_map(made: Path) -> None:
    """Where windows lie side by side there is one way to place them."""
    parser = parser_of(made)
    network = parser.get_parsed_content("network")
    image = torch.rand(1, 1, 16, 48, 36, generator=torch.Generator().manual_seed(2)) * 2 - 1
    spacing = torch.tensor([[3.0, 1.5, 2.0]])
    with torch.inference_mode():
        found = parser.get_parsed_content("dense_inferer")(image, network)
        assert found.shape == (1, 96, 4, 6, 6)
        other = parser.get_parsed_content("dense_inferer")(image, network, spacing_mm=3 * spacing)
    assert not torch.allclose(found, other, atol=1e-3)
    vit = load_backbone(made / "backbone").vit

    def tokens(windows: torch.Tensor) -> list[Tokens]:
        return [Tokens(*vit(windows, spacing_mm=spacing.expand(len(windows), -1)))]

    prepared = Prepared(image[0, 0], torch.ones_like(image[0, 0]), (0, 0, 0))
    with torch.inference_mode():
        ours = merge_windows(tokens, prepared, crop_shape=(8, 24, 18), patch_size=(4, 8, 6))
    torch.testing.assert_close(found[0].permute(1, 2, 3, 0), ours, rtol=0, atol=1e-5)


def test_the_token_map_of_a_scan_covers_it_in_whole_patches(made: Path) -> None:
    parser = parser_of(made)
    sizes = []
    for item in parser.get_parsed_content("dataset"):
        image = parser.get_parsed_content("whole_patches")(item)["image"]
        network = parser.get_parsed_content("network")
        with torch.inference_mode():
            found = parser.get_parsed_content("dense_inferer")(image[None], network)
        grid = [
            -(-size // patch)
            for size, patch in zip(item["image"].shape[1:], (4, 8, 6), strict=True)
        ]
        assert found.shape == (1, 96, *grid)
        assert torch.isfinite(found).all()
        sizes.append(grid)
    # The second scan is smaller than a window on every axis.
    assert sizes[0] > sizes[1]
    assert all(cells <= window for cells, window in zip(sizes[1], (2, 3, 3), strict=True))


SCHEMA = {
    "type": "object",
    "required": [
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright"),
        "network_data_format",
    ],
    "properties": {
        "version": {"type": "string"},
        "required_packages_version": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "additionalProperties": {
                "additionalProperties": {
                    "type": "object",
                    "required": [
                        *("type", "format", "num_channels", "spatial_shape", "dtype"),
                        "value_range",
                    ],
                }
            },
        },
    },
}
"""What MONAI's specification of bundles makes mandatory."""


def test_monais_verifiers_pass(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    from monai.bundle import verify_metadata, verify_net_in_out

    schema = tmp_path / "schema.json"  # where it lies already, MONAI downloads nothing
    schema.write_text(json.dumps(SCHEMA))
    meta = str(made / "bundle" / METADATA)
    verify_metadata(meta_file=meta, filepath=str(schema))
    verify_net_in_out(
        net_id="network_def",
        meta_file=meta,
        config_file=str(made / "bundle" / INFERENCE),
        device="cpu",
        bundle_root=str(made / "bundle"),
    )


def test_a_bundle_is_text_and_safetensors(made: Path) -> None:
    folder = made / "bundle"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {INFERENCE, METADATA, WEIGHTS, "docs/README.md", "LICENSE"}
    text = "".join((folder / name).read_text() for name in names - {WEIGHTS})
    assert str(made) not in text
    assert "A MONAI bundle" in text
    assert "licence not recorded" in (folder / METADATA).read_text()
    assert "not recorded" in (folder / "LICENSE").read_text()


def test_other_weights_are_refused(made: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    torch.manual_seed(7)
    save_file(dict(build_vit(CONFIG).state_dict()), others)
    for weights, sha256, line in (
        (others, "0" * 64, "not the weights this bundle was made with"),
        (tmp_path / "none", None, "no such weights; is bundle_root the bundle's folder"),
        (made / "backbone" / "golden.safetensors", None, "not the weights of this network"),
    ):
        parser = parser_of(made)
        parser["network_def#weights"], parser["network_def#sha256"] = str(weights), sha256
        with pytest.raises(RuntimeError) as told:  # MONAI's, ours is its cause
            parser.get_parsed_content("network_def")
        assert isinstance(told.value.__cause__, ConvertError)
        assert line in str(told.value.__cause__)
    parser = parser_of(made)
    parser["network_def#weights"], parser["network_def#sha256"] = str(others), None
    assert parser.get_parsed_content("network_def").vit.embed_dim == 96


def test_what_a_bundle_cannot_be(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    several = random_backbone(
        CONFIG.model_copy(update={"in_chans": 2}), preprocessing=CONTRACT, seed=0
    )
    with pytest.raises(ConvertError, match="takes 2 channels and a bundle reads one image"):
        bundle.write_bundle(several, tmp_path / "bundle", modality="CT")
    drawn = random_backbone(CONFIG, preprocessing=CONTRACT, seed=0)
    with pytest.raises(ConvertError, match="was not loaded from an artefact"):
        bundle.write_bundle(drawn, tmp_path / "bundle", modality="CT")
    empty = parser_of(made, dataset_dir=str(tmp_path)).get_parsed_content("evaluator")
    with pytest.raises(ConvertError, match="no NIfTI file; set dataset_dir to their folder"):
        empty.run()
    # A bundle may be replaced by another, and only by one that passes its check.
    out = tmp_path / "old"
    convert(made / "backbone", to="monai", out=out, modality="CT")
    convert(made / "backbone", to="monai", out=out, modality="MR")
    assert "OwnWindowd" in (out / INFERENCE).read_text()
    monkeypatch.setattr(bundle, "TOLERANCE", -1.0)
    with pytest.raises(ConvertError, match="nothing was written"):
        convert(made / "backbone", to="monai", out=out, modality="CT")
    assert "OwnWindowd" in (out / INFERENCE).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_mr_without_contrast_is_air_and_others_follow_the_contract() -> None:
    from monai.data import MetaTensor

    flat = OwnWindowd("image")({"image": MetaTensor(torch.full((1, 2, 3, 4), 7.0))})["image"]
    assert (flat == -1).all()
    values = torch.randn(1, 5, 6, 7, generator=torch.Generator().manual_seed(1)) * 90 + 200
    expected = normalise(
        values[None],
        slope=torch.ones(1),
        intercept=torch.zeros(1),
        modality=torch.tensor([1]),
        statistics=torch.tensor([tuple(intensity_statistics(values.numpy()))]),
        preprocessing=CONTRACT,
    )
    found = OwnWindowd("image")({"image": MetaTensor(values)})["image"]
    torch.testing.assert_close(found.as_tensor(), expected[0], rtol=0, atol=1e-6)
