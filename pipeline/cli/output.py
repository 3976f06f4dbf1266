"""Where commands print."""

from __future__ import annotations

from rich.console import Console

PIPE_WIDTH = 150  # a file or a pipe has no width of its own, and rich would assume 80


def console() -> Console:
    """Standard output, in a terminal's width or wide enough for every table."""
    made = Console()
    return made if made.is_terminal else Console(width=max(made.width, PIPE_WIDTH))
