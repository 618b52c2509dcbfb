"""A hub on this machine: a real HTTP server on loopback that speaks the routes which huggingface_hub calls.

It keeps what a hub keeps: a commit is seen whole or not at all, a large file is taken only where its bytes have the
checksum that was announced, and what is there already is not asked for again. Faults are put into its way by route.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ROUTES = {
    "validate": r"/api/validate-yaml",
    "whoami": r"/api/whoami-v2",
    "create": r"/api/repos/create",
    "batch": r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "blob": r"/blob/(?P<oid>[0-9a-f]{64})",
    "verify": r"/verify/(?P<oid>[0-9a-f]{64})",
    "preupload": r"/api/models/(?P<name>[^/]+/[^/]+)/preupload/main",
    "commit": r"/api/models/(?P<name>[^/]+/[^/]+)/commit/main",
    "tree": r"/api/models/(?P<name>[^/]+/[^/]+)/tree/main",
    "info": r"/api/models/(?P<name>[^/]+/[^/]+)(/revision/main)?",
    "file": r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
}
LARGE = (".safetensors", ".bin")
_PATIENCE = 120.0  # seconds for which a request is held at most, so that no test hangs for ever


@dataclass
class Fault:
    """What goes wrong with requests of a route.

    Attributes:
        route: see `ROUTES`; "*" is any.
        status: to answer with.
        headers: of that answer.
        drop: close the connection in the midst of the body.
        stall: keep the request until `Hub.release` is called, and then close the connection.
        times: how many requests it meets.
        after: how many go through before.
    """

    route: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    stall: bool = False
    times: int = 10**9
    after: int = 0
    met: int = 0


@dataclass(frozen=True)
class Commit:
    """What a commit did: in which repository, its message, the paths it wrote and those it deleted."""

    repository: str
    message: str
    files: tuple[str, ...]
    deleted: tuple[str, ...]


class LocalHub(ThreadingHTTPServer):
    """Holds repositories in memory.

    Attributes:
        repositories: name -> path -> content.
        private: name -> whether it was made private.
        commits: in their order.
        requests: method, path, Authorization header and body of each request; of a large file no body.
        tokens: those that are let in; None lets everybody in.
        faults: see `Fault`.
        held: how many requests are being held by a fault.
        blobs_sent: checksums of large files, in the order in which they came.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[Commit] = []
        self.requests: list[tuple[str, str, str, bytes]] = []
        self.blobs: dict[str, bytes] = {}
        self.blobs_sent: list[str] = []
        self.tokens: set[str] | None = None
        self.faults: list[Fault] = []
        self.held = 0
        self.lock = threading.Lock()
        self._released = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def messages(self) -> list[str]:
        return [commit.message for commit in self.commits]

    def fail(self, route: str, status: int = 0, **how: Any) -> Fault:
        fault = Fault(route, status, **how)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No more faults; what is held is let go."""
        self.faults.clear()
        self.release()

    def release(self) -> None:
        self._released.set()

    def wait_held(self, count: int = 1) -> None:
        """Until so many requests are held."""
        end = time.monotonic() + _PATIENCE
        while self.held < count:
            assert time.monotonic() < end, "no request came"
            time.sleep(0.01)

    def fault_of(self, route: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.route in (route, "*"):
                    fault.met += 1
                    if fault.after < fault.met <= fault.after + fault.times:
                        return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of the server's trouble."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet, and not two of which the second waits for the first's receipt
    disable_nagle_algorithm = True
    server: LocalHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(sent)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def handle_all(self) -> None:
        hub = self.server
        path = urlsplit(self.path).path
        found = ((route, re.fullmatch(pattern, path)) for route, pattern in ROUTES.items())
        route, match = next(((route, match) for route, match in found if match), ("", None))
        if match is None:
            self.body()
            return self.answer({"error": f"no route {path}"}, 404)
        fault = hub.fault_of(route)
        if fault is not None and fault.drop:
            self.rfile.read(min(100, int(self.headers.get("Content-Length", 0))))
            return self.cut()
        body = self.body()
        header = self.headers.get("Authorization", "")
        with hub.lock:
            hub.requests.append((self.command, path, header, b"" if route == "blob" else body))
        if fault is not None and fault.stall:
            with hub.lock:
                hub.held += 1
            hub._released.wait(_PATIENCE)
            with hub.lock:
                hub.held -= 1
            return self.cut()
        if fault is not None:
            return self.answer({"error": "a fault of the test"}, fault.status, fault.headers)
        known = hub.tokens is None or header.removeprefix("Bearer ") in hub.tokens
        if not known and route not in ("blob", "validate", "file"):
            return self.answer({"error": "Invalid username or password."}, 401)
        with hub.lock:
            getattr(self, f"do_{route}")(body, **match.groupdict())

    def cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    # -- routes -------------------------------------------------------------------------------------------

    def do_validate(self, body: bytes) -> None:
        self.answer({"errors": [], "warnings": []})

    def do_whoami(self, body: bytes) -> None:
        self.answer({"type": "user", "name": "somebody", "orgs": []})

    def do_create(self, body: bytes) -> None:
        hub, asked = self.server, json.loads(body)
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        found = {"url": f"{hub.address}/{name}", "name": name, "id": name}
        if name in hub.repositories:
            return self.answer({**found, "error": "You already created this model repo"}, 409)
        if name.startswith("stranger/"):
            return self.answer({"error": "You don't have the rights to create a model there"}, 403)
        hub.repositories[name] = {".gitattributes": b""}
        hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.answer(found)

    def do_batch(self, body: bytes, name: str) -> None:
        hub = self.server
        objects = []
        for asked in json.loads(body)["objects"]:
            oid = asked["oid"]
            actions = {} if oid in hub.blobs else {
                "actions": {
                    "upload": {"href": f"{hub.address}/blob/{oid}"},
                    "verify": {"href": f"{hub.address}/verify/{oid}"},
                }
            }  # fmt: skip
            objects.append({"oid": oid, "size": asked["size"], **actions})
        self.answer({"transfer": "basic", "objects": objects})

    def do_blob(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer({"error": "the checksum is another"}, 400)
        self.server.blobs[oid] = body
        self.server.blobs_sent.append(oid)
        self.answer({})

    def do_verify(self, body: bytes, oid: str) -> None:
        there = len(self.server.blobs.get(oid, b"")) == json.loads(body)["size"]
        self.answer({}, 200 if there else 404)

    def known(self, name: str) -> dict[str, bytes] | None:
        files = self.server.repositories.get(name)
        if files is None:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return files

    def do_preupload(self, body: bytes, name: str) -> None:
        if (files := self.known(name)) is None:
            return
        modes = []
        for asked in json.loads(body)["files"]:
            path = asked["path"]
            large = path.endswith(LARGE)
            content = files.get(path)
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if large else _git_oid(content)
            mode = "lfs" if large else "regular"
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": modes})

    def do_commit(self, body: bytes, name: str) -> None:
        hub = self.server
        if (files := self.known(name)) is None:
            return
        new, message, written, deleted = dict(files), "", [], []
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "deletedFile":
                del new[value["path"]]
                deleted.append(value["path"])
            else:
                large = entry["key"] == "lfsFile"
                if large and value["oid"] not in hub.blobs:
                    return self.answer({"error": "the large file was not sent"}, 400)
                new[value["path"]] = hub.blobs[value["oid"]] if large else base64.b64decode(value["content"])
                written.append(value["path"])
        hub.repositories[name] = new
        hub.commits.append(Commit(name, message, tuple(sorted(written)), tuple(sorted(deleted))))
        oid = f"{len(hub.commits):040x}"
        url = f"{hub.address}/{name}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def do_info(self, body: bytes, name: str) -> None:
        if (files := self.known(name)) is None:
            return
        siblings = [{"rfilename": path} for path in files]
        self.answer({"id": name, "sha": f"{len(self.server.commits):040x}", "siblings": siblings})

    def do_tree(self, body: bytes, name: str) -> None:
        if (files := self.known(name)) is None:
            return
        self.answer(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
                for path, content in files.items()
            ]
        )

    def do_file(self, body: bytes, name: str, revision: str, path: str) -> None:
        content = self.server.repositories.get(name, {}).get(path)
        if content is None:
            return self.answer({"error": "no entry"}, 404, {"X-Error-Code": "EntryNotFound"})
        tag = hashlib.sha256(content).hexdigest()
        self.answer(content, 200, {"ETag": f'"{tag}"', "X-Repo-Commit": f"{len(self.server.commits):040x}"})

    do_GET = do_POST = do_PUT = do_HEAD = handle_all


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[LocalHub]:
    """A hub that answers."""
    hub = LocalHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.heal()
        hub.shutdown()
        hub.server_close()
        thread.join()
