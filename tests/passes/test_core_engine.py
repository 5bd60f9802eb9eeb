"""The engine and the pipeline: failing rules, nameless nodes, complete journals, kept interfaces, equal bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deployml.custom_ops import register
from deployml.passes import pipeline
from deployml.passes.graph import Builder
from deployml.passes.journal import Journal
from deployml.passes.rule import Replacement
from deployml.runtime.target import Target

from .core_graphs import (
    CPU,
    Call,
    applied,
    call_model,
    evaluator,
    feeds,
    hand_written,
    model_of,
    run,
    serialized,
)
from .core_rules import OP, WrongRule, rebuilt


class Trouble(RuntimeError):
    """What a broken rule raises."""


def fused(text: str, target: Target = CPU) -> tuple[ir.Model, Journal]:
    outcome = pipeline.run(
        ir.from_onnx_text(text),
        target,
        options=pipeline.Options(simplify=False),
        configure=register,
    )
    return outcome.model, outcome.journal


def broken_examine() -> WrongRule:
    class Broken(WrongRule):
        def examine(self, node, context):  # type: ignore[no-untyped-def]
            raise Trouble("examine fell over")

    return Broken(lambda node, g: rebuilt(node, g))


def broken_build(node: ir.Node, g: Builder) -> Replacement:
    rebuilt(node, g)
    raise Trouble("build fell over")


@pytest.mark.parametrize("rule", (broken_examine(), WrongRule(broken_build)), ids=("examine", "build"))
def test_a_rule_that_raises_is_rolled_back_and_named(rule: WrongRule) -> None:
    model = call_model(Call())
    before = serialized(model)
    journal = applied(model, rule)
    assert serialized(model) == before
    assert not journal.rewrites
    (decline,) = journal.declines
    assert decline.rolled_back and decline.rule == "ZZZ001" and "fell over" in decline.detail


def two_calls(first: str, second: str) -> ir.Model:
    shapes = "float[B,4,S,16] q, float[B,4,S,16] k, float[B,4,S,16] v"
    op = OP.replace("::", ".")
    return model_of(
        f"""<ir_version: 10, opset_import: ["" : 20, "deployml.canonical" : 1]>
g ({shapes}) => (float[B,4,S,16] y, float[B,4,S,16] z) {{
  {first} y = {op} <scale = 0.25> (q, k, v)
  {second} z = {op} <scale = 0.5> (k, q, v)
}}"""
    )


@pytest.mark.parametrize(("first", "second"), (("", ""), ("[same]", "[same]"), ("[one]", "[two]")))
def test_the_failure_of_one_node_does_not_speak_for_another(first: str, second: str) -> None:
    def wrong_on_the_first(node: ir.Node, g: Builder) -> Replacement:
        scale = node.attributes["scale"].value
        return rebuilt(node, g, scale=scale * (1.1 if scale == 0.25 else 1.0), origin="op")

    journal = applied(two_calls(first, second), WrongRule(wrong_on_the_first))
    assert any(d.rolled_back for d in journal.declines)
    assert journal.rewrites


def softmax_sites(count: int, *, named: bool) -> str:
    """Attentions of several forms side by side, none of which share anything but their inputs."""
    body = []
    constants = ", ".join(f"float c{n} = {{{0.1 + 0.05 * n}}}" for n in range(count))
    for n in range(count):
        label = f"[a{n}]" if named else ""
        body += [
            f"kt{n} = Transpose <perm = [0, 1, 3, 2]> (k)",
            f"m{n} = MatMul (q, kt{n})",
            f"s{n} = Mul (m{n}, c{n})",
        ]
        body += [f"x{n} = Sin (s{n})" if n % 2 else f"x{n} = Mul (s{n}, c{n})"]
        body += [f"{label} p{n} = Softmax <axis = -1> (x{n})", f"y{n} = MatMul (p{n}, v)"]
    outputs = ", ".join(f"float[B,4,S,16] y{n}" for n in range(count))
    lines = "\n".join(f"  {line}" for line in body)
    return f"""<ir_version: 9, opset_import: ["" : 20]>
