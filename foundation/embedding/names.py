"""What rows are called: places below the folder that was given, or keyed pseudonyms.

A PatientID of a DICOM header tells which series are of one subject; it is never written.
"""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from foundation.embedding.inputs import Item, JobError
from shards.pseudonym import pseudonym


def by_place(items: Sequence[Item]) -> tuple[Item, ...]:
    """Subjects of DICOM series named by the folder that their scans share.

    Where that folder is another subject's too, by the name of the first scan.

    Raises:
        JobError: Two scans have one name.
    """
    _check_unique(items)
    names: dict[str, list[str]] = {}
    for item in items:
        if item.patient:
            names.setdefault(item.patient, []).append(item.name)
    folders = {patient: _shared_folder(group) for patient, group in names.items()}
    counts = Counter(folders.values())
    label = {
        patient: folder if folder and counts[folder] == 1 else names[patient][0]
        for patient, folder in folders.items()
    }
    return tuple(
        replace(item, subject=label[item.patient]) if item.patient else item for item in items
    )


def by_key(items: Sequence[Item], *, key: bytes, namespace: str) -> tuple[Item, ...]:
    """Pseudonyms, in their own order; subjects' are the shards' for a source's ``namespace``.

    Raises:
        JobError: Two scans have one name.
    """
    _check_unique(items)
    named = [
        replace(
            item,
            name=pseudonym(key, f"scan {namespace}", item.name),
            subject=pseudonym(key, namespace, item.patient or item.subject),
        )
        for item in items
    ]
    # The order of an archive would tell who is who.
    return tuple(sorted(named, key=lambda item: item.name))


def _shared_folder(names: Sequence[str]) -> str:
    return posixpath.commonpath([posixpath.dirname(name) for name in names])


def _check_unique(items: Sequence[Item]) -> None:
    counts = Counter(item.name for item in items)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise JobError(f"{twice} stands {counts[twice]} times; each scan has one row")
