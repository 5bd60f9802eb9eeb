"""Half-precision sites: proven in float32 where the CPU has no kernel, as sharply as any other."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml import custom_ops
from deployml.passes import pipeline
from deployml.passes.attention.example_texts import attention_text
from deployml.passes.attention.lower import lower_attention
from deployml.passes.cleanup import fold, infer_shapes
from deployml.passes.engine import Engine
from deployml.passes.evaluate import Evaluator
from deployml.passes.graph import Builder, census
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.passes.rule import Context, Replacement
from deployml.passes.whole import difference
from deployml.runtime.target import Target, TargetName

from .core_graphs import applied
from .core_rules import WRONG, WrongRule, rebuilt

KINDS = {
    "plain": {},
    "mask": {"mask": "B,1,S,T"},
    "bias": {"bias": "B,1,S,T"},
    "causal": {"causal": "upper_left"},
    "grouped": {"causal": "upper_left", "kv_heads": 2},
}


def _site(dtype: str, kind: str, opset: int = 21) -> ir.Model:
    text = attention_text(**KINDS[kind], opset=opset).text  # type: ignore[arg-type]
    model = ir.from_onnx_text(text.replace("float[", f"{dtype}["))
    infer_shapes(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("target", "dtype"),
    [("cpu", "bfloat16"), ("cuda", "float16"), ("cuda", "bfloat16"), ("rocm", "float16"), ("portable", "bfloat16")],
)
def test_half_precision_sites_are_proven_and_fused(target: TargetName, dtype: str, kind: str) -> None:
    opset = 23 if target == "portable" else 21
    model, journal = _site(dtype, kind, opset), Journal()
    context = Context(model, Target(name=target, onnxruntime=(1, 31, 1), opset=opset))
    lower_attention(Engine(context, Prover(model, Evaluator(custom_ops.register)), journal))
    (site,) = journal.sites
    assert site.status == "fused", (site.reason, site.detail)
    assert site.error is not None and site.granted is not None and site.error <= site.granted


@pytest.mark.parametrize("wrong", ["scale", "heads-permuted", "key-for-value", "zeros"])
def test_a_wrong_rewrite_of_a_bfloat16_site_is_rolled_back(wrong: str) -> None:
    journal = applied(_site("bfloat16", "mask"), WrongRule(WRONG[wrong]))
    assert not journal.rewrites
    assert [d.reason for d in journal.declines if d.rolled_back] == ["not-equal"]


def test_a_rewrite_to_another_type_is_not_proven_in_float32() -> None:
    def widened(node: ir.Node, g: Builder) -> Replacement:
        made = rebuilt(node, g)
        wide = g.op("Cast", made.new[0], to=ir.DataType.FLOAT, dtype=ir.DataType.FLOAT)
        return Replacement(old=made.old, new=[wide])

    journal = applied(_site("bfloat16", "plain"), WrongRule(widened))
    assert not journal.rewrites and any(d.rolled_back for d in journal.declines)


_SQUASHED = """<ir_version: 10, opset_import: ["" : 21]>
g ({dtype}[N,4] x) => ({dtype}[N,4] y) <float c = {{1.702}}> {{
  half = Cast <to = {to}> (c) like = CastLike (half, x) scaled = Mul (x, like) s = Sigmoid (scaled) t = Mul (x, s)
  turned = Transpose <perm = [0, 1]> (t) y = Mul (turned, like)
}}"""


def _squashed(dtype: str, constant: str = "1.702") -> ir.Model:
    text = _SQUASHED.format(dtype=dtype, to={"float16": 10, "bfloat16": 16}[dtype]).replace("1.702", constant)
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    return model


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_a_constant_that_is_rounded_to_a_half_is_folded(dtype: str) -> None:
    outcome = pipeline.run(_squashed(dtype), Target(name="cpu", onnxruntime=(1, 31, 1), opset=21))
    notes = [p.note for p in outcome.journal.passes if p.name == "fold-constants"]
    assert notes == [None, None]
    assert not {"Cast", "CastLike", "Transpose"} & set(census(outcome.model))


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_halves_that_differ_in_a_constant_are_told_apart(dtype: str) -> None:
    before, same, other = _squashed(dtype), _squashed(dtype), _squashed(dtype, "1.71875")  # the next one in bfloat16
    fold(same)
    assert difference(before, same, Evaluator()) is None
    assert "differs by" in (difference(before, other, Evaluator()) or "")
