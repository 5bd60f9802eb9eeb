"""A bias looked up by relative position is read as a table: every distance right, and nothing else taken for one."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from deployml.passes.attention.relative import relative_table
from deployml.passes.cleanup import infer_shapes


def model(chain: str, *, look_up: str = "Gather <axis = 0> (weight, index)", start: str = "zero") -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
g (float[B,4,S,8] q, float[32,4] weight, int64 shift) => (bias)
<int64 zero = {{0}}, int64 one = {{1}}, int64 eight = {{8}}, int64 sixteen = {{16}}, int64[1] first = {{0}},
 int64[1] second = {{1}}, float eight_f = {{8.0}}, float slope = {{2.9}}, int64 fifteen = {{15}}> {{
  length_1 = Shape <start = 2, end = 3> (q)
  length = Squeeze (length_1)
  range = Range (zero, length, one)
  from = Range ({start}, length, one)
  column = Unsqueeze (from, second)
  row = Unsqueeze (range, first)
  d = Sub (row, column)
{chain}
  found = {look_up}
  turned = Transpose <perm = [2, 0, 1]> (found)
  bias = Unsqueeze (turned, first)
}}"""
    made = ir.from_proto(onnx.parser.parse_model(text))
    infer_shapes(made)
    return made


BUCKETS = """
  d_abs = Abs (d)
  wide = Cast <to = 1> (d_abs)
  scaled = Div (wide, eight_f)
  logged = Log (scaled)
  share = Mul (logged, slope)
  far = Cast <to = 7> (share)
  farther = Add (far, eight)
  size = Shape (farther)
  cap = Expand (fifteen, size)
  farmin = Min (farther, cap)
  near = Less (d_abs, eight)
  bucket = Where (near, d_abs, farmin)
  right = Greater (d, zero)
  side = Cast <to = 7> (right)
  half = Mul (side, sixteen)
  index = Add (half, bucket)
"""


def table_of(made: ir.Model):
    bias = made.graph.outputs[0]
    query = made.graph.inputs[0]
    return relative_table(bias, query, query)


def test_every_distance_has_its_bucket():
    made = model(BUCKETS)
    table = table_of(made)
    assert table is not None and table.weight.name == "weight"
    reach = len(table.buckets) // 2
    assert 60 < reach < 200
    weight = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
    feeds = {"q": np.zeros((1, 4, 300, 8), np.float32), "weight": weight, "shift": np.array(0)}
    bias = ReferenceEvaluator(ir.to_proto(made)).run(None, feeds)[0]
    distance = np.arange(300) - np.arange(300)[:, None]
    expected = weight[np.array(table.buckets)[np.clip(distance, -reach, reach) + reach]].transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(bias, expected)


@pytest.mark.parametrize(
    ("chain", "rest"),
    [
        (BUCKETS.replace("Add (half, bucket)", "Add (row, bucket)"), {}),  # also of the key's own place
        (BUCKETS.replace("Expand (fifteen, size)", "Mul (length, one)"), {}),  # of the length
        (BUCKETS.replace("Less (d_abs, eight)", "Less (d_abs, shift)"), {}),  # of an input
        ("  index = Mod (d, sixteen)\n", {}),  # never settles
        (BUCKETS, {"start": "shift"}),  # positions begin somewhere else
        (BUCKETS, {"look_up": "Gather <axis = 1> (weight, index)"}),
    ],
)
def test_what_does_not_depend_on_the_distance_alone_is_no_table(chain, rest):
    assert table_of(model(chain, **rest)) is None


def test_keys_before_the_query_read_the_same_table_turned_round():
    turned = table_of(model(BUCKETS.replace("right = Greater (d, zero)", "right = Less (d, zero)")))
    plain = table_of(model(BUCKETS))
    assert turned is not None and plain is not None
    assert turned.buckets == tuple(reversed(plain.buckets))
