import onnx_ir as ir
import pytest
from onnx import parser

from deployml.passes.picture import before_and_after
from deployml.runtime.html.graph import draw
from deployml.runtime.report import Site

BEFORE = """<ir_version: 10, opset_import: ["" : 20]>
g (float[b,4,s,16] q, float[b,4,16,s] k, float[b,4,s,16] v, float[64,64] w) => (float[b,4,s,16] y) {
  size = Shape (q)
  q1 = Relu (q)
  scores = MatMul (q1, k)
  p = Softmax <axis = -1> (scores)
  y1 = MatMul (p, v)
  y = Neg (y1)
}"""
AFTER = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[b,4,s,16] q, float[b,4,16,s] k, float[b,4,s,16] v, float[64,64] w) => (float[b,4,s,16] y) {
  q1 = Relu (q)
  y1 = com.microsoft.MultiHeadAttention <num_heads = 4> (q1, k, v)
  y = Neg (y1)
}"""


def graph(text: str, modules: dict[str, str]) -> ir.Model:
    model = ir.serde.deserialize_model(parser.parse_model(text))
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
        if node.outputs[0].name in modules:
            node.metadata_props["deployml.module"] = modules[node.outputs[0].name]
    return model


SITE = Site(
    index=0,
    name="node_y1",
    status="fused",
    op="com.microsoft::MultiHeadAttention",
    module_path="layer.0.attention",
)
PATH = "layer.0.attention"


def ops(picture) -> list[str]:
    return [n.op for n in picture.nodes if not n.border]


def test_nodes_belong_together_by_their_module():
    inside = {"scores": PATH, "p": f"{PATH}.softmax", "y1": PATH, "q1": "layer.0.norm", "y": "layer.0.out"}
    before, after = before_and_after(graph(BEFORE, inside), graph(AFTER, inside), (SITE,))
    assert ops(before) == ["MatMul", "Softmax", "MatMul"]
    assert ops(after) == ["MultiHeadAttention"]
    assert [n.detail for n in after.nodes if n.core] == ["4 heads"]
    assert [n.op for n in after.nodes if n.border] == ["Relu", "k", "v", "Neg"]
    assert "Shape" not in ops(before)


def test_nodes_that_no_module_claims_are_drawn_with_their_neighbours():
    inside = {"y1": PATH, "y": "layer.0.out"}
    _, after = before_and_after(graph(BEFORE, inside), graph(AFTER, inside), (SITE,))
    assert ops(after) == ["Relu", "MultiHeadAttention"]


def test_a_graph_without_paths_shows_the_surroundings_of_the_site():
    site = Site(index=0, name="node_y1", status="fused", op="com.microsoft::MultiHeadAttention")
    before, after = before_and_after(graph(BEFORE, {}), graph(AFTER, {}), (site,))
    assert ops(after) == ["Relu", "MultiHeadAttention", "Neg"]
    assert ops(before) == ["Relu", "MatMul", "Softmax", "MatMul", "Neg"]
    assert "Softmax" in draw(before)


@pytest.mark.parametrize("sites", [(), (Site(index=0, name="gone", status="fused"),)])
def test_nothing_to_draw_is_none(sites):
    assert before_and_after(graph(BEFORE, {}), graph(AFTER, {}), sites) == (None, None)


def test_pictures_are_the_same_each_time():
    first = before_and_after(graph(BEFORE, {}), graph(AFTER, {}), (SITE,))
    assert first == before_and_after(graph(BEFORE, {}), graph(AFTER, {}), (SITE,))
    assert draw(first[0]) == draw(first[0])
