"""A wrong rule, a wrong pass, and a graph that was wrong from the start: each is named, with a model that shows it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

import deployml
from deployml.exporter import bisect
from deployml.exporter.feeding import input_specs, parity_cases
from deployml.exporter.fusing import fuse
from deployml.exporter.measuring import Graph, Reference
from deployml.exporter.options import Options
from deployml.passes import norms, pipeline, proof
from deployml.passes.evaluate import Evaluator
from deployml.passes.rule import Replacement, Rule
from deployml.runtime.progress import Progress

TEXT = """
<ir_version: 10, opset_import: ["": 21]>
g (float[n, 4] x) => (float[n, 4] y)
<float[4, 4] w = {0.9, 0.1, -0.3, 0.2, 0.4, -0.8, 0.1, 0.5, -0.2, 0.3, 0.7, -0.6, 0.1, 0.2, -0.5, 0.8}>
{
  [first] a = MatMul(x, w)
  [second] b = Sigmoid(a)
  [third] c = MatMul(b, w)
  [fourth] d = Tanh(c)
  [fifth] e = MatMul(d, w)
  [sixth] y = Softsign(e)
}
"""


class WrongTanh(Rule):
    """Takes Tanh for Sigmoid."""

    code, name = "TST001", "wrong-tanh"
    anchors, emits = frozenset({"Tanh"}), ("Sigmoid",)

    def examine(self, node, context):
        return node

    def build(self, facts, g):
        made = g.op("Sigmoid", facts.inputs[0], dtype=facts.inputs[0].dtype, shape=facts.inputs[0].shape)
        return Replacement(old=[facts.outputs[0]], new=[made])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No onnxsim, which starts a process for each run of the passes and changes nothing in these graphs."""
    monkeypatch.setattr(pipeline, "simplify", lambda model: (model, "left out"))


