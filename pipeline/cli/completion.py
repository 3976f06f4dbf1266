"""`embridge completion`: the shell completes commands, options and their values."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Final

import click

from embridge.pipeline.cli.errors import CommandError, QuestionError, expected_errors

PROGRAM: Final = "embridge"
VARIABLE: Final = "_EMBRIDGE_COMPLETE"
_PLACES: Final = {
    "bash": ".local/share/bash-completion/completions/embridge",
    "zsh": ".local/share/zsh/site-functions/_embridge",
    "fish": ".config/fish/completions/embridge.fish",
}
"""Below the home folder. bash-completion and fish look there by themselves; zsh is told in its `.zshrc`."""
_FOR_ZSH: Final = "source ~/.local/share/zsh/site-functions/_embridge  # embridge completion\n"


@click.command("completion", short_help="Have the shell complete commands, options and their values.")
@click.argument("shell", type=click.Choice(sorted(_PLACES)), required=False)
@click.option("--install", is_flag=True, help="Write it to where the shell looks, below the home folder.")
def command(shell: str | None, install: bool) -> None:
    """Have the shell complete commands, options and their values.

    Prints the script for SHELL, by default that of this user, or installs it:

    \b
      embridge completion --install         # once; then open another shell
      source <(embridge completion bash)    # for this shell alone
    """
    with expected_errors():
        name = shell or _shell_of_user()
        text = script(name)
        if not install:
            click.echo(text)
            return
        place = Path.home() / _PLACES[name]
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text + "\n")
            if name == "zsh":
                _tell_zsh(Path.home() / ".zshrc")
        except OSError as error:
            raise CommandError(f"{error.filename or place}: {error.strerror}; print the script and keep it") from error
        click.echo(f"{place}: written; the next {name} completes `{PROGRAM}`")


def script(shell: str) -> str:
    """What this shell has to read."""
    from click.shell_completion import get_completion_class

    from embridge.pipeline.cli import main

    kind = get_completion_class(shell)
    assert kind is not None, shell
    return kind(main, {}, PROGRAM, VARIABLE).source().strip()


def _shell_of_user() -> str:
    name = Path(pwd.getpwuid(os.getuid()).pw_shell).name
    if name not in _PLACES:
        raise QuestionError(f"which shell? yours is {name!r}; say one of {', '.join(sorted(_PLACES))}")
    return name


def _tell_zsh(file: Path) -> None:
    """Have zsh read the script when it begins; once."""
    before = file.read_text() if file.exists() else ""
    if _FOR_ZSH not in before:
        file.write_text(before + ("" if before.endswith("\n") or not before else "\n") + _FOR_ZSH)
