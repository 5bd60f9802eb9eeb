"""Models that onnxruntime's NchwcTransformer ends the process on: told from their bytes, opened without it."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import parser

from deployml.runtime.load_crash import optimizers_to_avoid

AVOIDED = ("NchwcTransformer",)


def model(body: str, signature: str, functions: str = "") -> onnx.ModelProto:
    domains = '"": 20, "l": 1, "deployml": 1'
    text = f"<ir_version: 10, opset_import: [{domains}]> g {signature} {{ {body} }} {functions}"
    return parser.parse_model(text)


def turned(kind: str, to: int, out: str) -> onnx.ModelProto:
    """Transpose, Cast, MatMul: what crashes."""
    body = f"t = Transpose <perm = [1, 0, 2]> (x) c = Cast <to = {to}> (t) y = MatMul (c, w)"
    return model(body, f"({kind}[b,s,4] x, {out}[4,5] w) => ({out}[s,b,5] y)")


DANGEROUS = {
    "float16 input": turned("float16", 1, "float"),
    "int32 input": turned("int32", 1, "float"),
    "float64 input": turned("double", 1, "float"),
    "cast on the way": model(
        "h = Cast <to = 10> (x) t = Transpose <perm = [1, 0, 2]> (h) c = Cast <to = 1> (t) y = MatMul (c, w)",
        "(float[b,s,4] x, float[4,5] w) => (float[s,b,5] y)",
    ),
    "behind an Identity": model(
        "t = Transpose <perm = [1, 0, 2]> (x) i = Identity (t) c = Cast <to = 1> (i) y = MatMul (c, w)",
        "(int32[b,s,4] x, float[4,5] w) => (float[s,b,5] y)",
    ),
    "in a function": model(
        "y = l.F (x, w)",
        "(int32[b,s,4] x, float[4,5] w) => (float[s,b,5] y)",
        '<domain: "l", opset_import: ["": 20]> F (x, w) => (y)'
        " { t = Transpose <perm = [1, 0, 2]> (x) c = Cast <to = 1> (t) y = MatMul (c, w) }",
    ),
    "in a branch": model(
        "y = If (k) <then_branch = a () => (float[s,b,5] u)"
        " { t = Transpose <perm = [1, 0, 2]> (x) c = Cast <to = 1> (t) u = MatMul (c, w) },"
        " else_branch = e () => (float[s,b,5] z) { t2 = Transpose <perm = [1, 0, 2]> (f) z = MatMul (t2, w) }>",
        "(bool k, int32[b,s,4] x, float[b,s,4] f, float[4,5] w) => (float[s,b,5] y)",
    ),
}

HALF_WEIGHT = model(
    "t = Transpose <perm = [1, 0, 2]> (x) y = MatMul (t, w)", "(float16[b,s,4] x) => (float16[s,b,5] y)"
)
HALF_WEIGHT.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 5), np.float16), "w"))
DANGEROUS["float16 throughout"] = HALF_WEIGHT

SAFE = {
    "float32": model(
        "t = Transpose <perm = [1, 0, 2]> (x) y = MatMul (t, w)", "(float[b,s,4] x, float[4,5] w) => (float[s,b,5] y)"
    ),
    "a mask that is cast": model("c = Cast <to = 1> (x) y = Sub (c, w)", "(int64[b,s] x, float w) => (float[b,s] y)"),
    "an own operator's function": model(
        "y = deployml.F (x, w)",
        "(float[b,s,4] x, float[4,5] w) => (float[s,b,5] y)",
        '<domain: "deployml", opset_import: ["": 20]> F (x, w) => (y)'
        " { t = Transpose <perm = [1, 0, 2]> (x) c = Cast <to = 1> (t) y = MatMul (c, w) }",
    ),
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_model_in_danger_is_told_from_its_bytes_and_opens(name, tmp_path):
    """In a process of its own: where it is opened with all optimizers on x86-64, it ends that process."""
    data = DANGEROUS[name].SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert optimizers_to_avoid(data) == optimizers_to_avoid(path) == AVOIDED
    code = f"from deployml.runtime.session import open_session; open_session({str(path)!r}); print('opened')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ran.stdout.strip() == "opened", ran.stderr[-2000:]


@pytest.mark.parametrize("name", SAFE)
def test_other_models_keep_every_optimizer(name):
    assert optimizers_to_avoid(SAFE[name].SerializeToString()) == ()


@pytest.mark.parametrize("cut", [1, 7, 40, 90])
def test_what_is_no_model_is_left_to_onnxruntime(cut, tmp_path):
    data = HALF_WEIGHT.SerializeToString()
    assert optimizers_to_avoid(b"\xff" * 40) == ()
    assert optimizers_to_avoid(tmp_path / "gone.onnx") == ()
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert optimizers_to_avoid(tmp_path / "empty.onnx") == ()
    assert optimizers_to_avoid(data[:cut]) in ((), AVOIDED)


def test_float16_in_a_constant_is_seen():
    constant = model(
        "c = Constant <value = float16 {15360}> () d = Cast <to = 1> (c) y = Add (x, d)", "(float x) => (float y)"
    )
    assert optimizers_to_avoid(constant.SerializeToString()) == AVOIDED


def test_weights_are_passed_over(tmp_path):
    """A large weight costs nothing: its bytes are not read."""
    big = model("y = MatMul (x, w)", "(float[b,512] x) => (float[b,512] y)")
    big.graph.initializer.append(onnx.numpy_helper.from_array(np.full((512, 512), 1.5, np.float32), "w"))
    data = big.SerializeToString()
    assert len(data) > 1 << 20 and optimizers_to_avoid(data) == ()
