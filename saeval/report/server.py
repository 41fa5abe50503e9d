"""Serves pages on 127.0.0.1 under an address with a secret token."""

from __future__ import annotations

import hmac
import secrets
from abc import ABC, abstractmethod
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from saeval._util import InputError
from saeval.report.html.pages import policy

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the token is part of the address
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HTML, SCRIPT = "text/html; charset=utf-8", "text/javascript; charset=utf-8"
"""Content types."""


class Answer(NamedTuple):
    """An answer to a request.

    Attributes:
        status: The HTTP status.
        content: The body.
        kind: The content type.
    """

    status: HTTPStatus
    content: bytes = b""
    kind: str = "text/plain"


class LocalServer(ThreadingHTTPServer, ABC):
    """Answers requests on 127.0.0.1 from clients that know its token.

    The token is the first part of every path. Other users of the machine and pages of other sites can reach the port,
    but cannot read anything without it. Only requests with this host and port are answered, so a site that rebinds its
    name to 127.0.0.1 cannot read anything either.

    Args:
        port: Port; 0 for a free one.
        first: Page to which the address leads.

    Raises:
        InputError: If the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, port: int, first: str):
        self.token = secrets.token_urlsafe(24)
        self._first = first
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
        """Address of the first page, including the token."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/{self._first}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors, which occur whenever a browser disconnects."""

    def answer(self, path: str) -> Answer:
        """Return the answer to a request for a path, with the token."""
        address, _, query = path.partition("?")
        token, _, place = address.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return Answer(HTTPStatus.FORBIDDEN)
        return self.content(place, query)

    @abstractmethod
    def content(self, place: str, query: str) -> Answer:
        """Return the answer to a client that knows the token.

        Args:
            place: The path after the token, percent-encoded.
            query: The part after the `?`, percent-encoded.
        """


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    server_version, sys_version = "saeval", ""
    timeout = 30  # seconds to wait for a silent client

    def do_GET(self) -> None:
        """Send a page."""
        status, content, kind = self._answer()
        self.send_response(status)
        # The server also sends the pages' policy, so that it applies even to a foreign page.
        rules = {"Content-Security-Policy": f"{policy()}; frame-ancestors 'none'", **_HEADERS}
        for name, value in {**rules, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def _answer(self) -> Answer:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            return Answer(HTTPStatus.FORBIDDEN)
        return self.server.answer(self.path)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because paths contain the token and untrusted text."""
