"""Clean-up passes: weights are not copied, symbols are not lost, fused nodes are not touched."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes import norms
from deployml.passes.bodies import add_bodies
from deployml.passes.cleanup import deduplicate, fold, infer_shapes, simplify
from deployml.passes.example_text import graph_text
from deployml.passes.graph import census, dims, op_name

from .rewriting import outputs, parsed, rewrite


def with_weight(body: str, results: str, shape: tuple[int, int] = (1024, 128)) -> ir.Model:
    """A model whose initializer ``w`` is large enough that nothing may copy it."""
    rows, columns = shape
    model = ir.from_onnx_text(
        graph_text(f"int64[B,S] ids, float[B,S,{columns}] x, float[{rows},{columns}] w", results, body)
    )
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name="w")
    model.graph.register_initializer(weight)
    return model


def test_a_weight_is_transposed_when_it_is_written_and_not_before() -> None:
    model = with_weight("t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)", "float[B,S,1024] y")
    before = model.graph.initializers["w"].const_value
    fold(model)
    assert census(model) == {"MatMul": 1}
    (weight,) = [v.const_value for v in model.graph.initializers.values() if v.const_value.size > 1]
    assert isinstance(weight, ir.LazyTensor)
    assert np.array_equal(weight.numpy(), before.numpy().T)
    assert np.array_equal(np.frombuffer(weight.tobytes(), np.float32).reshape(128, 1024), before.numpy().T)


def test_a_tied_embedding_is_stored_once() -> None:
    model = with_weight("e = Gather (w, ids) t = Transpose <perm = [1, 0]> (w) y = MatMul (e, t)", "float[B,S,1024] y")
    fold(model)
    assert census(model) == {"Gather": 1, "MatMul": 1, "Transpose": 1}
    assert sum(v.const_value.size > 1000 for v in model.graph.initializers.values()) == 1


def test_symbols_are_followed_through_computed_shapes() -> None:
    model = ir.from_onnx_text(
        graph_text(
            "float[B,S,64] x",
            "float[B,4,S,16] y",
            "n = Shape <start = 0, end = 2> (x) t = Concat <axis = 0> (n, tail) h = Reshape (x, t) "
            "y = Transpose <perm = [0, 2, 1, 3]> (h)",
            constants="int64[2] tail = {4, 16}",
        )
    )
    infer_shapes(model)
    reshaped = next(n for n in model.graph if n.op_type == "Reshape").outputs[0]
    assert dims(reshaped) == ("B", "S", 4, 16)


def test_known_symbols_are_never_replaced() -> None:
    model = parsed("float[B,S,8] x", "float[B,T,8] y", "h = Neg (x) y = Abs (h)")
    next(iter(model.graph)).outputs[0].shape = ir.Shape(["B", "special", 8])
    infer_shapes(model)
    assert dims(next(iter(model.graph)).outputs[0]) == ("B", "special", 8)
    assert dims(model.graph.outputs[0]) == ("B", "T", 8)


def test_equal_nodes_and_constants_become_one() -> None:
    model = parsed(
        "float[B,8] x",
        "float[B,8] y",
        "a = Mul (x, c) b = Mul (x, d) y = Add (a, b)",
        constants="float c = {2}, float d = {2}",
    )
    assert deduplicate(model) == 1
    assert census(model) == {"Add": 1, "Mul": 1}
    assert np.array_equal(outputs(model, {"x": np.ones((2, 8), np.float32)})[0], np.full((2, 8), 4, np.float32))


def test_inputs_with_default_values_are_never_merged_and_no_fuss_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
g (float[B] x, float a, float b) => (float[B] y) <float a = {1}, float b = {1}> {
  p = Mul (x, a)
  q = Mul (x, b)
  y = Add (p, q)
}""")
    deduplicate(model)
    assert census(model) == {"Add": 1, "Mul": 2}
    assert [v.name for v in model.graph.inputs] == ["x", "a", "b"]
    assert capsys.readouterr().err == ""


def test_a_quantised_product_says_its_shape() -> None:
    model = parsed(
        "float[B,S,64] x, uint8[32,2,16] w, float[64] scales",
        "float[B,32,S] y",
        "m = com.microsoft.MatMulNBits <K=64, N=32, bits=4, block_size=32> (x, w, scales)"
        " y = Transpose <perm = [0,2,1]> (m)",
    )
    (product,) = [n for n in model.graph if n.op_type == "MatMulNBits"]
    assert dims(product.outputs[0]) == ("B", "S", 32)
    assert product.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("op", "disabled"),
    [("com.microsoft::SkipLayerNormalization", ("NRM006",)), ("deployml::SkipNormalization", ())],
)
def test_onnxsim_keeps_fused_nodes_origin_and_shapes(op: str, disabled: tuple[str, ...]) -> None:
    model = parsed(
        "float[B,S,8] x, float[B,S,8] k",
        "float[B,S,8] y",
        "t = Add (x, k) n = LayerNormalization <axis = -1> (t, w) s = Reshape (n, one) o = Reshape (s, two) "
        "y = Neg (o)",
        constants="float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}, int64[3] one = {0, 0, -1}, int64[3] two = {0, 0, 8}",
    )
    rewrite(model, norms.RULES, onnxruntime=(1, 29), disabled=disabled)
    add_bodies(model)
    fused = next(n for n in model.graph if op_name(n) == op)
    fused.metadata_props["deployml.source"] = "model.py:12"
    simplified, note = simplify(model)
    assert note is None
    counts = census(simplified)
    assert counts[op] == 1 and counts.get("Reshape", 0) < 2
    again = next(n for n in simplified.graph if op_name(n) == op)
    assert again.metadata_props["deployml.source"] == "model.py:12"
    assert dims(simplified.graph.inputs[0]) == ("B", "S", 8)


def test_onnxsim_that_takes_too_long_leaves_the_model_alone() -> None:
    model = parsed("float[B,8] x", "float[B,8] y", "y = Neg (x)")
    same, note = simplify(model, timeout=0.01)
    assert same is model
    assert note is not None and "stopped" in note
