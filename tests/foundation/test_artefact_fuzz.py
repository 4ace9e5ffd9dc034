"""Three hundred damaged artefacts, each one clear line, and none of them runs code."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.artefact.layout import ALL_FILES, SUMS
from foundation.artefact.saving import seal
from foundation.backbone import BackboneError, load_backbone, save_backbone
from foundation.model import load_model
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from tests.foundation.tuned_models import write_model

NUM_BACKBONES, NUM_MODELS = 200, 100
TENSORS = ("model.safetensors", "golden.safetensors", "head.safetensors")
READ = (*TENSORS, "config.json", "preprocessing.json", "provenance.json", "head.json")
HUGE = (2**31, 2**63 - 1, 2**64, 10**30)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = VitConfig(
        size="toy", patch_size=(4, 8, 6), embed_dim=24, depth=1, num_heads=1, position="rope"
    )
    folder = tmp_path_factory.mktemp("whole") / "backbone"
    save_backbone(
        folder,
        vit=build_vit(config),
        vit_config=config,
        preprocessing=Preprocessing(crop_shape=(8, 16, 12)),
        recipe={},
        provenance={"name": "small"},
    )
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """A model that labels, and one that finds masks."""
    folder = tmp_path_factory.mktemp("tuned")
    return tuple(write_model(folder / kind, kind) for kind in ("binary", "segmentation"))


def some(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Those that the artefact has."""
    return [name for name in names if (folder / name).exists()]


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def with_header(path: Path, header: bytes, *, claimed: int | None = None) -> None:
    """Another header before the same numbers."""
    content = path.read_bytes()
    old = struct.unpack("<Q", content[:8])[0]
    size = len(header) if claimed is None else claimed
    path.write_bytes(struct.pack("<Q", size) + header + content[8 + old :])


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    with_header(path, json.dumps(header).encode())


# Each takes the folder and a source of random numbers; the sums are made to fit afterwards, as
# somebody who means harm would do.


def cut_short(folder: Path, random: Random) -> None:
    path = folder / random.choice(some(folder, READ))
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content) - 2)])


def swap_two_files(folder: Path, random: Random) -> None:
    one, other = (folder / name for name in random.sample(some(folder, READ), 2))
    if {one.name, other.name} == {"provenance.json", "preprocessing.json"}:
        other = folder / "config.json"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def noise_in_a_file(folder: Path, random: Random) -> None:
    path = folder / random.choice(some(folder, READ))
    path.write_bytes(random.randbytes(random.randrange(3000)))


def header_larger_than_the_file(folder: Path, random: Random) -> None:
    claimed = random.choice([2**20, 2**27, 2**40, 2**63, 2**64 - 1])
    with_header(folder / random.choice(some(folder, TENSORS)), b"{}", claimed=claimed)


def header_that_is_no_json(folder: Path, random: Random) -> None:
    header = random.choice([b"", b"[]", b"null", b"{" * 500, b'{"a":', b"\xff\xfe", b'{"a":{}}'])
    with_header(folder / random.choice(some(folder, TENSORS)), header)


def header_nested_without_end(folder: Path, random: Random) -> None:
    header = b'{"a":' * 20_000
    with_header(folder / random.choice(some(folder, TENSORS)), header + b"1" + b"}" * 20_000)