g (float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v) => ({outputs}) <{constants}> {{
{lines}
}}"""


@pytest.mark.parametrize("named", (True, False))
def test_every_attention_ends_in_the_journal_with_status_and_reason(named: bool) -> None:
    _, journal = fused(softmax_sites(6, named=named))
    assert len(journal.sites) == 6
    assert sorted(s.status for s in journal.sites) == ["declined"] * 3 + ["fused"] * 3
    for site in journal.sites:
        assert site.op if site.status == "fused" else site.reason and site.detail
    assert {s.reason for s in journal.sites if s.status == "declined"} == {"no-score-product"}
    assert sorted(s.index for s in journal.sites) == list(range(6))


def test_attention_in_a_branch_is_recorded() -> None:
    body = """  kt = Transpose <perm = [0, 1, 3, 2]> (k)
      s = MatMul (q, kt)
      p = Softmax <axis = -1> (s)
      r = MatMul (p, v)"""
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
g (bool which, float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v) => (float[B,4,S,16] y) {{
  y = If (which) <then_branch = one () => (float[B,4,S,16] r) {{
{body}
    }}, else_branch = two () => (float[B,4,S,16] e) {{ e = Identity (q) }}>
}}"""
    model, journal = fused(text)
    assert len(journal.sites) == 1
    assert journal.sites[0].status == "fused" or journal.sites[0].reason
    given = feeds(model) | {"which": np.array(True)}
    assert np.allclose(run(model, given)[0], run(ir.from_onnx_text(text), given)[0], atol=1e-6)


INTERFACES = {
    "an input that is an output": """<ir_version: 9, opset_import: ["" : 20]>
g (float[B,4,S,16] x) => (float[B,4,S,16] y) { y = Identity (x) }""",
    "one value under two names": """<ir_version: 9, opset_import: ["" : 20]>
g (float[B,4,S,16] x) => (float[B,4,S,16] y, float[B,4,S,16] z) {
  a = Exp (x)
  y = Identity (a)
  z = Identity (a)
}""",
    "transposes that cancel onto an output": """<ir_version: 9, opset_import: ["" : 20]>
g (float[B,4,S,16] x) => (float[B,4,S,16] y, float[B,S,4,16] t) {
  t = Transpose <perm = [0, 2, 1, 3]> (x)
  y = Transpose <perm = [0, 2, 1, 3]> (t)
}""",
    "an output read on": """<ir_version: 9, opset_import: ["" : 20]>
g (float[B,4,S,16] x) => (float[B,4,S,16] a, float[B,4,S,16] b, float[B,4,S,16] c) {
  a = Identity (x)
  b = Identity (a)
  c = Exp (b)
}""",
    "an unread input": """<ir_version: 9, opset_import: ["" : 20]>
g (float[B,4,S,16] x, float[T] unread) => (float[B,4,S,16] y) { y = Exp (x) }""",
    "a constant output": """<ir_version: 9, opset_import: ["" : 20]>
g (float[B,4,S,16] x) => (float[B,4,S,16] y, int64[2] z) {
  y = Exp (x)
  z = Constant <value_ints = [1, 2]> ()
}""",
}


@pytest.mark.parametrize("name", INTERFACES)
def test_inputs_and_outputs_keep_names_and_order(name: str) -> None:
    before = ir.from_onnx_text(INTERFACES[name])
    model, _ = fused(INTERFACES[name])
    for mine, theirs in (
        (model.graph.inputs, before.graph.inputs),
        (model.graph.outputs, before.graph.outputs),
    ):
        assert [v.name for v in mine] == [v.name for v in theirs]
    onnx.checker.check_model(ir.to_proto(model))
    given = feeds(before)
    for a, b in zip(run(before, given), run(model, given), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("opset", (15, 16, 17, 18, 19, 20, 21, 22, 23))
def test_written_attention_is_fused_at_every_opset(opset: int) -> None:
    text = hand_written(mask="B,1,1,T", bias="1,4,S,T", opset=opset)
    model, journal = fused(text, Target(name="cpu", onnxruntime=(1, 31, 1), opset=opset))
    assert [s.status for s in journal.sites] == ["fused"]
    before = ir.from_onnx_text(text)
    given = feeds(before)
    assert np.allclose(evaluator().prepare(model)(given)[0], run(before, given)[0], atol=2e-6)


SCRIPT = """
import sys
import onnx_ir as ir
from deployml.custom_ops import register
from deployml.passes import pipeline
from deployml.runtime.target import Target
target = Target(name="cpu", onnxruntime=(1, 31, 1), opset=20)
model = ir.from_onnx_text(open(sys.argv[1]).read())
options = pipeline.Options(simplify=False)
outcome = pipeline.run(model, target, options=options, configure=register)
sys.stdout.buffer.write(ir.to_proto(outcome.model).SerializeToString())
"""


def test_two_processes_make_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for seed, folder in (("1", "here"), ("4242", "there/deeper")):
        place = tmp_path / folder
        place.mkdir(parents=True)
        (place / "model.txt").write_text(hand_written(mask="B,1,S,T", bias="1,4,S,T"))
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT, "model.txt"]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, timeout=300, check=True)
        made.append(done.stdout)
    assert made[0] == made[1]
    assert b"FlashAttention" in made[0] or b"MultiHeadAttention" in made[0]
    assert str(tmp_path).encode() not in made[0]
