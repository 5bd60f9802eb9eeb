"""The pages under ``docs/`` that the rules write themselves: ``python -m deployml.passes.pages [FOLDER]``."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from ..runtime.files import atomic_write
from ..runtime.report import to_json
from . import registry
from .rule import Rule

__all__ = ["RulePage", "Said", "main", "page_of", "pages", "reasons"]

_SECTION: Final = re.compile(r"^##\s+(?P<title>.+?)\s*$", re.MULTILINE)
_PACKAGE: Final = Path(__file__).resolve().parent
_MARK: Final = "<!-- written by `make docs`; edit the rule, not this page -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class RulePage:
    """What a rule says of itself.

    Attributes:
        code: "ATT101".
        name: "group-query-attention".
        summary: What stands before the first section of its docstring.
        status: "stable", "preview" or "deprecated".
        since: Version that brought it.
        safety: "exact", "rounding", "precision" or "assuming".
        emits: Qualified names of the operators it puts into the graph.
        anchors: Operators it looks at.
        reasons: Reason codes its examples decline with.
        sections: Title to text of the docstring's sections, in order.
    """

    code: str
    name: str
    summary: str
    status: str
    since: str
    safety: str
    emits: tuple[str, ...]
    anchors: tuple[str, ...]
    reasons: tuple[str, ...]
    sections: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["rule"] = "rule"

    def to_json(self, *, indent: int | None = 2) -> str:
        """The page as JSON text, keys in field order."""
        return to_json(self, indent=indent)

    def to_markdown(self) -> str:
        """The page as a Markdown file."""
        facts = (
            ("Status", f"{self.status}, since {self.since}"),
            ("Safety", self.safety),
            ("Looks at", _codes(self.anchors)),
            ("Emits", _codes(self.emits)),
            ("Examples decline with", _codes(self.reasons)),
        )
        table = "\n".join(f"| {name} | {text} |" for name, text in facts)
        sections = "".join(f"\n## {title}\n{text}\n" for title, text in self.sections.items())
        return f"{_MARK}\n# {self.code}: {self.name}\n\n{self.summary}\n\n| | |\n|---|---|\n{table}\n{sections}"


@dataclass(frozen=True, slots=True, order=True)
class Said:
    """One place where the passes decline: reason code, the sentence (``...`` for what varies), and the module."""

    reason: str
    detail: str
    module: str


def page_of(rule: Rule) -> RulePage:
    """A rule's page, from its docstring and class variables."""
    text = inspect.cleandoc(type(rule).__doc__ or "")
    marks = list(_SECTION.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    reasons = dict.fromkeys(example.because for example in rule.examples if example.because)
    return RulePage(
        code=rule.code,
        name=rule.name,
        summary=text[: marks[0].start()].strip() if marks else text,
        status=rule.status.value,
        since=rule.since,
        safety=rule.safety.value,
        emits=tuple(rule.emits),
        anchors=tuple(sorted(rule.anchors)),
        reasons=tuple(reasons),
        sections={mark["title"]: text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)},
    )


def reasons() -> tuple[Said, ...]:
    """Every reason code that the passes can decline with, read from their source."""
    found = {said for path in sorted(_PACKAGE.rglob("*.py")) for said in _said_in(path)}
    return tuple(sorted(found))


def pages() -> dict[str, str]:
    """Path under ``docs/`` to text, for every generated page."""
    found = {f"rules/{rule.code}.md": page_of(rule).to_markdown() for rule in registry.RULES}
    return {"rules/README.md": _index(), **found, "reasons.md": _reasons_page()}


def _said_in(path: Path) -> Iterator[Said]:
    """What one file says: ``Declined("code", "sentence")``, and records made with ``reason="code", detail=...``."""
    module = path.relative_to(_PACKAGE).with_suffix("").as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        reason, detail = keywords.get("reason"), keywords.get("detail")
        if name == "Declined" and len(node.args) >= 2:
            reason, detail = node.args[:2]
        if reason is not None and detail is not None:
            for code in _reason_codes(reason):
                yield Said(code, _template(detail), module)


def _reason_codes(node: ast.expr) -> Iterator[str]:
    """The codes an expression may be: a literal, or either side of a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != "no-match":
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _reason_codes(node.body)
        yield from _reason_codes(node.orelse)


def _template(node: ast.expr) -> str:
    """The text of a string, with dots for what is filled in at run time."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = (str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values)
        return "".join(parts)
    return "..."


def _index() -> str:
    rows = "\n".join(
        f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.safety.value} | {_codes(tuple(rule.emits))} |"
        for rule in registry.RULES
    )
    return f"{_MARK}\n# Rules\n\n| Code | Finds | Safety | Emits |\n|---|---|---|---|\n{rows}\n"


def _reasons_page() -> str:
    rows = "\n".join(
        f"| `{s.reason}` | {s.detail.replace('|', '&#124;')} | `passes/{s.module}.py` |" for s in reasons()
    )
    text = (
        "Why an attention, or a neighbour of it, was left as it was. The code is stable: scripts may rely on it. The "
        "report and `deployml explain` show the sentence with what was found."
    )
    return f"{_MARK}\n# Reason codes\n\n{text}\n\n| Code | Says | From |\n|---|---|---|\n{rows}\n"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def main(arguments: Sequence[str]) -> int:
    """Write the pages into a folder (``docs`` by default) and remove pages of rules that are gone."""
    folder = Path(arguments[0] if arguments else "docs")
    wanted = pages()
    for name, text in wanted.items():
        atomic_write(folder / name, text)
    for path in sorted((folder / "rules").glob("*.md")):
        if f"rules/{path.name}" not in wanted:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
