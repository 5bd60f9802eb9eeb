import os
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from deployml.runtime.drift import CheckReport, Finding
from deployml.runtime.integrations.ci import tell
from deployml.runtime.integrations.github import annotations, summary
from deployml.runtime.integrations.junit import to_junit

HOSTILE = "a|b\n::error::owned <script>\x00\ud800 100% `x`"
LOST = Finding(
    kind="site",
    where="encoder.layer.7",
    text="layer 7 attention was X, is now 9 plain nodes",
    source="shop/model.py:41",
)
SLOW = Finding(kind="latency", where="graph", text="takes 1.2 times as long", verdict="inconclusive")
NOTE = Finding(kind="versions", where="versions", text="made with torch 2.13 -> 2.14", verdict="pass")
REPORT = CheckReport(
    verdict="fail",
    model="m.onnx",
    lock="m.lock.json",
    findings=(LOST, SLOW, NOTE),
    checked=("2 attention sites",),
    not_run={"parity": "no --against SOURCE was given"},
)


def test_annotations_point_to_the_users_line():
    lines = annotations(REPORT).splitlines()
    assert lines[0] == (
        "::error file=shop/model.py,line=41,title=m.onnx%3A site::layer 7 attention was X, is now 9 plain nodes"
    )
    assert lines[1].startswith("::warning title=")
    assert lines[2].startswith("::notice title=")


def test_a_hostile_name_begins_no_command_and_no_table_cell():
    bad = replace(REPORT, model=HOSTILE, findings=(replace(LOST, text=HOSTILE, where=HOSTILE, source=HOSTILE + ":1"),))
    lines = annotations(bad).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("::error ")
    page = summary(bad)
    assert "<script>" not in page
    row = next(line for line in page.splitlines() if line.startswith("| ❌"))
    assert row.replace("\\|", "").count("|") == 4


def test_junit_has_a_case_for_all_that_was_compared():
    root = ElementTree.fromstring(to_junit(REPORT).encode())
    suite = root[0]
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    failed = suite.find("testcase[@name='attention sites']/failure")
    assert failed is not None
    assert failed.text == f"{LOST.text} (shop/model.py:41)"


def test_junit_survives_what_xml_cannot_hold():
    bad = replace(REPORT, model=HOSTILE, findings=(replace(LOST, text=HOSTILE),))
    ElementTree.fromstring(to_junit(bad).encode())


def test_tell_writes_what_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "page.md"))
    (tmp_path / "page.md").write_text("of another step\n")
    tell(REPORT, junit=tmp_path / "j.xml", github=True)
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith("of another step\n## ❌ deployml check")
    assert (tmp_path / "j.xml").read_text().startswith("<?xml")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("::error file=")
    tell(REPORT)
    assert capsys.readouterr().err == ""


MODEL = '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
PLUGIN = 'pytest_plugins = ["deployml.runtime.integrations.pytest_plugin"]\n'
TESTS = """
def test_same(deployml_check):
    assert deployml_check("m.onnx").verdict == "pass"

def test_other(deployml_check):
    deployml_check("other.onnx", lock="m.lock.json")

def test_missing(deployml_check):
    deployml_check("none.onnx")
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a locked model, another model, and a test of each."""
    import onnx
    from onnx import parser

    from deployml import lock

    onnx.save(parser.parse_model(MODEL), tmp_path / "m.onnx")
    onnx.save(parser.parse_model(MODEL.replace("Relu", "Neg")), tmp_path / "other.onnx")
    lock(tmp_path / "m.onnx")
    (tmp_path / "test_models.py").write_text(textwrap.dedent(TESTS))
    return tmp_path


@pytest.fixture
def entry_points(tmp_path, checkout):
    """The entry points of pyproject.toml as an installed distribution has them; its folder."""
    declared = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    folder = tmp_path / "site" / "deployml_entry_points-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: deployml-entry-points\nVersion: 0\n")
    lines = "".join(f"{name} = {module}\n" for name, module in declared.items())
    (folder / "entry_points.txt").write_text(f"[pytest11]\n{lines}")
    return folder.parent


def test_pytest_finds_the_fixture_which_fails_with_sentences(project, entry_points):
    (project / "conftest.py").write_text(PLUGIN)  # named as well as found: neither stands in the other's way
    path = os.pathsep.join([str(entry_points), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_models.py"]
    environment = {**os.environ, "PYTHONPATH": path}
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env=environment)
    assert "2 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "operators changed: Neg 0 -> 1, Relu 1 -> 0" in ran.stdout
    assert "none.onnx" in ran.stdout
    assert "Traceback" not in ran.stdout
