"""What `make site` adds to mkdocs: the README is the first page, and links to files outside of `docs/` lead somewhere.

In the sources a link is a path from the page that has it, as code hosts want it. In the site each file outside of
`docs/` to which a page links is a page of its own below `source/`, so the site needs no code host.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.blockprocessors import build_block_parser
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
HOME = "index.md"
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[#)])")
LANGUAGES = {".py": "python", ".md": "markdown", ".h": "c", ".service": "ini"}


class TwoSpaces(Extension):
    """Lists nest by two spaces, as code hosts have it."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.tab_length = 2
        md.parser = build_block_parser(md)  # anew, for its parts have taken the number over


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    extensions: list[Any] = config.markdown_extensions
    extensions.insert(0, TwoSpaces())  # what others add is added to its parser
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")  # anchors as code hosts have them
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, HOME, content=(ROOT / "README.md").read_text()))
    sources = {found for file in files.documentation_pages() for _, found in targets(file.src_uri, file.content_string)}
    for path in sorted(path for path in sources if uri(path).startswith("source/")):
        text = (ROOT / path).read_text()
        language = LANGUAGES.get(Path(path).suffix, Path(path).suffix[1:] or "text")
        page = f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n\n# {path}\n\n``````{language}\n{text}\n``````\n"
        files.append(File.generated(config, uri(path), content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith("source/"):
        return markdown
    for link, path in reversed([*targets(page.file.src_uri, markdown)]):
        to = posixpath.relpath(uri(path), posixpath.dirname(page.file.src_uri) or ".")
        markdown = markdown[: link.start()] + to + markdown[link.end() :]
    return markdown


def targets(page: str, text: str) -> Iterator[tuple[re.Match[str], str]]:
    """The links of a page to files that are there, each with the path of its file from the root."""
    folder = "" if page == HOME else posixpath.dirname(f"docs/{page}")
    for link in LINK.finditer(text):
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if (ROOT / path).is_file():
            yield link, path


def uri(path: str) -> str:
    """Where a file stands in the site."""
    if path == "README.md":
        return HOME
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"
