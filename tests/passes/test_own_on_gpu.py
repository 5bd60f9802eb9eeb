"""When an attention goes to the project's own operator on a GPU: where its library is, and nothing better is left."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml.custom_ops import library_path, register
from deployml.passes.attention import lower
from deployml.passes.attention.example_texts import attention_text
from deployml.passes.capability import capability
from deployml.passes.cleanup import infer_shapes
from deployml.passes.engine import Engine
from deployml.passes.evaluate import Evaluator
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.passes.rule import Context
from deployml.runtime.target import Target

OWN = "deployml::FlashAttention"
pytestmark = pytest.mark.skipif(library_path("cpu") is None, reason="not run: the CPU operator library is not built")


def site(text, target, monkeypatch, *, built=True, version=(1, 31), dtype="float16"):
    """The record of the one attention of a text, lowered for a target."""
    monkeypatch.setattr(lower, "built_for", lambda name: built)
    model = ir.from_onnx_text(text.text.replace("float[", f"{dtype}["))
    infer_shapes(model)
    journal = Journal()
    context = Context(model, Target(name=target, onnxruntime=version, opset=21))
    lower.lower_attention(Engine(context, Prover(model, Evaluator(register)), journal))
    return journal.sites[0]


@pytest.mark.parametrize("facts", [{"softcap": 30.0}, {"bias": "1,1,S,T"}, {"weights": True}])
def test_taken_on_cuda_where_flash_is_lost(facts, monkeypatch):
    found = site(attention_text(**facts), "cuda", monkeypatch)
    assert (found.status, found.kernel) == ("fused", "compiled")
    assert found.op.startswith(OWN)


def test_onnxruntimes_own_flash_comes_first(monkeypatch):
    assert site(attention_text(), "cuda", monkeypatch).op == "com.microsoft::MultiHeadAttention"


def test_float32_goes_to_it_only_where_nothing_else_does(monkeypatch):
    with_bias, capped = attention_text(bias="1,1,S,T"), attention_text(softcap=30.0)
    assert site(with_bias, "cuda", monkeypatch, dtype="float").op == "com.microsoft::MultiHeadAttention"
    assert site(capped, "cuda", monkeypatch, dtype="float").op == OWN


def test_not_taken_without_its_library(monkeypatch):
    with_bias = attention_text(bias="1,1,S,T")
    assert site(with_bias, "cuda", monkeypatch, built=False).op == "com.microsoft::MultiHeadAttention"
    assert site(attention_text(softcap=30.0), "cuda", monkeypatch, built=False).reason == "needs-custom-op"


def test_not_taken_on_rocm_after_its_provider_went(monkeypatch):
    capped = attention_text(softcap=30.0)
    assert site(capped, "rocm", monkeypatch, version=(1, 22, 2)).op == OWN
    assert site(capped, "rocm", monkeypatch, version=(1, 23)).status == "declined"
    assert capability(OWN, "rocm", (1, 22, 9)) is not None
    assert capability(OWN, "rocm", (1, 23)) is None


def test_head_sizes_end_where_the_kernels_do(monkeypatch):
    assert site(attention_text(softcap=9.0, head_size=256), "cuda", monkeypatch).op == OWN
    assert site(attention_text(softcap=9.0, head_size=264), "cuda", monkeypatch).status == "declined"
