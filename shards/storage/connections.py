"""Connections to what is behind a URL, as fsspec makes them: one per process, made when needed."""

import logging
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 20
READ_TIMEOUT_S = 60


def is_web(url: str) -> bool:
    """Whether it is a web server's, which can only be read."""
    return urlsplit(url).scheme in ("http", "https")


_open: dict[tuple[int, str], tuple[Any, str]] = {}


def connection(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it.

    A process has its own: fsspec's live in a thread that a fork leaves behind.
    """
    key = (os.getpid(), url)
    if key not in _open:
        import fsspec

        # gcsfs logs a traceback for what is then raised; without a handler Python would print it.
        for library in ("fsspec", "gcsfs", "s3fs"):
            logging.getLogger(library).addHandler(logging.NullHandler())
        protocol = urlsplit(url).scheme
        options = _web_options(protocol) if is_web(url) else {}
        # Listings are asked for anew: another process may have written.
        _open[key] = fsspec.core.url_to_fs(
            url, skip_instance_cache=True, use_listings_cache=False, **options
        )
    return _open[key]


def _web_options(protocol: str) -> Mapping[str, Any]:
    """No limit on a whole transfer, and bytes as they lie on the server (``.nii.gz`` stays so)."""
    import aiohttp
    import fsspec

    if "client_kwargs" in fsspec.config.conf.get(protocol, {}):
        return {}
    return {
        "client_kwargs": {
            "timeout": aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
            ),
            "trust_env": True,
            "auto_decompress": False,
            "headers": {"Accept-Encoding": "identity"},
        }
    }
