"""A Hugging Face hub on this machine that serves folders as repositories."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "c" * 40


@contextmanager
def tiny_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `root/owner/name` as repositories while the context lasts.

    Yields:
        The hub's address, and a list that fills with the files that are downloaded from it.
    """
    downloaded: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            api = re.fullmatch(r"/api/models/([^/]+/[^/?]+)(?:/(tree|revision)/([^/?]+))?(?:\?.*)?", self.path)
            if api:
                self.describe(api[1], api[2], api[3] or "main")
            elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
                self.serve(root / file[1] / file[3])
            else:
                self.answer(404, b"{}")

        def describe(self, repo: str, what: str | None, revision: str) -> None:
            folder = root / repo
            if not folder.is_dir():
                self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", COMMIT):
                self.answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
            else:
                files = sorted(f for f in folder.rglob("*") if f.is_file())
                names = [f.relative_to(folder).as_posix() for f in files]
                tree = [
                    {"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40}
                    for n, f in zip(names, files, strict=True)
                ]
                info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                self.answer(200, json.dumps(tree if what == "tree" else info).encode())

        def serve(self, file: Path) -> None:
            if not file.is_file():
                self.answer(404, b"{}", **{"X-Error-Code": "EntryNotFound"})
                return
            content = file.read_bytes()
            if self.command == "GET":
                downloaded.append(file.relative_to(root).as_posix())
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, **{"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def answer(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloaded
    finally:
        server.shutdown()
        thread.join()
