"""From a place or a name to a verified artefact on this machine, and what was proven of it."""

from collections.abc import Callable
from pathlib import Path

import torch

from foundation.artefact.finding import find_backbone
from foundation.artefact.head import HeadSettings
from foundation.artefact.layout import BackboneError
from foundation.artefact.reading import Artefact, read_artefact
from foundation.artefact.report import LoadReport


def load_artefact(
    where: str | Path, *, device: str, say: Callable[[str], None] | None
) -> tuple[Artefact, LoadReport]:
    """Find and check an artefact; its networks stay on the CPU.

    Args:
        where: A folder, an archive, ``hf://org/name@revision``, a URL, or a name of the index.
        device: Where the network will live; that it is there is checked first.
        say: Told the load report.

    Raises:
        BackboneError: It is missing, damaged, newer, or not what it says it is; or no such device.
    """
    _check_device(device)
    found = find_backbone(where, say=say or _quiet)
    artefact = read_artefact(found.folder)
    if found.digest not in (None, artefact.digest):
        raise BackboneError(
            f"{where}: the index says digest {found.digest[:16]}, the backbone there has "
            f"{artefact.digest[:16]}; it is another one, or the index is out of date"
        )
    report = LoadReport(
        where=str(where),
        folder=found.folder,
        came=found.came,
        digest=artefact.digest,
        version=artefact.version,
        vit_config=artefact.vit_config,
        num_tensors=artefact.num_tensors,
        num_parameters=sum(each.numel() for each in artefact.vit.state_dict().values()),
        golden_error=artefact.golden_error,
        preprocessing=artefact.preprocessing,
        predicts=predicts_in_words(artefact.tuned.settings) if artefact.tuned else None,
    )
    if say is not None:
        say(str(report))
    return artefact, report


def predicts_in_words(settings: HeadSettings) -> str:
    """What the head of a fine-tuned model is for."""
    target = settings.target
    names = ", ".join(target.classes or target.outputs)
    return f"fine-tuned for {target.task}: {target.kind} ({names}); load_model applies its head"


def _quiet(_line: str) -> None:
    pass


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    # torch tells of a device that is not there in three types; the first sentence says enough.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise BackboneError(f"device {device!r} cannot be used ({reason})") from None
