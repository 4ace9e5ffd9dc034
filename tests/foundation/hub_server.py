"""As much of the Hugging Face hub as its client needs to publish a model and fetch it again."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

HOST = "127.0.0.1"
LARGE = ".safetensors"


@dataclass
class Repository:
    """Its commits, the files of each, and which commit a branch or tag names."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str, files: dict[str, bytes]) -> str:
        before = self.commits.get(self.refs.get(revision, ""), {})
        after = {**before, **files}
        oid = hashlib.sha1(repr(sorted(after.items())).encode()).hexdigest()
        self.commits[oid] = after
        self.refs[revision] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class HubServer:
    """Repositories by name, large files by digest, and every request that came.

    Attributes:
        url: For ``HF_ENDPOINT``.
        requests: ``METHOD path``, without the query.
        tokens: Sent with them.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        server = self

        class Handler(_Handler):
            hub = server

        self.http = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""

    def do_GET(self) -> None:
        self._begin()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+))?", self.place):
            self._info(found[1], found[3] or "main")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self.place):
            self._tree(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.place):
            self._file(found[1], found[2], found[3])
        else:
            self._json({"error": "unknown"}, status=404)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self._begin()
        oid = self.place.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._json({})

    def do_POST(self) -> None:
        body = self._begin()
        if self.place == "/api/repos/create":
            self._create(json.loads(body))
        elif self.place == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", self.place):
            files = json.loads(body)["files"]
            self._json({"files": [self._mode(each["path"]) for each in files]})
        elif self.place.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self._json({"transfer": "basic", "objects": [self._place_of(one) for one in objects]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", self.place):
            repository = self.hub.repositories[found[1]]
            repository.refs.setdefault(found[2], repository.refs["main"])
            self._json({})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", self.place):
            self._commit(found[1], found[2], body)
        else:
            self._json({"error": "unknown"}, status=404)

    def _begin(self) -> bytes:
        self.place = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {self.place}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _create(self, about: dict[str, Any]) -> None:
        name = f"{about['organization']}/{about['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            self._json({"error": "You already created this repo", "url": url}, status=409)
            return
        private = about.get("private") or about.get("visibility") == "private"
        repository = Repository(private=bool(private))
        repository.commit("main", {".gitattributes": b""})
        self.hub.repositories[name] = repository
        self._json({"url": url, "name": name, "id": name})

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _place_of(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.hub.large:
            return one
        return {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        files = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        oid = self.hub.repositories[name].commit(revision, files)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None})

    def _info(self, name: str, revision: str) -> None:
        if (oid := self._resolved(name, revision)) is not None:
            self._json({"id": name, "sha": oid, "siblings": [], "tags": [], "private": False})

    def _tree(self, name: str, revision: str) -> None:
        if (oid := self._resolved(name, revision)) is None:
            return
        entries = []
        for path, content in self.hub.repositories[name].commits[oid].items():
            sha = hashlib.sha256(content).hexdigest()
            entry = {"type": "file", "path": path, "size": len(content), "oid": sha[:40]}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def _file(self, name: str, revision: str, path: str) -> None:
        if (oid := self._resolved(name, revision)) is None:
            return
        files = self.hub.repositories[name].commits[oid]
        if path not in files:
            self._json({"error": "Entry not found"}, status=404, code="EntryNotFound", commit=oid)
            return
        content = files[path]
        sha = hashlib.sha256(content).hexdigest()
        self._send(200, content, commit=oid, etag=sha if path.endswith(LARGE) else sha[:40])

    def _resolved(self, name: str, revision: str) -> str | None:
        repository = self.hub.repositories.get(name)
        oid = repository.resolve(revision) if repository else None
        if oid is None:
            code = "RevisionNotFound" if repository else "RepoNotFound"
            self._json({"error": code}, status=404, code=code)
        return oid

    def _json(self, content: Any, *, status: int = 200, code: str = "", commit: str = "") -> None:
        self._send(status, json.dumps(content).encode(), code=code, commit=commit)

    def _send(
        self, status: int, content: bytes, *, code: str = "", commit: str = "", etag: str = ""
    ) -> None:
        self.send_response(status)
        headers = {"X-Error-Code": code, "X-Repo-Commit": commit, "ETag": etag and f'"{etag}"'}
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
