"""JUnit XML, which every CI server reads: one test case a thing that was compared."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

from ..drift import CheckReport, Finding

__all__ = ["to_junit"]

#: Test case to the kinds of findings that belong to it.
_CASES: Final[dict[str, tuple[str, ...]]] = {
    "attention sites": ("site",),
    "operators": ("operators",),
    "inputs and outputs": ("input", "output", "axis"),
    "opsets": ("opset",),
    "weights": ("weights", "versions"),
    "run": ("load", "nan"),
    "parity": ("parity",),
    "latency": ("latency",),
}
#: Characters that XML 1.0 cannot hold, escaped or not.
_FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: CheckReport) -> str:
    """The check as a JUnit XML document. What could not be decided is an error, what was not run is skipped."""
    suite = ElementTree.Element("testsuite", name=f"deployml check {_legal(report.model)}")
    for name, kinds in _CASES.items():
        case = ElementTree.SubElement(suite, "testcase", classname=_legal(report.model), name=name)
        _fill(case, [f for f in report.findings if f.kind in kinds], report.not_run.get(name))
    for attribute, element in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{element}"))))
    suite.set("tests", str(len(_CASES)))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _fill(case: ElementTree.Element, found: list[Finding], not_run: str | None) -> None:
    failed = [f for f in found if f.verdict == "fail"]
    undecided = [f for f in found if f.verdict == "inconclusive"]
    told = [f for f in found if f.verdict == "pass"]
    if failed:
        _child(case, "failure", failed)
    elif undecided:
        _child(case, "error", undecided)
    elif not_run is not None and not found:
        ElementTree.SubElement(case, "skipped", message=_legal(not_run))
    if told:
        ElementTree.SubElement(case, "system-out").text = _legal("\n".join(f.text for f in told))


def _child(case: ElementTree.Element, name: str, found: list[Finding]) -> None:
    element = ElementTree.SubElement(case, name, message=_legal(found[0].text), type=found[0].kind)
    element.text = _legal("\n".join(f.text + (f" ({f.source})" if f.source else "") for f in found))


def _legal(text: str) -> str:
    return _FORBIDDEN.sub(lambda m: f"\\u{{{ord(m[0]):x}}}", text)
