"""What a node proves itself with to discovery: a line in a file that no other user may read.

It is the auth token that nodes and the discovery server share; for etcd a user and its password.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from embridge.workers.files import open_regular

MIN_TOKEN_BYTES: Final = 16
MAX_TOKEN_BYTES: Final = 512
MIN_LOGIN_BYTES: Final = 3


def read_token(path: str | Path) -> str:
    """The auth token in a file of this user, mode 0600 or stricter; white space around the token does not count.

    Raises:
        ValueError: the file is not there, other users may read it, or it holds no token. The text never shows the
            token.
    """
    return _read(path, "token", MIN_TOKEN_BYTES, f"make one: (umask 177; openssl rand -hex 32 > {path})")


def read_login(path: str | Path) -> str:
    """`user:password`, in a file as that of a token.

    Raises:
        ValueError: as `read_token`, or there is no colon, or nothing before it.
    """
    login = _read(path, "login", MIN_LOGIN_BYTES, "it is user:password")
    if login.find(":") < 1:
        raise ValueError(f"token file {path}: it has no user and password; for etcd it holds user:password")
    return login


def _read(path: str | Path, what: str, least: int, advice: str) -> str:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(MAX_TOKEN_BYTES + 3)
    except OSError as error:
        raise ValueError(f"token file {path}: {error.strerror}") from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o177:
        raise ValueError(
            f"token file {path}: mode {stat.S_IMODE(status.st_mode):o} of user {status.st_uid}; "
            f"it must be 600 and belong to user {os.geteuid()}: chmod 600 {path}"
        )
    token = raw.strip()
    if not least <= len(token) <= MAX_TOKEN_BYTES:
        raise ValueError(
            f"token file {path}: a {what} of {len(token)} bytes is outside {least} to {MAX_TOKEN_BYTES}; {advice}"
        )
    if not all(0x21 <= byte <= 0x7E for byte in token):
        raise ValueError(f"token file {path}: a {what} is one word of printable ASCII characters")
    return token.decode("ascii")
