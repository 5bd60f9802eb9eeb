"""Files of others in half precision or quantized: what they are compared with, and that their attention is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import deployml

B, S, WIDTH = 2, 5, 64


def projected(name: str, kind: str) -> str:
    """``x`` times a weight, in heads; quantized as onnxruntime's dynamic quantization writes it."""
    product = f"{name}p = MatMul (x, {name}w)"
    if kind == "quantized":
        product = (
            f"{name}p8 = MatMulInteger (x8, {name}w, zero) {name}pf = Cast <to = 1> ({name}p8) "
            f"{name}p = Mul ({name}pf, step)"
        )
    return f"{product} {name}r = Reshape ({name}p, split) {name} = Transpose <perm = [0, 2, 1, 3]> ({name}r)"


def model_of(kind: str) -> ir.Model:
    """One attention of 4 heads of 16 whose weights are random; "half", "half inside" or "quantized"."""
    weight = {"quantized": "int8"}.get(kind, "float16")
    inside = {"half inside": "x = Cast <to = 10> (given)", "half": "x = Identity (given)"}
    begin = inside.get(kind, "x = Identity (given) x8, step, zero = DynamicQuantizeLinear (x)")
    inputs = "float16" if kind == "half" else "float"
    end = "y = Cast <to = 1> (o)" if kind == "half inside" else "y = Identity (o)"
    body = f"""{begin} {" ".join(projected(name, kind) for name in "qkv")}
        kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, kt) p = Softmax <axis = -1> (s) c = MatMul (p, v)
        ct = Transpose <perm = [0, 2, 1, 3]> (c) o = Reshape (ct, join) {end}"""
    weights = ", ".join(f"{weight}[{WIDTH}, {WIDTH}] {name}w" for name in "qkv")
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g ({inputs}[B,S,{WIDTH}] given, {weights}) => ({inputs}[B,S,{WIDTH}] y)
        <int64[4] split = {{0, -1, 4, 16}}, int64[3] join = {{0, -1, {WIDTH}}}> {{ {body} }}"""
    model = ir.from_onnx_text(text)
    rng = np.random.default_rng(0)
    for value in model.graph.inputs[1:]:
        drawn = rng.standard_normal((WIDTH, WIDTH)) * 0.15
        array = (drawn * 100).astype(np.int8) if kind == "quantized" else drawn.astype(np.float16)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    del model.graph.inputs[1:]
    return model


@pytest.mark.parametrize("kind", ["half", "half inside", "quantized"])
def test_attention_is_fused_and_held_against_what_the_file_means(tmp_path: Path, kind: str) -> None:
    ir.save(model_of(kind), tmp_path / "given.onnx")
    report = deployml.optimize(tmp_path / "given.onnx", output=tmp_path / "m.onnx", html=False).report
    assert (report.verdict, [site.status for site in report.sites]) == ("pass", ["fused"])
    assert report.parity is not None and ("float32" in report.parity.reference) == (kind != "quantized")
    if kind == "half inside":
        assert "half precision inside" in report.parity.comparisons[-1].basis
    again = deployml.validate(tmp_path / "m.onnx", against=tmp_path / "given.onnx")
    assert again.verdict == "pass"


def test_sizes_that_onnx_made_up_are_no_sizes(tmp_path: Path) -> None:
    model = model_of("half inside")
    for number, node in enumerate(model.graph):
        if node.op_type in ("Reshape", "Transpose"):
            node.outputs[0].shape = ir.Shape([f"unk__{number}{axis}" for axis in range(4)])
    report = deployml.optimize(model, output=tmp_path / "m.onnx", html=False, validate=False).report
    assert [site.status for site in report.sites] == ["fused"]
