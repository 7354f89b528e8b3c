"""A page in headless Chromium, spoken to over two pipes by its DevTools protocol: no driver, no network, no library."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next((found for found in map(shutil.which, NAMES) if found), None)
PATIENCE_SECONDS = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-dev-shm-usage",
)


class Chromium:
    """One browser with one page. ``events`` is what it has said since it was started."""

    def __init__(self, profile: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._number, self._rest, self._session = 0, b"", ""
        theirs, self._to = _far_pipe()
        self._from, theirs_out = _far_pipe()
        # The protocol is spoken over descriptors 3 and 4, which a shell can place.
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs} 4>&{theirs_out}', str(PROGRAM), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
            pass_fds=(theirs, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        os.close(theirs_out)

    def __enter__(self) -> Self:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # its own session: its helpers with it
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, page: Path, width: int, height: int = 800) -> None:
        """Show a file at a width in CSS pixels, and wait until it is there with its images."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def errors(self) -> list[str]:
        """What the console has as errors, and exceptions."""
        found = []
        for event in self.events:
            details = event["params"]
            is_error = details.get("type") == "error" or details.get("entry", {}).get("level") == "error"
            if event["method"] == "Runtime.exceptionThrown" or is_error:
                found.append(json.dumps(details))
        return found

    def requests(self) -> list[str]:
        """The addresses of everything that was asked for."""
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, **clip: float) -> None:
        """A PNG of the whole page, or of ``clip`` (x, y, width, height, scale)."""
        more = {"clip": clip} if clip else {}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, **more)
        path.write_bytes(base64.b64decode(found["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            pass
        assert "error" not in answer, f"{method}: {answer.get('error')}"
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._from, 1 << 16) if ready else b""
            assert part, "Chromium said nothing more" if ready else f"no word of Chromium in {PATIENCE_SECONDS:.0f} s"
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


def _far_pipe() -> tuple[int, int]:
    """A pipe whose descriptors are none of those that the shell places."""
    near = os.pipe()
    far = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in near)
    for end in near:
        os.close(end)
    return far[0], far[1]
