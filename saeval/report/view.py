"""Shows a run's HTML report from disk, or serves it on this machine under an address with a secret token."""

from __future__ import annotations

import hmac
import html
import secrets
from collections.abc import Sequence
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from saeval._util import InputError, replacing, write_atomic
from saeval.report.html.pages import policy

_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the token is part of the address
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def page(run_dir: Path) -> Path:
    """Return the first page of a run's report.

    Raises:
        InputError: If there is none.
    """
    index = run_dir / "report" / "index.html"
    if index.is_symlink() or index.parent.is_symlink():
        raise InputError(f"{index}: is a symbolic link, which does not belong in a run directory; remove it")
    if not index.is_file():
        raise InputError(f"{run_dir}: has no report/index.html; `saeval report {run_dir}` writes it")
    return index


def bundle(run_dir: Path, file: Path) -> None:
    """Write a run's report as one file: a page that opens as it is, or a ZIP file of the folder.

    Args:
        run_dir: The run.
        file: `.html` for a page with all others and their data in it; `.zip` for the folder, to unpack.

    Raises:
        InputError: If there is no report, the name ends otherwise, or the file cannot be written.
    """
    if file.suffix not in (".html", ".zip"):
        raise InputError(f"{file}: a bundle is a page or a ZIP file; give it a name that ends in .html or .zip")
    index = page(run_dir)
    files = [p for p in sorted(index.parent.rglob("*")) if p.is_file() and not p.is_symlink()]
    files = [p for p in files if not p.name.startswith(".")]
    if file.suffix == ".html":
        write_atomic(file, _single_page(_own(index, run_dir), index, files))
        return
    import zipfile

    with replacing(file) as place, zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as packed:
        for found in files:
            packed.write(found, Path(file.stem) / found.relative_to(index.parent))


def _single_page(first: str, index: Path, files: Sequence[Path]) -> str:
    """Return the first page with the other pages and their data in it."""
    from saeval.report.html.text import packed, script_json

    held = {}
    for file in files:
        if file != index and file.suffix in _TYPES:
            text = file.read_text(encoding="utf-8")
            held[file.relative_to(index.parent).as_posix()] = packed(_body(text) if file.suffix == ".html" else text)
    start, script, end = first.rpartition("<script>")
    return f'{start}<script type="application/json" id="bundle">{script_json(held)}</script>\n{script}{end}'


def _body(text: str) -> str:
    """Return what a page shows, without the script that all pages share."""
    return text[text.index("<body>") + len("<body>") : text.rindex("<script>")]


def _own(index: Path, run_dir: Path) -> str:
    """Return the first page, which has to be of this version, because only its scripts are allowed to run."""
    text = index.read_text(encoding="utf-8", errors="replace")
    if policy() not in html.unescape(text):
        raise InputError(
            f"{index}: was written by another version of saeval; `saeval report {run_dir}` writes it again"
        )
    return text


class ReportServer(ThreadingHTTPServer):
    """Serves the pages of one report on 127.0.0.1, to clients that know its token.

    The token is the first part of every path, so other users of the machine and pages of other sites, which can
    reach the port, cannot read anything. Only requests to this host and port are answered, so a site that rebinds
    its name to 127.0.0.1 gets nothing either.

    Args:
        run_dir: The run.
        port: Port; 0 for one that is free.

    Raises:
        InputError: If there is no report, it is of another version, or the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, run_dir: Path, port: int = 0):
        index = page(run_dir)
        _own(index, run_dir)
        self.folder = index.parent.resolve()
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise InputError(
                f"port {port}: cannot be used ({error.strerror or error}); choose another --port"
            ) from None

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """Accepted values of a request's host header."""
        return f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"

    @property
    def url(self) -> str:
        """Address of the report, with the token in it."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/index.html"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: a browser that disconnects is not one."""

    def find(self, path: str) -> tuple[HTTPStatus, Path | None]:
        """Return the status and the file that answer a request for a path."""
        token, _, place = path.partition("?")[0].removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return HTTPStatus.FORBIDDEN, None
        file = self.folder / unquote(place)
        try:
            # Links, `..` and other paths out of the folder are not pages of the report.
            inside = file.resolve() == file and file.is_relative_to(self.folder)
            if inside and file.suffix in _TYPES and file.is_file():
                return HTTPStatus.OK, file
        except (OSError, ValueError):  # names that no file can have
            pass
        return HTTPStatus.NOT_FOUND, None


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = "saeval", ""
    timeout = 30  # seconds to wait for a silent client

    def do_GET(self) -> None:
        """Send a page."""
        status, content, kind = self._answer()
        self.send_response(status)
        # The server sends the pages' policy too, so it applies even to a foreign page.
        rules = {"Content-Security-Policy": f"{policy()}; frame-ancestors 'none'", **_HEADERS}
        for name, value in {**rules, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def _answer(self) -> tuple[HTTPStatus, bytes, str]:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            return HTTPStatus.FORBIDDEN, b"", "text/plain"
        status, file = self.server.find(self.path)
        try:
            return (status, file.read_bytes(), _TYPES[file.suffix]) if file else (status, b"", "text/plain")
        except OSError:
            return HTTPStatus.NOT_FOUND, b"", "text/plain"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: paths contain the token, and come from others."""
