"""A browser without a window, for tests of the page: Chromium, by its own protocol over two pipes.

It is not installed with what the tests need: where there is none, `needs_browser` skips, and says so.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from support.waiting import wait_until

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S: Final = 30.0
FLAGS: Final = (
    *("--headless", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-crash-reporter", "--disable-breakpad", "--no-first-run", "--no-default-browser-check", "--no-zygote"),
    *("--hide-scrollbars", "--password-store=basic", "--renderer-process-limit=1", "--in-process-gpu"),
)
_FOUND: Final = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(_FOUND is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")


class Tab:
    """One page of a browser. `errors` is what its console has of errors, of scripts, of loading and of policies."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.errors: list[str] = []
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.tabs[self._session] = self
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, session=self._session, **params)

    def show(self, url: str, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a page into a window of this size."""
        self.look(width=width, height=height, dark=dark)
        self.call("Page.navigate", url=url)

    def look(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Change the size of the window, and what its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, expression: str) -> Any:
        """What an expression comes to in the page, once that is settled."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until it comes to something true, and return that."""
        shown = "document.body ? document.body.innerText : ''"
        return wait_until(lambda: self.value(expression), what=lambda: f"{expression}; there is {self.value(shown)}")

    def press(self, key: str, code: int) -> None:
        """A key, down and up; `code` is its number on Windows, which Chromium goes by. Enter brings its character."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def save(self, path: Path) -> None:
        """A picture of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


class Browser:
    """A running browser, for one thread."""

    def __init__(self, profile: Path) -> None:
        assert _FOUND is not None
        flags = [*FLAGS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        self._numbers = itertools.count(1)
        self._text = b""
        self.tabs: dict[str, Tab] = {}
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        log = profile.with_suffix(".log")
        actions = [
            (os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, 2, 1),
            (os.POSIX_SPAWN_DUP2, theirs_in, 3),
            (os.POSIX_SPAWN_DUP2, theirs_out, 4),
        ]
        environ = {**os.environ, "HOME": str(profile), "XDG_CONFIG_HOME": str(profile), "XDG_CACHE_HOME": str(profile)}
        command = [_FOUND, *flags, "about:blank"]
        self._pid = os.posix_spawn(_FOUND, command, environ, file_actions=actions, setsid=True)
        os.close(theirs_in)
        os.close(theirs_out)

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """What the browser answers. Raises AssertionError: it has not answered in time, or is gone, or refuses."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while (answer := self._message()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._text:
            left_s = deadline - time.monotonic()
            assert left_s > 0, "the browser does not answer"
            if select.select([self._in], [], [], left_s)[0]:
                chunk = os.read(self._in, 1 << 20)
                assert chunk, "the browser is gone"
                self._text += chunk
        message, self._text = self._text.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        tab, params = self.tabs.get(event.get("sessionId", "")), event.get("params", {})
        if tab is None:
            return
        match event["method"]:
            case "Runtime.exceptionThrown":
                tab.errors.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                tab.errors.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                tab.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def close(self) -> None:
        """End it with all its processes, and wait for that."""
        os.close(self._out)
        os.close(self._in)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser for the length of a block; `profile` is a folder for what it keeps."""
    it = Browser(profile)
    try:
        yield it
    finally:
        it.close()
