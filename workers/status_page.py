"""The status page, which a node's HTTP port and the discovery server show at `/`: one static file.

It holds no data: it asks `status.json` beside it, and shows what `kind` of server answers. The policy that goes with it
lets a browser run this very script and style, and ask the server that the page is from; nothing else. Trusted types are
required and none is allowed, so that text which is given to it can never become markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

FILE: Final = Path(__file__).with_name("status_page.html")
_POLICY: Final = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class StatusPage(NamedTuple):
    """The page in UTF-8, and the headers that it must be sent with."""

    body: bytes
    headers: Mapping[str, str]


@cache
def status_page() -> StatusPage:
    """The page, which is read when somebody first asks for it. Raises OSError: the installation lacks it."""
    body = FILE.read_bytes()
    policy = _POLICY.format(script=_digest(body, b"script"), style=_digest(body, b"style"))
    return StatusPage(body, {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})


def _digest(body: bytes, tag: bytes) -> str:
    """What a policy calls the one inline element of this name."""
    (text,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
