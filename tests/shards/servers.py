"""Servers on loopback for tests: web servers with and without ranges, and an S3 endpoint."""

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

HOST = "127.0.0.1"


class WebServer:
    """Serves a folder and counts what it sends.

    Attributes:
        url: Of the folder.
        sent_bytes, whole: Per file: bytes sent, and answers that were the whole file.
        fail: Called with each path before it is served; a status other than 0 is the answer.
        encoding: Said of every file, as servers do of what they take for packed pages.
    """

    def __init__(self, folder: Path, *, ranges: bool) -> None:
        self.folder, self.ranges = folder, ranges
        self.sent_bytes: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.fail: Callable[[str], int] = lambda _path: 0
        self.encoding = ""
        self.lock = threading.Lock()
        server = self

        class Handler(_Handler):
            site = server

        self.http = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self.http.server_port}"


class _Handler(BaseHTTPRequestHandler):
    site: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        name = unquote(self.path).lstrip("/")
        path = self.site.folder / name
        if status := self.site.fail(name):
            self._send(status, b"no", body=body)
        elif path.is_dir():
            self._send(200, _listing(path), body=body, kind="text/html")
        elif path.is_file():
            self._file(name, path, body=body)
        else:
            self._send(404, b"none", body=body)

    def _file(self, name: str, path: Path, *, body: bool) -> None:
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, headers = 200, {"ETag": f'"{path.stat().st_mtime_ns}"'}
        if asked and self.site.ranges:
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            status = 206 if first < len(content) else 416
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        if self.site.encoding:
            headers["Content-Encoding"] = self.site.encoding
        if body:
            with self.site.lock:
                self.site.sent_bytes[name] += len(content)
                self.site.whole[name] += status == 200
        self._send(status, content, body=body, headers=headers)

    def _send(
        self,
        status: int,
        content: bytes,
        *,
        body: bool,
        kind: str = "application/octet-stream",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _listing(folder: Path) -> bytes:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    links = "".join(f'<a href="{quote(name)}">{escape(name)}</a>\n' for name in ["../", *names])
    return f'<html><a href="?C=N;O=D">Name</a>{links}</html>'.encode()


@contextmanager
def web_server(folder: Path, *, ranges: bool = True) -> Iterator[WebServer]:
    """A folder behind ``http://``, until the end of the block."""
    server = WebServer(folder, ranges=ranges)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


@contextmanager
def s3_server(bucket: str) -> Iterator[dict[str, str]]:
    """An S3 endpoint with an empty bucket; yields the environment that leads to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it prints every request
    server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield environment
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        server.stop()
