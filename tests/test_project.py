"""Claims about the project's own files: they agree with each other."""

import re
import tomllib

import yaml

from tests.configs import REPOSITORY

GITHUB = REPOSITORY / ".github" / "ISSUE_TEMPLATE"


def test_one_version_is_told_everywhere() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"(?m)^## (\S+) \((\S+)\)", (REPOSITORY / "CHANGELOG.md").read_text())
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert newest is not None
    assert newest.groups() == (version, str(citation["date-released"]))
    assert str(citation["version"]) == version


def test_a_form_of_an_issue_has_what_a_form_must() -> None:
    forms = [path for path in GITHUB.glob("*.yml") if path.name != "config.yml"]
    assert forms
    for form in (yaml.safe_load(path.read_text()) for path in forms):
        assert form.keys() >= {"name", "description", "body"}
        names = [part["id"] for part in form["body"]]
        assert len(set(names)) == len(names)
        assert all(part["type"] in ("textarea", "input", "markdown") for part in form["body"])


def test_what_the_pages_at_the_root_link_to_is_there() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (REPOSITORY / page).read_text()):
            assert (REPOSITORY / target).exists(), (page, target)
