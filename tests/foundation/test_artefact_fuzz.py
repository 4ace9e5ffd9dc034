"""Two hundred damaged artefacts, each one clear line, and none of them runs code."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foundation.artefact.layout import FILES, SUMS
from foundation.artefact.saving import seal
from foundation.backbone import BackboneError, load_backbone, save_backbone
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit

NUM_CASES = 200
TENSORS = ("model.safetensors", "golden.safetensors")
READ = (*TENSORS, "config.json", "preprocessing.json", "provenance.json")
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
    path = folder / random.choice(READ)
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content) - 2)])


def swap_two_files(folder: Path, random: Random) -> None:
    one, other = (folder / name for name in random.sample(READ, 2))
    if {one.name, other.name} == {"provenance.json", "preprocessing.json"}:
        other = folder / "config.json"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def noise_in_a_file(folder: Path, random: Random) -> None:
    path = folder / random.choice(READ)
    path.write_bytes(random.randbytes(random.randrange(3000)))


def header_larger_than_the_file(folder: Path, random: Random) -> None:
    claimed = random.choice([2**20, 2**27, 2**40, 2**63, 2**64 - 1])
    with_header(folder / random.choice(TENSORS), b"{}", claimed=claimed)


def header_that_is_no_json(folder: Path, random: Random) -> None:
    header = random.choice([b"", b"[]", b"null", b"{" * 500, b'{"a":', b"\xff\xfe", b'{"a":{}}'])
    with_header(folder / random.choice(TENSORS), header)


def header_nested_without_end(folder: Path, random: Random) -> None:
    header = b'{"a":' * 20_000
    with_header(folder / random.choice(TENSORS), header + b"1" + b"}" * 20_000)


def offsets_that_lie(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        first, last = entry["data_offsets"]
        entry["data_offsets"] = random.choice(
            [[first, last + 4], [last, first], [first, 2**62], [-4, last], [first + 4, last + 4]]
        )

    change_header(folder / random.choice(TENSORS), change)


def shape_that_lies(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        entry["shape"] = random.choice(
            [[], [*entry["shape"], 2], [random.choice(HUGE)], [2**33] * 2]
        )

    change_header(folder / random.choice(TENSORS), change)


def type_that_lies(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any]) -> None:
        entry = header[random.choice([name for name in header if name != "__metadata__"])]
        entry["dtype"] = random.choice(["I32", "U32", "F64", "object", "", None, 3])

    change_header(folder / random.choice(TENSORS), change)


def name_that_lies(folder: Path, random: Random) -> None:
    def change(header: dict[str, Any]) -> None:
        name = random.choice(
            [name for name in header if name not in ("__metadata__", "spacing_mm")]
        )
        header[random.choice(["__class__", "../x", "", "\n", name + ".", "a" * 5000])] = header.pop(
            name
        )

    change_header(folder / random.choice(TENSORS), change)


def foreign_tensor(folder: Path, random: Random) -> None:
    path = folder / "model.safetensors"
    extra = {f"surprise.{random.randrange(9)}": torch.zeros(random.randrange(1, 9), 3)}
    save_file({**load_file(path), **extra}, path)


def missing_tensor(folder: Path, random: Random) -> None:
    path = folder / random.choice(TENSORS)
    tensors = load_file(path)
    tensors.pop("spacing_mm", None)
    tensors.pop(random.choice(sorted(tensors)))
    save_file(tensors, path)


def other_numbers(folder: Path, random: Random) -> None:
    path = folder / random.choice(TENSORS)
    tensors = load_file(path)
    heard = ("cls", "mean", "norm.weight", "norm.bias")  # every number of these is in the features
    name = random.choice([name for name in heard if name in tensors])
    value = random.choice([float("nan"), float("inf"), 1e30, 3.0])
    save_file({**tensors, name: torch.full_like(tensors[name], value)}, path)


def integers_for_floats(folder: Path, random: Random) -> None:
    path = folder / random.choice(TENSORS)
    tensors = load_file(path)
    kind = random.choice([torch.int32, torch.bool, torch.uint8])
    save_file({name: tensor.to(kind) for name, tensor in tensors.items()}, path)


def a_pickle(folder: Path, random: Random) -> None:
    bomb = pickle.dumps(_Bomb(str(folder / "exploded")), protocol=random.choice([0, 2, 4, 5]))
    (folder / random.choice(READ)).write_bytes(bomb)


def a_torch_file(folder: Path, random: Random) -> None:
    torch.save({"w": torch.zeros(3)}, folder / random.choice(TENSORS))


def another_network(folder: Path, random: Random) -> None:
    name = random.choice(["depth", "embed_dim", "num_heads", "patch_size", "in_chans", "mlp_ratio"])
    huge = random.choice(HUGE)
    values = {"patch_size": [8, 16, huge], "embed_dim": 48 * huge, "mlp_ratio": 1e300}
    rewrite_json(folder / "config.json", lambda c: c["vit"].update({name: values.get(name, huge)}))


def config_of_another_kind(folder: Path, random: Random) -> None:
    value = random.choice([None, [], "toy", 3, {"size": "giant"}, {"patch_size": "x"}, {"a": {}}])
    rewrite_json(folder / "config.json", lambda content: content.update(vit=value))


def version_of_another_kind(folder: Path, random: Random) -> None:
    version = random.choice([0, -1, 2, 99, 1e400, "1", None, True, [1], 10**400, "x\ny"])
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
    path = folder / random.choice([name for name in READ if name.endswith(".json")])
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
    path = folder / random.choice(FILES)
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def no_file(folder: Path, random: Random) -> None:
    path = folder / random.choice([*FILES, SUMS])
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


class _Bomb:
    """Runs code when something unpickles it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def test_two_hundred_damaged_artefacts(whole: Path, tmp_path: Path) -> None:
    load_backbone(whole)
    kinds = [*RESEALED, *UNSEALED]
    folder = tmp_path / "backbone"
    wrong = []
    for case in range(NUM_CASES):
        damage = kinds[case % len(kinds)]
        shutil.copytree(whole, folder)
        damage(folder, Random(case))
        if damage in RESEALED:
            seal(folder)
        try:
            load_backbone(folder)
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
    assert not wrong, "\n".join(wrong)
