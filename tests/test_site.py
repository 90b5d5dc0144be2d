"""Claims about the site of the docs: it builds without a link that leads nowhere, and its menu leads to every
page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(docs), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_site_builds_and_has_a_menu_of_all_pages_and_a_search(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    built = build(DOCS, tmp_path)
    assert built.returncode == 0, built.stderr
    index = (tmp_path / "index.html").read_text()
    menu = index[index.index('class="bd-sidebar-primary') : index.index("</nav>", index.index("bd-links"))]
    pages = {str(page.with_suffix(".html")) for page in PAGES} - {"index.html"}
    assert pages <= set(re.findall(r'href="([^"#]+)"', menu))
    assert 'type="search"' in index


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/conf.py").write_text((DOCS / "conf.py").read_text())
    (tmp_path / "docs/other.md").write_text("# Other\n")
    page = "# One\n\n## Pages\n\n* [other](other.md)\n"
    (tmp_path / "docs/index.md").write_text(page)
    assert build(tmp_path / "docs", tmp_path / "good").returncode == 0
    (tmp_path / "docs/index.md").write_text(page + "* [nowhere](other.md#nowhere)\n")
    assert "nowhere" in build(tmp_path / "docs", tmp_path / "bad").stderr


def test_what_pages_link_to_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", (DOCS / page).read_text()):
            assert (DOCS / page.parent / target).exists(), (page, target)


def test_no_page_but_references_is_long() -> None:
    references = {"configs", "metrics"}
    long = {p.stem for p in PAGES if len((DOCS / p).read_text().split()) > 1200}
    assert long <= references
