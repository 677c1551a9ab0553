"""Headless Chromium for tests, by its DevTools protocol over a pipe: no driver, no port, no download.

https://chromedevtools.github.io/devtools-protocol/ names methods and events. Over `--remote-debugging-pipe` they are
JSON texts that end with a zero byte, to the browser on file descriptor 3 and from it on 4.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0
"""Seconds for any answer; a machine may be busy."""


def installed() -> str | None:
    """Where Chromium is; None where it is not."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A browser with one page. Use it as a context manager.

    Attributes:
        errors: what the page told the console as an error, and exceptions that nobody caught.
        requests: addresses that it asked for; not those that are their own content (data:).
    """

    def __init__(self, program: str) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [
            program,
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",  # which needs a user that is not root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]
        places = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", places, *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._number, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def open(self, path: Path, *, drawn: bool = True) -> None:
        """Show a file, with nothing remembered of another; by default until its pictures are drawn."""
        self.errors.clear()
        self.requests.clear()
        told = self.call("Page.navigate", url=path.resolve().as_uri())
        assert "errorText" not in told, f"{path}: {told['errorText']}"
        if drawn:
            self.wait("document.documentElement.dataset.drawn === 'true'")

    def look(self, *, width: int = 1200, height: int = 900, dark: bool = False, print: bool = False) -> None:
        """As whom the page is shown to: a window of so many pixels, who likes it dark, or a printer."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if print else "", features=[scheme])

    def value(self, expression: str) -> Any:
        """A JavaScript expression's value, awaited where it is a promise."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise AssertionError(f"{expression}: {told['exceptionDetails']}")
        return told["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true, also over a reload."""
        self._until(lambda: self._perhaps(expression), expression)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key, by its name and Windows' number."""
        same: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        self.call("Input.dispatchKeyEvent", type="keyUp", **same)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(told["data"]))

    def pdf(self) -> bytes:
        """The page as a printer gets it, on A4."""
        told = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)
        return base64.b64decode(told["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer; events are noted meanwhile."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            told = self._next(until, method)
            if told.get("id") == self._number:
                if "error" in told:
                    raise AssertionError(f"{method}: {told['error']}")
                return dict(told["result"])
            self._note(told)

    def _perhaps(self, expression: str) -> bool:
        try:
            return bool(self.value(expression))
        except AssertionError:  # the page is being replaced
            return False

    def _until(self, done: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < until, f"after {PATIENCE:g} s not yet: {what}; {self.errors}"
            time.sleep(0.05)

    def _next(self, until: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"Chromium has not answered {what} in {PATIENCE:g} s"
            read = os.read(self._in, 1 << 20)
            assert read, f"Chromium ended at {what}"
            self._rest += read
        first, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(first))

    def _note(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            address = told["request"]["url"]
            self.requests += [] if address.startswith("data:") else [address]
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(told["entry"]["text"])
