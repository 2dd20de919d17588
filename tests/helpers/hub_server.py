"""A Hub that has what publishing and reading a dataset asks of one: repositories of files, and commits.

How: a threaded HTTP server in the test's own process, which keeps a dictionary of files for each dataset. It asks for
every file in the commit itself (the Hub's `regular` upload mode), so there is no storage beside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.helpers.serving import serving

TOKEN = "hf_test_very_secret"
COMMIT = "c" * 40


@dataclass
class HubDouble:
    """The Hub's state.

    Args:
        datasets: For each dataset its files.
        commits: The operations of each commit.
        created: What was asked for when a dataset was made.
    """

    datasets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: list[list[dict[str, Any]]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


@contextmanager
def hub_server() -> Iterator[HubDouble]:
    """Serves until it is left."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.double = double = HubDouble()
    with serving(server) as double.url:
        yield double


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    double: HubDouble


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name for it
        """Says nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        double, path = self.server.double, unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            double.created.append(asked)
            double.datasets.setdefault(name, {".gitattributes": b""})
            return self._send(200, {"url": f"{double.url}/datasets/{name}"})
        name, what = self._dataset(path)
        files = double.datasets[name]
        if what.startswith("preupload/"):
            found = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return self._send(200, {"files": found})
        if what.startswith("paths-info/"):
            asked = json.loads(body)["paths"]
            return self._send(200, [entry for entry in self._tree(files) if entry["path"] in asked])
        assert what.startswith("commit/")
        operations = [json.loads(line) for line in body.splitlines()]
        double.commits.append(operations)
        for operation in operations:
            if operation["key"] == "file":
                files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
        return self._send(200, {"commitUrl": f"{double.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_GET(self) -> None:
        self._get(with_body=True)

    def _get(self, *, with_body: bool) -> None:
        double, path = self.server.double, unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if path == "/api/whoami-v2":
            return self._send(200, {"type": "user", "name": "me", "auth": {}})
        name, what = self._dataset(path)
        if name not in double.datasets:
            return self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        files = double.datasets[name]
        if what.startswith("resolve/"):
            content = files.get(what.split("/", 2)[2])
            if content is None:
                return self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            digest = hashlib.sha1(content).hexdigest()
            return self._send(200, content, with_body=with_body, X_Repo_Commit=COMMIT, ETag=f'"{digest}"')
        if what.startswith("tree/"):
            folder = what.split("/", 2)[2] if what.count("/") > 1 else ""
            tree = [entry for entry in self._tree(files) if not folder or entry["path"].startswith(f"{folder}/")]
            return self._send(200, tree)
        return self._send(200, {"id": name, "sha": COMMIT, "private": True, "siblings": [], "_id": "0"})

    def _dataset(self, path: str) -> tuple[str, str]:
        """Returns the dataset that a path is about, and what comes behind it."""
        _, _, rest = path.partition("datasets/")
        owner, name, *what = rest.split("/", 2)
        return f"{owner}/{name}", "".join(what)

    def _tree(self, files: dict[str, bytes]) -> list[dict[str, Any]]:
        """Returns files and folders as the Hub lists them."""
        folders = {path.rpartition("/")[0] for path in files if "/" in path}
        return [
            *({"type": "directory", "oid": "f" * 40, "size": 0, "path": folder} for folder in sorted(folders)),
            *(
                {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": path}
                for path, content in sorted(files.items())
            ),
        ]

    def _send(self, status: int, body: Any, *, with_body: bool = True, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if with_body:
            self.wfile.write(content)
