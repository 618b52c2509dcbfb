"""Follows runs that are going on: a server on this machine alone, which the page asks for what is new."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from drivetrain.record import Reading, names_of
from drivetrain_plugins.report.content import content
from drivetrain_plugins.report.html import page


class Followed:
    """Runs whose records are read on as they grow.

    Args:
        readings: of their records.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings
        self._lock = threading.Lock()
        self._content: dict[str, Any] | None = None

    def content(self) -> dict[str, Any]:
        """What the page shows now."""
        with self._lock:
            grown = [reading.go_on() for reading in self._readings]
            if any(grown) or self._content is None:
                self._content = content(names_of([reading.run for reading in self._readings]), live=True)
            return self._content


class _Handler(BaseHTTPRequestHandler):
    followed: Followed

    def do_GET(self) -> None:
        """The page, or its data where there are newer ones than those of `?after=`."""
        asked = urlsplit(self.path)
        if not self._is_local():
            self.send_error(HTTPStatus.FORBIDDEN)
        elif asked.path == "/":
            self._answer("text/html; charset=utf-8", page(self.followed.content()))
        elif asked.path == "/data":
            found = self.followed.content()
            after = parse_qs(asked.query).get("after", ["0"])[0]
            if str(found["made"]) == after:
                self.send_response(HTTPStatus.NO_CONTENT)
                self.end_headers()
            else:
                self._answer("application/json", json.dumps(found, allow_nan=False))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _is_local(self) -> bool:
        """A page of a stranger's, whose name was made to lead here, is not answered."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        return host in ("127.0.0.1", "localhost")

    def _answer(self, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed."""


def serve(readings: Sequence[Reading], port: int, tell: Callable[[str], object]) -> None:
    """Serves the page until it is interrupted.

    Args:
        readings: of the runs' records.
        port: on 127.0.0.1; 0 for any that is free.
        tell: is given the page's address.

    Raises:
        OSError: the port is taken.
    """
    handler = type("Handler", (_Handler,), {"followed": Followed(readings)})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        tell(f"http://127.0.0.1:{server.server_address[1]}/")
        server.serve_forever()
