"""A hub on loopback with the few endpoints that sending and fetching a dataset repository take."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


@dataclass
class FakeHub:
    """What the hub holds, and how it was asked.

    Attributes:
        files: Content of every file, by `owner/name/path`.
        created: Bodies of requests to make a repository.
        tokens: Values of the Authorization header, in order.
        paths: Method and path of every request.
        forbid: Whether every request is refused.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    forbid: bool = False
    url: str = ""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run the hub."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, value):
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def asked(self):
            hub.tokens.append(self.headers.get("Authorization"))
            path = unquote(urlparse(self.path).path)
            hub.paths.append(f"{self.command} {path}")
            return path

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.asked()
            if hub.forbid:
                return self.answer(401, b"{}")
            repo, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
            name = f"{repo}/{rest.partition('/')[2]}"
            if name not in hub.files:
                return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
            body = hub.files[name]
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.answer(200, body, ETag=etag, X_Repo_Commit="a" * 40, Content_Type="application/octet-stream")

        def do_POST(self):
            path = self.asked()
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.forbid:
                return self.answer(403, b"{}")
            if path == "/api/repos/create":
                hub.created.append(json.loads(body))
                made = hub.created[-1]
                return self.json({"url": f"{hub.url}/datasets/{made.get('organization', 'me')}/{made['name']}"})
            if path == "/api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            repo = "/".join(path.split("/")[3:5])
            if "/preupload/" in path:
                files = json.loads(body)["files"]
                return self.json(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            if "/commit/" in path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[f"{repo}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
                return self.json({"commitUrl": f"{hub.url}/datasets/{repo}/commit/a", "commitOid": "a" * 40})
            return self.answer(404, b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