@pytest.fixture
def trusting(monkeypatch):
    """Proofs that believe everything: what a hole in them would be."""
    monkeypatch.setattr(proof.Prover, "prove", lambda *_, **__: proof.Proof(ok=True, method="executed"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.onnx"
    onnx.save(parser.parse_model(TEXT), path)
    return path


def shows(folder, name):
    """How far "before" and "after" of the minimal model are apart on its inputs, and its operators."""
    model = ir.load(folder / f"{name}.bisect.onnx")
    onnx.checker.check_model(folder / f"{name}.bisect.onnx", full_check=True)
    with np.load(folder / f"{name}.bisect.npz") as feeds:
        before, after = Evaluator().prepare(model)(dict(feeds))
    assert [o.name for o in model.graph.outputs] == ["before", "after"]
    return np.abs(before - after).max() / np.abs(before).max(), sorted(n.op_type for n in model.graph)


def test_a_wrong_rule_is_named_with_its_node_and_a_model_that_shows_it(
    source, tmp_path, trusting, monkeypatch, deployml_command
):
    monkeypatch.setattr(norms, "RULES", (WrongTanh(), *norms.RULES))
    ran = deployml_command("optimize", source, "-o", tmp_path / "out.onnx", "--no-bench")
    assert ran.status == 1, ran.err
    said = " ".join(ran.out.split())
    assert "the first wrong step is the pass norms, rule TST001, at node 'fourth'" in said
    assert "out.bisect.onnx with out.bisect.npz shows it; without it: --disable-fusion TST001" in said
    error, operators = shows(tmp_path, "out")
    assert error > 0.1 and operators == ["Sigmoid", "Tanh"]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["culprit"]["rule"] == "TST001" and report["culprit"]["at"] == "fourth"
    assert report["files"]["bisect"] == "out.bisect.onnx"
    assert "First wrong step" in (tmp_path / "out.report.html").read_text()


def test_the_next_good_export_takes_the_minimal_model_away(source, tmp_path, trusting, monkeypatch):
    monkeypatch.setattr(norms, "RULES", (WrongTanh(),))
    bad = deployml.optimize(source, output=tmp_path / "out.onnx")
    assert bad.report.verdict == "fail" and (tmp_path / "out.bisect.npz").exists()
    monkeypatch.setattr(norms, "RULES", ())
    good = deployml.optimize(source, output=tmp_path / "out.onnx", html=False)
    assert good.report.verdict == "pass" and good.report.culprit is None
    assert [p.name for p in tmp_path.iterdir() if "bisect" in p.name] == []


def test_a_wrong_pass_over_the_whole_graph_is_named_with_the_first_wrong_node(source, tmp_path, monkeypatch):
    right = pipeline.pack_weights

    def wrong(model):
        right(model)
        node = next(n for n in model.graph if n.op_type == "Tanh")
        node.op_type = "Erf"

    monkeypatch.setattr(pipeline, "pack_weights", wrong)
    culprit = deployml.optimize(source, output=tmp_path / "out.onnx").report.culprit
    assert culprit.stage == "pack-weights" and culprit.rule is None
    assert culprit.at == "fourth" and culprit.output == "d"
    error, operators = shows(tmp_path, "out")
    assert error > 0.01 and operators == ["Erf", "Tanh"]


def test_weights_in_a_file_of_their_own_are_read_too(source, tmp_path, trusting, monkeypatch):
    big = parser.parse_model(TEXT)
    onnx.save(big, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.bin", size_threshold=0)
    monkeypatch.setattr(norms, "RULES", (WrongTanh(),))
    culprit = deployml.optimize(tmp_path / "apart.onnx", output=tmp_path / "out.onnx").report.culprit
    assert (culprit.stage, culprit.rule, culprit.at) == ("norms", "TST001", "fourth")


def test_validate_names_the_first_node_that_parts_from_the_sibling(source, tmp_path, deployml_command):
    (tmp_path / "m.unfused.onnx").write_bytes(source.read_bytes())
    onnx.save(parser.parse_model(TEXT.replace("d = Tanh(c)", "d = Erf(c)")), tmp_path / "m.onnx")
    ran = deployml_command("validate", tmp_path / "m.onnx", "--against", source)
    assert ran.status == 1
    said = " ".join(ran.out.split())
    assert "it first differs from the unfused graph beside it, at node 'fourth'" in said and "the pass" not in said
    assert "m.bisect.onnx with m.bisect.npz shows it" in said
    error, operators = shows(tmp_path, "m")
    assert error > 0.01 and operators == ["Erf", "Tanh"]
    (tmp_path / "m.onnx").write_bytes(source.read_bytes())
    assert deployml_command("validate", tmp_path / "m.onnx", "--against", source).status == 0
    assert not list(tmp_path.glob("*bisect*"))


def test_another_source_is_not_laid_on_the_translation(source, tmp_path):
    for name in ("m.onnx", "m.unfused.onnx"):
        (tmp_path / name).write_bytes(source.read_bytes())
    onnx.save(parser.parse_model(TEXT.replace("0.9, 0.1, -0.3", "0.9, 0.7, -0.3")), tmp_path / "other.onnx")
    culprit = deployml.validate(tmp_path / "m.onnx", against=tmp_path / "other.onnx").culprit
    assert culprit.stage == "sibling" and "another source, or a wrong translation" in culprit.sentence()


def test_a_failure_raised_on_request_names_the_step(source, tmp_path, trusting, monkeypatch):
    monkeypatch.setattr(norms, "RULES", (WrongTanh(),))
    with pytest.raises(deployml.VerdictError, match="rule TST001, at node 'fourth'"):
        deployml.optimize(source, output=tmp_path / "out.onnx", raise_on_failure=True)


def found_for(source, reference):
    """What is found for a graph that no pass made wrong, given what it should compute."""
    model = ir.load(source)
    options = Options(validate=True)
    fused = fuse(model, options.resolve(opset=21), options, Progress(enabled=False))
    case = parity_cases(input_specs(fused.model))[0]
    graph = Graph(path=source)
    return bisect.find_culprit(fused, graph, Reference(run=reference, name="a test's"), case).culprit


def test_a_graph_that_was_wrong_before_any_pass_is_laid_on_the_translation(source):
    found = found_for(source, lambda feeds: [np.zeros_like(feeds["x"]) + 7])
    assert found.stage == "translation" and "before any pass" in found.sentence()


def test_a_graph_that_onnxruntime_alone_makes_wrong_is_laid_on_onnxruntime(source, monkeypatch):
    monkeypatch.setattr(bisect._Trial, "is_bad", lambda self, model: self.optimize == "all")
    found = found_for(source, lambda feeds: [feeds["x"]])
    assert found.stage == "onnxruntime" and "once onnxruntime optimises it" in found.sentence()


class BadShape(Rule):
    """Takes Tanh for a Reshape to two rows, which fails at every other size."""

    code, name = "TST002", "bad-shape"
    anchors, emits = frozenset({"Tanh"}), ("Reshape",)

    def examine(self, node, context):
        return node

    def build(self, facts, g):
        value = facts.inputs[0]
        made = g.op("Reshape", value, g.const(np.array([2, 4])), dtype=value.dtype, shape=value.shape)
        return Replacement(old=[facts.outputs[0]], new=[made])


class UnknownOperator(BadShape):
    """Takes Tanh for an operator that nobody has."""

    code, name = "TST003", "unknown-operator"
    emits = ("Tamh",)

    def build(self, facts, g):
        value = facts.inputs[0]
        made = g.op("Tamh", value, domain="com.microsoft", dtype=value.dtype, shape=value.shape)
        return Replacement(old=[facts.outputs[0]], new=[made])


def test_a_step_after_which_the_graph_does_not_run_is_named_without_a_model(source, tmp_path, trusting, monkeypatch):
    monkeypatch.setattr(norms, "RULES", (BadShape(),))
    report = deployml.optimize(source, output=tmp_path / "out.onnx").report
    assert report.verdict == "fail" and (report.culprit.rule, report.culprit.at) == ("TST002", "fourth")
    assert report.culprit.model is None and "Reshape" in report.culprit.note
    assert "do not run value by value" in report.culprit.sentence()


def test_a_graph_that_does_not_load_is_laid_on_its_step(source, monkeypatch, trusting):
    monkeypatch.setattr(norms, "RULES", (UnknownOperator(),))
    found = found_for(source, lambda feeds: Evaluator().prepare(ir.load(source))(feeds))
    assert found.rule == "TST003" and "Tamh" in found.note


def test_validate_keeps_its_verdict_where_the_file_does_not_run_value_by_value(source, tmp_path, deployml_command):
    (tmp_path / "m.unfused.onnx").write_bytes(source.read_bytes())
    wrong = TEXT.replace("[fourth] d = Tanh(c)", "two = Constant<value_ints=[2, 4]>()\n  [fourth] d = Reshape(c, two)")
    onnx.save(parser.parse_model(wrong), tmp_path / "m.onnx")
    ran = deployml_command("validate", tmp_path / "m.onnx", "--against", source, "--json")
    culprit = json.loads(ran.out)["culprit"]
    assert ran.status == 1 and culprit["stage"] == "not bisected" and "Reshape" in culprit["note"]


def test_a_search_that_fails_does_not_take_the_verdict_with_it(source, tmp_path, trusting, monkeypatch):
    monkeypatch.setattr(norms, "RULES", (WrongTanh(),))

    def broken(start):
        raise RuntimeError("the passes did not repeat")

    monkeypatch.setattr(bisect, "_steps", broken)
    report = deployml.optimize(source, output=tmp_path / "out.onnx", html=False).report
    assert report.verdict == "fail" and report.parity.verdict == "fail"
    assert report.culprit.note == "the search for it ended: RuntimeError: the passes did not repeat"
    assert report.culprit.sentence().startswith("the first wrong step was not found; the search")
