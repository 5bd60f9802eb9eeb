"""Files that others made: names of dimensions that are not ours, older opsets, functions, masks on unusual ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import deployml
from deployml import optimize
from deployml.runtime.report import Site


def run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return deployml.session(path).run(None, feeds)[0]


def optimized(model: onnx.ModelProto, folder: Path, **options: object) -> tuple[Path, tuple[Site, ...]]:
    onnx.save(model, folder / "given.onnx")
    made = optimize(folder / "given.onnx", output=folder / "made.onnx", html=False, bench=False, **options)
    return made.path, made.report.sites


class Block(nn.Module):
    """Masked self-attention over packed projections and a norm, as encoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * 8**-0.5
        low = torch.zeros((), dtype=scores.dtype) + torch.finfo(scores.dtype).min
        scores = scores + (1.0 - mask[:, None, None, :].expand(batch, 1, length, length)) * low
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 16)
        return self.norm(x + self.out(mixed))


@pytest.mark.parametrize("opset", [14, 17, 20])
def test_files_of_torchs_older_exporter_are_fused(opset: int, tmp_path: Path) -> None:
    """Their outputs have names of their own, and lifting an older opset invents names inside."""
    torch.manual_seed(0)
    torch.onnx.export(
        Block().eval(),
        (torch.randn(2, 5, 16), torch.ones(2, 5)),
        tmp_path / "old.onnx",
        input_names=["x", "mask"],
        output_names=["y"],
        dynamic_axes={"x": {0: "b", 1: "s"}, "mask": {0: "b", 1: "s"}, "y": {0: "rows_out"}},
        opset_version=opset,
        dynamo=False,
    )
    path, sites = optimized(onnx.load(tmp_path / "old.onnx"), tmp_path)
    assert [s.status for s in sites] == ["fused"]
    declared = [i.type.tensor_type.shape for i in onnx.load(path).graph.output]
    assert declared[0].dim[0].dim_param == "rows_out"
    rng = np.random.default_rng(0)
    keep = np.ones((3, 9), np.float32)
    keep[1, 6:] = keep[2, :2] = 0
    feeds = {"x": rng.normal(size=(3, 9, 16)).astype(np.float32), "mask": keep}
    expected = onnxruntime.InferenceSession(tmp_path / "old.onnx").run(None, feeds)[0]
    np.testing.assert_allclose(run(path, feeds), expected, atol=2e-6 * float(np.abs(expected).max()))


ATTENTION = """
  kt = Transpose <perm = [0, 1, 3, 2]> (k)
  s0 = MatMul (q, kt)
  half = Constant <value = float {0.25}> ()
  s = Mul (s0, half)
  p = Softmax <axis = -1> (z)
  y = MatMul (p, v)
"""


