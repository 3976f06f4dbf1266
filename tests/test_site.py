"""`make site` builds all pages without a warning, and its pages load nothing from anywhere else."""

from __future__ import annotations

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.pages import PAGES, ROOT

TOOLS = ROOT / ".build" / "site-tools" / "bin" / "python"
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}

pytestmark = [
    pytest.mark.storm,
    pytest.mark.skipif(not TOOLS.exists(), reason="mkdocs-material is not installed apart: make site"),
]


class Loaded(HTMLParser):
    """What a page has a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == LOADS.get(tag) and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [str(TOOLS), "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder


def test_each_page_of_the_sources_is_one_of_the_site_and_links_to_sources_lead_to_pages(site: Path) -> None:
    made = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    assert {"index.md", *(path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:])} <= made
    linked = [unquote(it) for it in re.findall(r'href="(source/[^"#]+)"', (site / "deploying.html").read_text())]
    assert "source/deploy/node.toml.html" in linked
    assert all((site / path).exists() for path in linked)


def test_lists_nest_as_they_do_on_a_code_host(site: Path) -> None:
    page = (site / "troubleshooting.html").read_text()
    assert re.search(r"<li>.*Mooncake is not installed</code><ul>\n<li><em>Cause:</em>", page)
    for path in site.rglob("*.html"):
        text = re.sub(r"(?s)<pre.*?</pre>", "", path.read_text().partition("<article")[2])
        assert not re.search(r"\n *(?:[-*]|\d+\.) (?:<strong>|<code>|[A-Z])", text), path


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(page.read_text())
        assert parser.found
        assert [address for address in parser.found if re.match(r"(https?:)?//", address)] == [], page
