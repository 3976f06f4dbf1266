"""Keys of nodes: the file with the secret key of a node, and its allow-list of the nodes that it talks with.

A key is 32 bytes, written in Z85 as 40 printable characters; the public key is computed from the secret one. A process
that holds a secret key counts as the node for which the public key stands.

The secret key file holds one line, `secret-key <40 characters>`, and belongs to its user alone. The allow-list has one
line a node:

    <address> <public key> [name]

An address is `host`, `host:port`, `[ipv6]:port`, or `-` for a node to which this one never connects first. A `#` begins
a comment before the first field or after the second; elsewhere it may be part of a key. A node with any listed key may
connect to this one. When this node connects, the other end must prove the key that stands beside its address, or beside
its host alone where no line has that port.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from embridge.workers.files import open_regular

log = logging.getLogger(__name__)

KEY_LENGTH: Final = 40  # characters of Z85 for 32 bytes
MAX_ALLOW_BYTES: Final = 1 << 20
NO_ADDRESS: Final = "-"
_SECRET_FIELD: Final = "secret-key"
_ENDPOINT: Final = re.compile(r"tcp://(.+)")
_HOST: Final = re.compile(r"[\w.-]+", re.ASCII)


class KeyFileError(ValueError):
    """A key file or an allow-list that cannot be used; the text names file and line, what was seen, and what to do."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A node's key; the secret half shows in no repr, and so in no log."""

    public: str
    secret: str = field(repr=False)


class Entry(NamedTuple):
    """One line of an allow-list; `port` 0 stands for every port of the host, an empty host for no address."""

    host: str
    port: int
    key: str
    name: str
    line: int

    @property
    def address(self) -> str:
        if not self.host:
            return NO_ADDRESS
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return f"{host}:{self.port}" if self.port else host


def new_key_pair() -> KeyPair:
    import zmq  # imported here, because processes of a node without sockets do without zmq

    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def write_key_file(path: Path, pair: KeyPair, mode: int = 0o600) -> None:
    """Write a secret key file that is new; one that exists is never overwritten.

    Raises:
        KeyFileError: the file exists, or cannot be written.
    """
    comment = f"# embridge: the secret key of one node; give it to nobody (embridge keys show {path})"
    text = f"{comment}\n{_SECRET_FIELD} {pair.secret}\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise KeyFileError(
            f"key file {path}: it exists; choose another name, or remove it if no node uses it"
        ) from error
    except OSError as error:
        raise KeyFileError(f"key file {path}: {error.strerror}; choose a folder that you may write to") from error
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, mode)  # the umask may have taken bits away
        file.write(text)


def read_key_file(path: Path) -> KeyPair:
    """The key pair of a secret key file.

    Raises:
        KeyFileError: the file is missing, other users may read it, or it holds no secret key.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(4096)
    except OSError as error:
        raise KeyFileError(f"key file {path}: {error.strerror}; make one with `embridge keys new {path}`") from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise KeyFileError(f"key file {path}: mode {mode:o}, others may use it; run `chmod 600 {path}`")
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"key file {path}: it belongs to user {status.st_uid}; "
            f"it must belong to user {os.geteuid()}, who runs the node"
        )
    import zmq

    for line in data.decode("utf-8", "replace").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == _SECRET_FIELD and is_key(words[1]):
            return KeyPair(zmq.curve_public(words[1].encode()).decode(), words[1])
    raise KeyFileError(
        f"key file {path}: no line `{_SECRET_FIELD} <{KEY_LENGTH} characters>`; "
        "make a key file with `embridge keys new`"
    )


def is_key(text: str) -> bool:
    """Whether this is 32 bytes in Z85."""
    if len(text) != KEY_LENGTH or not text.isascii():
        return False
    from zmq.utils import z85

    try:
        return len(z85.decode(text)) == 32
    except (KeyError, ValueError, struct.error):
        return False


def allow_line(address: str, public: str, name: str = "") -> str:
    """The line that other nodes put into their allow-lists for the node with this public key.

    Raises:
        ValueError: the address or the name cannot stand in such a line.
    """
    _split_address(address)
    if name.startswith("#") or len(name.split()) > 1:
        raise ValueError(
            f"name: {name!r} is not one word that begins with a letter; it is for people, and may be left out"
        )
    return f"{address} {public} {name}".rstrip()


def _split_address(text: str) -> tuple[str, int]:
    """(host as `_one_form` writes it, port or 0); ("", 0) for no address. Raises ValueError."""
    if text == NO_ADDRESS:
        return "", 0
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or rest[:1] not in ("", ":") or ":" not in host:
            raise ValueError(f"{text!r} is no address; write [ipv6] or [ipv6]:port")
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r}: port {port!r} is outside 1 to 65535; leave it out to mean every port of the host")
    return _one_form(host, text), int(port or 0)


def _one_form(host: str, text: str) -> str:
    """The form in which hosts are compared: an IP address as `ipaddress` writes it, a name in lower case."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if ":" in host or not _HOST.fullmatch(host):
            raise ValueError(f"{text!r} is no address; write host, host:port, [ipv6]:port, or - for none") from None
        return host.lower()