def attention(before: str, *, inputs: str = "", after: str = "", constants: str = "") -> onnx.ModelProto:
    """Attention over (B, 4, S, 16) with something between scores and softmax."""
    body = ATTENTION.replace("  p = Softmax <axis = -1> (z)\n", f"{before}\n  x = Softmax <axis = -1> (z)\n{after}\n")
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v{inputs}) => (float[B,4,S,16] y)
<{constants}> {{{body}}}""")


GUARD = "  n = IsNaN (x)\n  p = Where (n, zero, x)"


@pytest.mark.parametrize(
    "way",
    [
        "t = Tile (m, reps)",
        "t = Clip (m, , two)",
        "t = Pad (m, none)",
        "t = Sum (m, m)",
        "e = Exp (m)\n  t = Log (e)",
    ],
)
def test_a_mask_that_comes_another_way_is_still_a_mask(way: str, tmp_path: Path) -> None:
    """A row that it forbids whole is 0 in the source; an operator that gives NaN there must say what it assumes."""
    constants = "float two = {2}, float zero = {0}, int64[4] reps = {1, 1, 1, 1}, int64[8] none = {0,0,0,0,0,0,0,0}"
    before = f"  {way}\n  bias = Mul (t, two)\n  z = Add (s, bias)"
    model = attention(before, inputs=", float[B,1,S,T] m", after=GUARD, constants=constants)
    path, sites = optimized(model, tmp_path, disable_fusion=["own-attention"], validate=False)
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=(2, 4, 3, 16)).astype(np.float32) for name in "qkv"}
    feeds["m"] = np.zeros((2, 1, 3, 3), np.float32)
    feeds["m"][0, 0, 1] = -np.inf
    assert np.isfinite(run(path, feeds)).all() or "fully-masked-rows" in sites[0].assumptions


def test_a_table_of_zeros_is_fused(tmp_path: Path) -> None:
    """As in an untrained Swin: recognition reads that nothing is added, the proof must not draw something."""
    zeros = ", ".join(["0"] * 100)
    constants = f"float[1,4,5,5] table = {{{zeros}}}"
    model = attention("  z = Add (s, table)", after="  p = Identity (x)", constants=constants)
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in ((0, "B"), (2, 5)):
            dim = value.type.tensor_type.shape.dim[axis]
            dim.Clear()
            setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)
    _, sites = optimized(model, tmp_path, validate=False)
    assert [s.status for s in sites] == ["fused"]


def test_names_inside_a_function_are_its_own(tmp_path: Path) -> None:
    """The function calls its key length S; the graph calls its query length S. A mask of both must stay."""
    function = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
g (float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v) => (float[B,4,S,16] y) {
  y = local.attend (q, k, v)
}
<opset_import: ["" : 20], domain: "local">
attend (q, k, v) => (y) {
  kh = Tanh (k)
  kt = Transpose <perm = [0, 1, 3, 2]> (kh)
  s0 = MatMul (q, kt)
  half = Constant <value = float {0.25}> ()
  s = Mul (s0, half)
  zero = Constant <value = int64 {0}> ()
  one = Constant <value = int64 {1}> ()
  last = Constant <value = int64[1] {-1}> ()
  none = Constant <value = int64[0] {}> ()
  ls = Shape <start = 2, end = 3> (q)
  lt = Shape <start = 2, end = 3> (kh)
  rows = Reshape (ls, none)
  keys = Reshape (lt, none)
  i0 = Range (zero, rows, one)
  j = Range (zero, keys, one)
  ahead = Sub (lt, ls)
  i1 = Add (i0, ahead)
  i = Unsqueeze (i1, last)
  keep = LessOrEqual (j, i)
  low = Constant <value = float {-10000.0}> ()
  z = Where (keep, s, low)
  p = Softmax <axis = -1> (z)
  y = MatMul (p, v)
}"""
    model = onnx.parser.parse_model(function)
    for name, shape in (("kh", ["B", 4, "S", 16]), ("s0", ["B", 4, "L", "S"]), ("z", ["B", 4, "L", "S"])):
        info = model.functions[0].value_info.add(name=name)
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        for size in shape:
            info.type.tensor_type.shape.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})
    path, _ = optimized(model, tmp_path, validate=False)
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=(2, 4, n, 16)).astype(np.float32) for name, n in (("q", 3), ("k", 5), ("v", 5))}
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    np.testing.assert_allclose(run(path, feeds), expected, atol=3e-6)


def test_a_projection_put_in_order_is_stored(tmp_path: Path) -> None:
    """Also one that is too large to be folded as a constant."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,S,256] x) => (float[B,S,256] y)
<int64[5] heads = {0, 0, 4, 3, 64}, int64[3] flat = {0, 0, 256}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}> {
  wide = MatMul (x, w)
  cut = Reshape (wide, heads)
  q3 = Gather <axis = 3> (cut, i0)
  k3 = Gather <axis = 3> (cut, i1)
  v3 = Gather <axis = 3> (cut, i2)
  q = Transpose <perm = [0, 2, 1, 3]> (q3)
  k = Transpose <perm = [0, 2, 3, 1]> (k3)
  v = Transpose <perm = [0, 2, 1, 3]> (v3)
  s0 = MatMul (q, k)
  eighth = Constant <value = float {0.125}> ()
  s = Mul (s0, eighth)
  p = Softmax <axis = -1> (s)
  o = MatMul (p, v)
  t = Transpose <perm = [0, 2, 1, 3]> (o)
  y = Reshape (t, flat)
}""")
    weight = rng.normal(0, 0.1, (256, 768)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path, _ = optimized(model, tmp_path, validate=False)
    made = onnx.load(path)
    assert [n.op_type for n in made.graph.node] == ["MatMul", "FlashAttention_packed"]
    feeds = {"x": rng.normal(size=(2, 7, 256)).astype(np.float32)}
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    np.testing.assert_allclose(run(path, feeds), expected, atol=2e-6 * float(np.abs(expected).max()))
