"""The site of the docs: `make docs-site` builds it from these pages into build/site, and fails at a link or
an anchor that leads nowhere. Its menu is what docs/index.md links to, heading by heading."""

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "pyrskip"
html_title = "pyrskip"
extensions = ["myst_parser"]
root_doc = "index"
html_theme = "sphinx_book_theme"
html_theme_options = {"show_navbar_depth": 1, "use_download_button": False, "navbar_persistent": []}
html_copy_source = False
myst_heading_anchors = 4
myst_links_external_new_tab = True
suppress_warnings = ["myst.header"]  # a page may begin a table's headings at the third level
exclude_patterns = ["conf.py"]
MENU = re.compile(r"\]\(([\w-]+)\.md\)")
"""A link of the index to a page."""


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_menu)


def add_menu(app: Sphinx, name: str, source: list[str]) -> None:
    """Behind the index what GitHub need not show: a hidden table of contents for each of its headings. Behind
    the design notes one of the decisions."""
    if name == "index":
        listed: set[str] = set()
        for part in re.split(r"(?m)^## ", source[0])[1:]:
            title, _, text = part.partition("\n")
            pages = [page for page in dict.fromkeys(MENU.findall(text)) if page not in listed]
            listed.update(pages)
            source[0] += _contents(title, pages)
    if name == "design":
        folder = Path(app.srcdir) / "decisions"
        source[0] += _contents(
            "Decisions", [f"decisions/{page.stem}" for page in sorted(folder.glob("*.md"))]
        )


def _contents(title: str, pages: list[str]) -> str:
    return "\n".join(["", "", "```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""])
