"""What every fuzz case uses: damage to files, and what no scan, reason or log may be."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shards.scan import MODALITIES, Scan
from tests.shards import fuzz_mutate as mutate
from tests.shards.fuzz_mutate import Failure, Mutation, Random
from tests.shards.fuzz_seeds import SECRETS, Files

MAX_VOXELS = 1 << 24
DAMAGE = ("Uncompress failed", "not read completely", "remature end")
"""What libraries print, and go on."""


def damage(files: Files, random: Random, ways: tuple[Mutation, ...], *, most: int = 3) -> Files:
    """One to ``most`` of the files, changed in one to three ways."""
    names = list(files)
    for _ in range(100):
        found = dict(files)
        for place in random.permutation(len(names))[: int(random.integers(1, most + 1))]:
            for _ in range(int(random.integers(1, 4)) if random.random() < 0.3 else 1):
                way: Mutation = mutate.choice(random, ways)  # type: ignore[assignment]
                found[names[place]] = way(found[names[place]], random)
        if found != files:
            return found
    raise Failure("no damage in a hundred draws: the mutations are broken")


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def check_scan(scan: Scan) -> None:
    if scan.voxels.ndim != 3 or not 0 < scan.voxels.size <= MAX_VOXELS:
        raise Failure(f"a scan of shape {scan.voxels.shape}")
    if scan.voxels.dtype not in (np.int16, np.float32) or not np.isfinite(scan.voxels).all():
        raise Failure(f"voxels of {scan.voxels.dtype}, or not finite")
    if not (np.isfinite(scan.spacing_mm).all() and min(scan.spacing_mm) > 0):
        raise Failure(f"a spacing of {scan.spacing_mm}")
    if scan.affine is not None and not np.isfinite(scan.affine).all():
        raise Failure("an affine that is not finite")
    if scan.modality not in MODALITIES:
        raise Failure("an unknown modality")
    for value in scan.metadata.values():
        check_reason(str(value), Path("/nowhere"))


def check_reason(reason: str, folder: Path) -> None:
    told = [*SECRETS, str(folder), "IM00", "scan.n", "scan.m", "source.tar"]
    if hit := [word for word in told if word in reason]:
        raise Failure(f"a reason that tells {hit}: {reason}")
    if "MemoryError" in reason:
        raise Failure(f"memory was asked for that no scan of this size needs: {reason}")
    if len(reason) > 300 or "\n" in reason:
        raise Failure(f"a reason of {len(reason)} letters: {reason[:300]}")


def check_log(log: str, *, outcome: str) -> None:
    """What libraries print to stderr names nobody, and tells of no damage to a scan delivered."""
    told = [*SECRETS, "scan.n", "scan.m"]
    if hit := [word for word in told if word in log]:
        raise Failure(f"{hit} on stderr")
    if not outcome.startswith("0 scans") and (hit := [word for word in DAMAGE if word in log]):
        raise Failure(f"{hit} on stderr, and yet {outcome}")