def offsets_that_lie(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        first, last = entry["data_offsets"]
        entry["data_offsets"] = random.choice(
            [[first, last + 4], [last, first], [first, 2**62], [-4, last], [first + 4, last + 4]]
        )

    change_header(folder / random.choice(some(folder, TENSORS)), change)


def shape_that_lies(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        entry["shape"] = random.choice(
            [[], [*entry["shape"], 2], [random.choice(HUGE)], [2**33] * 2]
        )

    change_header(folder / random.choice(some(folder, TENSORS)), change)


def type_that_lies(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        entry["dtype"] = random.choice(["I32", "U32", "F64", "object", "", None, 3])

    change_header(folder / random.choice(some(folder, TENSORS)), change)


def name_that_lies(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any]) -> None:
        name = random.choice(
            [name for name in header if name not in ("__metadata__", "spacing_mm")]
        )
        header[random.choice(["__class__", "../x", "", "\n", name + ".", "a" * 5000])] = header.pop(
            name
        )

    change_header(folder / random.choice(some(folder, TENSORS)), change)


def foreign_tensor(folder: Path, random: Random) -> None:
    path = folder / "model.safetensors"
    extra = {f"surprise.{random.randrange(9)}": torch.zeros(random.randrange(1, 9), 3)}
    save_file({**load_file(path), **extra}, path)


def missing_tensor(folder: Path, random: Random) -> None:
    path = folder / random.choice(some(folder, TENSORS))
    tensors = load_file(path)
    tensors.pop("spacing_mm", None)
    tensors.pop(random.choice(sorted(tensors)))
    save_file(tensors, path)


def other_numbers(folder: Path, random: Random) -> None:
    path = folder / random.choice(some(folder, TENSORS))
    tensors = load_file(path)
    # Every number of these is in the features, or in what a head makes of them.
    heard = ("cls", "mean", "norm.weight", "norm.bias", "logits")
    heard = (*heard, "layers.0.bias", "out.conv.conv.bias")
    name = random.choice([name for name in heard if name in tensors])
    value = random.choice([float("nan"), float("inf"), 1e30, 3.0])
    save_file({**tensors, name: torch.full_like(tensors[name], value)}, path)


def integers_for_floats(folder: Path, random: Random) -> None:
    path = folder / random.choice(some(folder, TENSORS))
    tensors = load_file(path)
    kind = random.choice([torch.int32, torch.bool, torch.uint8])
    save_file({name: tensor.to(kind) for name, tensor in tensors.items()}, path)


def a_pickle(folder: Path, random: Random) -> None:
    bomb = pickle.dumps(_Bomb(str(folder / "exploded")), protocol=random.choice([0, 2, 4, 5]))
    (folder / random.choice(some(folder, READ))).write_bytes(bomb)


def a_torch_file(folder: Path, random: Random) -> None:
    torch.save({"w": torch.zeros(3)}, folder / random.choice(some(folder, TENSORS)))


def another_network(folder: Path, random: Random) -> None:
    name = random.choice(["depth", "embed_dim", "num_heads", "patch_size", "in_chans", "mlp_ratio"])
    huge = random.choice(HUGE)
    values = {"patch_size": [8, 16, huge], "embed_dim": 48 * huge, "mlp_ratio": 1e300}
    rewrite_json(folder / "config.json", lambda c: c["vit"].update({name: values.get(name, huge)}))


def config_of_another_kind(folder: Path, random: Random) -> None:
    value = random.choice([None, [], "toy", 3, {"size": "giant"}, {"patch_size": "x"}, {"a": {}}])
    rewrite_json(folder / "config.json", lambda content: content.update(vit=value))


def version_of_another_kind(folder: Path, random: Random) -> None:
    version = random.choice([0, -1, 3, 99, 1e400, "1", None, True, [1], 10**400, "x\ny"])
    rewrite_json(folder / "config.json", lambda content: content.update(schema_version=version))


def contract_of_another_kind(folder: Path, random: Random) -> None:
    changes: list[dict[str, Any]] = [
        {"crop_shape": [0, 1, 1]},
        {"crop_shape": [7, 16, 12]},
        {"crop_shape": None},
        {"orientation": "RAS"},
        {"spacing_mm": [1, 2]},
        {"spacing_mm": [-1, 1, 1]},
        {"window_hu": [5, 5]},
        {"window_hu": [float("nan"), 1]},
        {"x": 1},
    ]
    change = random.choice(changes)
    rewrite_json(folder / "preprocessing.json", lambda content: content.update(change))


def json_of_another_kind(folder: Path, random: Random) -> None:
    path = folder / random.choice([name for name in some(folder, READ) if name.endswith(".json")])
    path.write_bytes(
        random.choice(
            [b"", b"[]", b"null", b"[" * 100_000, b"{'a': 1}", b"\xff\xfe\x00", b"1" * 9999]
        )
    )


RESEALED = (
    cut_short,
    swap_two_files,
    noise_in_a_file,
    header_larger_than_the_file,
    header_that_is_no_json,
    header_nested_without_end,
    offsets_that_lie,
    shape_that_lies,
    type_that_lies,
    name_that_lies,
    foreign_tensor,
    missing_tensor,
    other_numbers,
    integers_for_floats,
    a_pickle,
    a_torch_file,
    another_network,
    config_of_another_kind,
    version_of_another_kind,
    contract_of_another_kind,
    json_of_another_kind,
)


def flip_a_bit(folder: Path, random: Random) -> None:
    path = folder / random.choice(some(folder, ALL_FILES))
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def no_file(folder: Path, random: Random) -> None:
    path = folder / random.choice([*some(folder, ALL_FILES), SUMS])
    path.unlink()
    other = random.choice(["nothing", "folder", "loop"])
    if other == "folder":
        path.mkdir()
    elif other == "loop":
        path.symlink_to(path.name)


def sums_of_another_kind(folder: Path, random: Random) -> None:
    path = folder / SUMS
    content = path.read_bytes()
    changes: list[bytes] = [
        b"",
        b"\xff" * 70_000,
        content.replace(b"\n", b"\r\n"),
        content + b"0" * 64 + b"  ../../etc/passwd\n",
        content + b"0" * 64 + b"  x\x00y\n",
        content[: len(content) // 2],
        content.replace(b"config", b"\nconfig"),
        content.upper(),
    ]
    path.write_bytes(random.choice(changes))


UNSEALED = (flip_a_bit, no_file, sums_of_another_kind)


def half_a_head(folder: Path, random: Random) -> None:
    (folder / random.choice(["head.json", "head.safetensors"])).unlink()


def no_head(folder: Path, random: Random) -> None:
    del random
    for name in ("head.json", "head.safetensors"):
        (folder / name).unlink()


def head_of_another_kind(folder: Path, random: Random) -> None:
    huge, none = random.choice(HUGE), random.choice([None, [], 3, "x", {"a": 1}])
    section = "decoder" if (folder / "head.json").read_text().count('"light"') else "head"
    changes: list[dict[str, Any]] = [
        {"target": none},
        {section: none},
        {"head": {}, "decoder": {}},
        {"head": None, "decoder": None},
        {section: {"hidden_dim": huge} if section == "head" else {"features": huge}},
        {section: {"features": "all"}},
        {"calibration": {"fitted_on": "test", "num_subjects": 1}},
        {"calibration": {"fitted_on": "validation", "num_subjects": 1, "limits": [1e400]}},
        {"calibration": {"fitted_on": "validation", "num_subjects": 1, "temperatures": [1, 1]}},
        {"surprise": 1},
    ]
    rewrite_json(folder / "head.json", lambda content: content.update(random.choice(changes)))


def target_of_another_kind(folder: Path, random: Random) -> None:
    changes: list[dict[str, Any]] = [
        {"kind": random.choice(["retrieval", "survival", "ordinal", "regression", "x", None])},
        {"outputs": random.choice([[], ["a", "b", "c"], ["a"] * 2, "a", [1], ["x"] * 9000])},
        {"outputs": [f"{number}" for number in range(9000)]},
        {"classes": random.choice([["a"], ["a", "a"], ["a"] * 70, "a"])},
        {"scale": random.choice([0, -1, 1e400, None, "x"])},
        {"centre": random.choice([1e400, float("nan"), None])},
        {"ends_days": random.choice([[1.0], [-1.0], [2.0, 1.0], [1e400], None])},
        {"mask_values": random.choice([{"a": 1}, {"vein": 0, "artery": 10**30}, [1], None])},
    ]
    change = random.choice(changes)
    rewrite_json(folder / "head.json", lambda content: content["target"].update(change))


OF_HEADS = (half_a_head, no_head, head_of_another_kind, target_of_another_kind)


class _Bomb:
    """Runs code when something unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def test_two_hundred_damaged_backbones(whole: Path, tmp_path: Path) -> None:
    load_backbone(whole)
    kinds = [*RESEALED, *UNSEALED]
    cases = [(whole, kinds[case % len(kinds)]) for case in range(NUM_BACKBONES)]
    assert not refused_badly(cases, load_backbone, folder=tmp_path / "backbone")


def test_a_hundred_damaged_models(tuned: tuple[Path, ...], tmp_path: Path) -> None:
    for each in tuned:
        load_model(each)
    # A head is damaged in half of them by what only a head can have.
    kinds = [*OF_HEADS * 6, *RESEALED, *UNSEALED]
    cases = [(tuned[case % 2], kinds[case // 2 % len(kinds)]) for case in range(NUM_MODELS)]
    assert not refused_badly(cases, load_model, folder=tmp_path / "model")


def refused_badly(
    cases: Sequence[tuple[Path, Callable[[Path, Random], object]]],
    load: Callable[[Path], object],
    *,
    folder: Path,
) -> str:
    """Lines on those that loaded, or that ended in anything but one clear line."""
    wrong = []
    for case, (whole, damage) in enumerate(cases):
        shutil.copytree(whole, folder)
        damage(folder, Random(case))
        if damage not in UNSEALED:
            seal(folder)
        try:
            load(folder)
        except BackboneError as error:
            line = str(error)
            if "\n" in line or str(folder) not in line or len(line) > 1000:
                wrong.append(f"{case} {damage.__name__}: {line[:300]!r}")
        except Exception as error:
            wrong.append(f"{case} {damage.__name__}: {type(error).__name__} {str(error)[:200]}")
        else:
            wrong.append(f"{case} {damage.__name__}: it loads")
        assert not (folder / "exploded").exists()
        shutil.rmtree(folder)
    return "\n".join(wrong)
