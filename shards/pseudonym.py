"""Keyed pseudonyms: the same subject has the same name in shards, features and predictions.

The key never leaves its file; without it a pseudonym cannot be traced or made again.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

KEY_BYTES = 32
MAX_DAY_SHIFT = 3_652_425  # ten thousand years: no date can be told from a shifted one


def load_key(path: str | Path) -> bytes:
    """The secret key of this installation; created, readable by its owner alone, if absent.

    Raises:
        ValueError: The file holds something else, or others may read it.
    """
    path = Path(path)
    if not path.exists():
        _create(path)
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (UnicodeDecodeError, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path}: not a pseudonym key; expected {2 * KEY_BYTES} hex digits")
    if path.stat().st_mode & 0o077:
        raise ValueError(
            f"{path}: other users may read the pseudonym key; close it with chmod 600 {path}"
        )
    return key


def pseudonym(key: bytes, namespace: str, subject: str) -> str:
    """16 hex digits for ``subject`` of the cohort or source ``namespace``."""
    text = f"{namespace}\0{subject}".encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:16]


def derived_key(key: bytes, purpose: str) -> bytes:
    """A key for one purpose, to be handed to workers in place of the secret one."""
    return hmac.new(key, f"derived {purpose}".encode(), hashlib.sha256).digest()


def day_shift(key: bytes, subject: str) -> int:
    """Days to add to every date of a subject: differences stay true, the dates are gone."""
    found = hmac.new(key, f"visit day\0{subject}".encode(), hashlib.sha256).digest()
    return int.from_bytes(found[:8], "big") % MAX_DAY_SHIFT


def _create(path: Path) -> None:
    """Of two processes that come here at once, both then read the key of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
