"""A real headless Chromium, spoken to through a pipe: what a page says, shows and asks the network for."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LIMIT = 120.0  # seconds, for what takes less than one


def find() -> str | None:
    """The browser's program; None where there is none."""
    return os.environ.get("CHROMIUM") or next(
        (found for name in NAMES if (found := shutil.which(name))), None
    )


class Browser:
    """One page in a browser of its own.

    Attributes:
        errors: what the page has complained of: exceptions, and errors in the console.
        requests: the addresses that it has asked for.
    """

    def __init__(self) -> None:
        program = find()
        assert program is not None
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()

        def connect() -> None:  # Chromium reads from 3 and writes to 4
            os.dup2(their_in, 103)
            os.dup2(their_out, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)
            for number in (3, 4):
                os.set_inheritable(number, True)

        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
        ]
        flags += ["--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={self._folder.name}"]
        self._process = subprocess.Popen(
            [program, *flags, "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(their_in)
        os.close(their_out)
        self._number, self._buffer = 0, b""
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(found["targetId"] for found in pages if found["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + LIMIT
        while True:
            answer = self._next(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0.0))
            if not ready:
                raise TimeoutError("The browser does not answer.")
            read = os.read(self._in, 1 << 20)
            if not read:
                raise RuntimeError("The browser has ended.")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
        elif event.get("method") == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.errors.append(" ".join(str(found.get("value")) for found in given["args"]))
        elif event.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.errors.append(given["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])

    def open(self, address: str, width: int = 1600, height: int = 1000, dark: bool = False) -> None:
        """Opens a page in a window of that size; a narrow one is a phone's."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        self.prefer(dark)
        self.errors.clear()
        self.requests.clear()
        self.call("Page.navigate", url=address)

    def prefer(self, dark: bool) -> None:
        """What the reader's system prefers."""
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def get(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + LIMIT
        while True:
            if found := self.get(f"(() => {{ try {{ return {expression}; }} catch {{ return null; }} }})()"):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} has not come true; {self.errors}")
            time.sleep(0.05)

    def point(self, selector: str, click: bool = False, x: float = 0.5, y: float = 0.5) -> None:
        """Moves the mouse over an element, and perhaps clicks."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.get(f"{element}.scrollIntoView({{block: 'center'}})")
        place = self.get(
            f"(({{x, y, width, height}}) => [x, y, width, height])({element}.getBoundingClientRect())"
        )
        at = {"x": place[0] + x * place[2], "y": place[1] + y * place[3]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Writes what is shown as PNG; or the whole page."""
        shot = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole)
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
