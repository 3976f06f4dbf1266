"""The authorities by whose signature the certificate of a discovery server is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl import SSLContext


def tls_context(ca_file: str | Path) -> SSLContext:
    """What checks the certificates of servers by the authorities of a file.

    Raises:
        ValueError: the file cannot be read, or is not of certificates in PEM.
    """
    import ssl  # 10 ms, and most nodes need none

    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one
        raise ValueError(f"{ca_file}: {error.strerror or error}; it must hold certificates in PEM") from error
