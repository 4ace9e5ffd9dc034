"""Keyed pseudonyms: the same subject has the same name in shards, features and predictions.

The key never leaves its file; without it a pseudonym cannot be traced or made again.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

KEY_BYTES = 32


def load_key(path: str | Path) -> bytes:
    """The secret key of this installation; created, readable by its owner alone, if absent.

    Raises:
        ValueError: The file holds something else.
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
    return key


def pseudonym(key: bytes, namespace: str, subject: str) -> str:
    """16 hex digits for ``subject`` of the cohort or source ``namespace``."""
    text = f"{namespace}\0{subject}".encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:16]


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
