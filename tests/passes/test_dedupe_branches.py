import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from deployml.passes.cleanup.dedupe import deduplicate

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n] x, bool wanted) => (float[n] y) {
  a = Relu (x)
  y = If (wanted) <
    then_branch = then_graph () => (float[n] one) { one = Neg (a) },
    else_branch = else_graph () => (float[n] two) { two = Identity (SOURCE) }
  >
}"""


@pytest.mark.parametrize("source", ["a", "x"])
def test_a_branch_that_hands_on_an_outer_value_keeps_its_node(source):
    model = ir.serde.deserialize_model(parser.parse_model(TEXT.replace("SOURCE", source)))
    deduplicate(model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert [n.op_type for n in model.graph] == ["Relu", "If"]


def test_other_identities_go():
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { a = Relu(x) y = Identity(a) }'
    model = ir.serde.deserialize_model(parser.parse_model(text))
    assert deduplicate(model) == 1
    assert model.graph.outputs[0].name == "y"