class AllowList:
    """The parsed lines of an allow-list: which keys may connect, and which key stands beside an address."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.keys = frozenset(entry.key for entry in entries)
        self._by_address = {(entry.host, entry.port): entry.key for entry in entries if entry.host}

    def key_of(self, endpoint: str) -> str | None:
        """The key beside `tcp://host:port`, or beside its host; None where neither has a line."""
        match = _ENDPOINT.fullmatch(endpoint)
        try:
            host, port = _split_address(match[1] if match else endpoint)
        except ValueError:
            return None
        return self._by_address.get((host, port)) or self._by_address.get((host, 0))


def parse_allow_list(text: str, path: Path) -> AllowList:
    """The allow-list that this text holds; errors name `path`.

    Raises:
        KeyFileError: a line is malformed, or gives an address a second key.
    """
    entries: list[Entry] = []
    seen: dict[tuple[str, int], Entry] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        at = f"allow file {path}, line {number}"
        if len(words) < 2:
            raise KeyFileError(
                f"{at}: {len(words)} field; write `<address> <public key> [name]`, as `embridge keys show` prints it"
            )
        try:
            host, port = _split_address(words[0])
        except ValueError as error:
            raise KeyFileError(f"{at}: {error}") from error
        if not is_key(words[1]):
            raise KeyFileError(
                f"{at}: its second field is no public key of {KEY_LENGTH} characters; copy it from `embridge keys show`"
            )
        rest = words[2:]
        name = rest.pop(0) if rest and not rest[0].startswith("#") else ""
        if rest and not rest[0].startswith("#"):
            raise KeyFileError(f"{at}: {len(words)} fields; a name is one word, and a comment begins with #")
        entry = Entry(host, port, words[1], name, number)
        other = seen.setdefault((host, port), entry) if host else entry
        if other.key != entry.key:
            raise KeyFileError(
                f"{at}: {entry.address} has another key in line {other.line}; an address has one key: "
                f"remove a line, add ports, or write {NO_ADDRESS} for a node that only connects to this one"
            )
        entries.append(entry)
    return AllowList(entries)


def read_allow_list(path: Path) -> AllowList:
    """The allow-list in a file.

    Raises:
        KeyFileError: the file cannot be read, other users may write it, or a line is malformed.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_ALLOW_BYTES + 1)
    except OSError as error:
        raise KeyFileError(
            f"allow file {path}: {error.strerror}; it holds one line a node, as `embridge keys show` prints it"
        ) from error
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022:
        raise KeyFileError(f"allow file {path}: mode {mode:o}, others may add themselves; run `chmod go-w {path}`")
    if status.st_uid not in (0, os.geteuid()):
        raise KeyFileError(
            f"allow file {path}: it belongs to user {status.st_uid}; it must belong to user {os.geteuid()} or to root"
        )
    if len(data) > MAX_ALLOW_BYTES:
        raise KeyFileError(f"allow file {path}: more than {MAX_ALLOW_BYTES} bytes; remove what is not needed")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise KeyFileError(f"allow file {path}, line {line}: it is no UTF-8 text; copy the line again") from error
    return parse_allow_list(text, path)


class AllowFile:
    """An allow-list that is read again when its file has changed, so that nodes come and go without a restart.

    A file that cannot be used is an error (KeyFileError) when the object is made. Later the last good list stays in
    force, and the log says why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._stamp()
        self.list = read_allow_list(path)

    def refresh(self) -> bool:
        """Read the file again if it has changed. True if the list is a new one."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self.list = read_allow_list(self.path)
        except KeyFileError as error:
            log.error("%s; the list as it was before stays in force", str(error))
            return False
        log.info("allow file %s: %d keys", self.path, len(self.list.keys))
        return True

    def _stamp(self) -> tuple[int, ...]:
        try:
            status = self.path.stat()
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
