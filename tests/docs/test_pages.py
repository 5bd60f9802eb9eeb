"""Generated pages are what the rules say now; links in the documents lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployml.passes import pages, registry

ROOT = Path(__file__).resolve().parents[2]


def test_generated_pages_are_up_to_date():
    wanted = pages.pages()
    stale = [
        name
        for name, text in wanted.items()
        if not (ROOT / "docs" / name).is_file() or (ROOT / "docs" / name).read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: make docs"
    there = {f"rules/{path.name}" for path in (ROOT / "docs" / "rules").glob("*.md")}
    assert there - set(wanted) == set()


def test_every_reason_of_an_example_is_listed():
    listed = {said.reason for said in pages.reasons()}
    wanted = {example.because for rule in registry.RULES for example in rule.examples if example.because}
    assert wanted - listed - {"no-match"} == set()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)", text) if "://" not in t]
    assert [t for t in targets if not (ROOT / t).exists()] == []
