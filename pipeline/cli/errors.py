"""How a command fails: one line on standard error and an exit status, never a traceback for what can be expected.

0    done
1    what was asked for did not work out: a node did not start, a request failed, a check failed
2    the question was wrong: an option, a setting, a folder that is not there
3    no node runs there (status, top, trace, stop, drain)
130  Ctrl-C          143  SIGTERM
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

FAILED = 1
WRONG = 2
NO_NODE = 3
INTERRUPTED = 130


class CommandError(click.ClickException):
    """Ends the command with this line: what was asked for did not work out."""

    exit_code = FAILED

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"embridge: {self.format_message()}", err=True, file=file)


class QuestionError(CommandError):
    """The same, where the question was wrong."""

    exit_code = WRONG


class NoNodeError(CommandError):
    """The same, where no node runs in the run directory that is meant."""

    exit_code = NO_NODE


@contextmanager
def no_node_is_status_3() -> Iterator[None]:
    """Turn the error of whoever finds no node into its own exit status, for scripts that go by it."""
    from embridge.allocator.errors import AttachError

    try:
        yield
    except AttachError as error:
        raise NoNodeError(error) from error


@contextmanager
def expected_errors() -> Iterator[None]:
    """Turn the errors that embridge raises on purpose into their line, and Ctrl-C into its status.

    `ConfigError` is a `ValueError`: whatever a caller got wrong is status 2. A missing native core is an ImportError.
    """
    try:
        yield
    except KeyboardInterrupt:
        click.echo("embridge: interrupted; everything it had started was stopped", err=True)
        raise SystemExit(INTERRUPTED) from None
    except (ValueError, FileNotFoundError) as error:
        raise QuestionError(error) from error
    except ImportError as error:
        raise CommandError(f"{error}; `embridge doctor` says what is missing") from error
    except Exception as error:
        from embridge.allocator.errors import EmbridgeError

        if not isinstance(error, EmbridgeError):
            raise
        raise CommandError(error) from error
