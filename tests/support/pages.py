"""The README and the pages of `docs/`, as tests of them read them: prose, what is quoted, blocks between fences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "py", "bash", "console", "text", "toml", "yaml"}
"""Of blocks. `python` is checked and mostly run, `py` is a signature, `console` a command and what it prints."""


class Block(NamedTuple):
    """What stands between two fences."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    found, begun, language = [], None, ""
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip().startswith("```"):
            continue
        if begun is None:
            begun, language = number, line.strip()[3:]
        else:
            found.append(Block(page, begun, language, "\n".join(lines[begun : number - 1])))
            begun = None
    assert begun is None, f"{page}: the fence of line {begun} has no end"
    return found


def prose(page: Path) -> str:
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())


def quoted(page: Path) -> list[str]:
    """What stands in backticks, outside of fences."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?<=[^\s`])\n +(?=[^\s`])", " ", prose(page)))


def commands(block: Block) -> list[str]:
    """The lines that are typed: of `bash` all, of `console` those behind `$ `; each without its comment."""
    text = re.sub(r"\s*\\\n\s*", " ", block.text)
    if block.language == "console":
        lines = re.findall(r"(?m)^\$ (.*)$", text)
    else:
        lines = text.splitlines() if block.language == "bash" else []
    bare = (re.sub(r"(^|\s)# .*", "", line).strip() for line in lines)
    return [line for line in bare if line]


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [(block, line) for block in BLOCKS for line in commands(block)]
