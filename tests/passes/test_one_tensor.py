"""Query, key and value that stay parts of one tensor: ATT112 after the packing of projections."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.custom_ops import available, register
from deployml.passes import pipeline
from deployml.passes.evaluate import Evaluator
from deployml.passes.graph import census
from deployml.runtime.target import Target

from .rewriting import outputs

pytestmark = pytest.mark.skipif("cpu" not in available(), reason="not run: the kernels are not built")

WIDTH, HEADS, SIZE = 12, 2, 6
CPU = Target(name="cpu", onnxruntime=(1, 31), opset=20, cpu_isa="avx512")


def block(masked: bool) -> ir.Model:
    """A self-attention over projections with biases that are no zeros."""
    rng = np.random.default_rng(0)
    weights = ", ".join(
        [_constant(f"w{p}", rng.normal(0, 0.5, (WIDTH, WIDTH))) for p in "qkv"]
        + [_constant(f"b{p}", rng.normal(0, 0.5, WIDTH)) for p in "qkv"]
    )
    mask = ", bool[B,1,1,S] m" if masked else ""
    scores = "scores = Where (m, raw, low)" if masked else "scores = Identity (raw)"
    parts = "".join(
        f"  {p}m = MatMul (x, w{p})\n  {p}b = Add ({p}m, b{p})\n  {p}s = Reshape ({p}b, split)\n" for p in "qkv"
    )
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,S,{WIDTH}] x{mask}) => (float[B,S,{WIDTH}] y)
<{weights}, int64[4] split = {{0, 0, {HEADS}, {SIZE}}}, int64[3] merge = {{0, 0, {WIDTH}}},
 float factor = {{{SIZE**-0.5}}}, float low = {{-10000.0}}> {{
{parts}
  qt = Transpose <perm = [0, 2, 1, 3]> (qs)
  kt = Transpose <perm = [0, 2, 3, 1]> (ks)
  vt = Transpose <perm = [0, 2, 1, 3]> (vs)
  product = MatMul (qt, kt)
  raw = Mul (product, factor)
  {scores}
  weights = Softmax <axis = -1> (scores)
  heads = MatMul (weights, vt)
  back = Transpose <perm = [0, 2, 1, 3]> (heads)
  y = Reshape (back, merge)
}}"""
    return ir.from_onnx_text(text)


def _constant(name: str, array: np.ndarray) -> str:
    sizes, numbers = ",".join(map(str, array.shape)), ", ".join(f"{x:.6f}" for x in array.flat)
    return f"float[{sizes}] {name} = {{{numbers}}}"


@pytest.mark.parametrize("masked", [False, True])
def test_projections_with_biases_reach_the_kernel_as_one_tensor(masked: bool) -> None:
    outcome = pipeline.run(block(masked), CPU, options=pipeline.Options(simplify=False), configure=register)
    name = "deployml::FlashAttention_packed" + ("_mask" if masked else "")
    assert census(outcome.model) == {"MatMul": 1, "Add": 1, name: 1}
    (site,) = outcome.journal.sites
    assert (site.status, site.op) == ("fused", name)
    assert [key[1] for key in outcome.model.functions] == [name.split("::")[1]]


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7), (2, 64)])
def test_kernel_and_body_compute_what_the_plain_graph_does(library: bool, batch: int, length: int) -> None:
    fused = pipeline.run(block(True), CPU, options=pipeline.Options(simplify=False), configure=register).model
    rng = np.random.default_rng(length)
    keep = rng.random((batch, 1, 1, length)) < 0.7
    keep[..., 0] = True
    feeds = {"x": rng.normal(size=(batch, length, WIDTH)).astype(np.float32), "m": keep}
    (expected,) = outputs(block(True), feeds)
    (found,) = Evaluator(register if library else None).prepare(fused)(feeds)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * float(np.abs(expected).max()))


@pytest.mark.parametrize("changed", ["q", "v"])
def test_a_part_that_something_else_reads_stays_apart(changed: str) -> None:
    model = block(False)
    read = next(n.outputs[0] for n in model.graph if n.outputs[0].name == f"{changed}b")
    node = ir.node("Neg", [read])
    model.graph.append(node)
    node.outputs[0].name, node.outputs[0].type = "also", ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(node.outputs[0])
    outcome = pipeline.run(model, CPU, options=pipeline.Options(simplify=False), configure=register)
    assert census(outcome.model)["deployml::FlashAttention"] == 1
