"""A hub on this machine: a real HTTP server that speaks the routes which huggingface_hub calls."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest


class LocalHub(ThreadingHTTPServer):
    """Holds repositories in memory.

    Attributes:
        repositories: name -> path -> content.
        private: name -> whether it was made private.
        messages: of the commits, in their order.
        requests: method, path, Authorization header and body of each request.
        refuse: the status to answer every request with, or 0.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.requests: list[tuple[str, str, str, bytes]] = []
        self.blobs: dict[str, bytes] = {}
        self.refuse = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
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

    def answer(self, content: Any, status: int = 200) -> None:
        sent = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def handle_all(self) -> None:
        hub = self.server
        body = self.body()
        path = urlsplit(self.path).path
        hub.requests.append((self.command, path, self.headers.get("Authorization", ""), body))
        if hub.refuse:
            return self.answer({"error": "no"}, hub.refuse)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            return self.answer({"type": "user", "name": "somebody", "orgs": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**found, "actions": {"upload": {"href": f"{hub.address}/blob/{found['oid']}"}}}
                for found in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if path.startswith("/blob/"):
            hub.blobs[path.removeprefix("/blob/")] = body
            return self.answer({})
        parts = path.removeprefix("/api/models/").split("/")
        name = "/".join(parts[:2])
        if name not in hub.repositories:
            return self.answer({"error": "no such repository"}, 404)
        if parts[2:3] == ["preupload"]:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if parts[2:3] == ["commit"]:
            return self.commit(name, body)
        siblings = [{"rfilename": file} for file in hub.repositories[name]]
        return self.answer({"id": name, "sha": "0" * 40, "siblings": siblings})

    def create(self, asked: dict[str, Any]) -> None:
        hub = self.server
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        found = {"url": f"{hub.address}/{name}", "name": name, "id": name}
        if name in hub.repositories:
            return self.answer({**found, "error": "You already created this model repo"}, 409)
        hub.repositories[name] = {}
        hub.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return self.answer(found)

    def commit(self, name: str, body: bytes) -> None:
        hub = self.server
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                hub.repositories[name][value["path"]] = hub.blobs[value["oid"]]
        return self.answer(
            {
                "success": True,
                "commitOid": "1" * 40,
                "commitUrl": f"{hub.address}/{name}/commit/{'1' * 40}",
                "hookOutput": "",
            }
        )

    do_GET = do_POST = do_PUT = do_HEAD = handle_all


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    server = LocalHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
