"""Cutting sub-graphs out: what is an input, what comes along, and names that depend on structure alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes import region as regions
from deployml.passes.evaluate import Evaluator
from deployml.passes.region import cut_out, to_model

from .core_graphs import evaluator, model_of


def graph(body: str, *, inputs: str = "float[B,S,8] x, int64[B,S] t", outputs: str = "float[B,S,8] y") -> ir.Model:
    return model_of(
        f"""<ir_version: 9, opset_import: ["" : 20]>
g ({inputs}) => ({outputs}) <float two = {{2}}, int64[3] to = {{0,0,8}}, float[8] w = {{1,2,3,4,5,6,7,8}}> {{
{body}
}}"""
    )


def value(model: ir.Model, name: str) -> ir.Value:
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [o for n in model.graph for o in n.outputs]
    return next(v for v in values if v.name == name)


def names(values: object) -> list[str]:
    return [str(v.name) for v in values]  # type: ignore[attr-defined]


CHAIN = "  a = Mul (x, two)\n  b = Add (a, w)\n  c = Exp (b)\n  y = Add (c, a)"


def test_a_region_reaches_to_the_graph_inputs_and_names_its_constants() -> None:
    model = graph(CHAIN)
    found = cut_out([value(model, "y")], [])
    assert [n.op_type for n in found.nodes] == ["Mul", "Add", "Exp", "Add"]
    assert names(found.inputs) == ["x"] and sorted(names(found.constants)) == ["two", "w"]


def test_a_cut_value_is_an_input_and_what_is_above_it_stays_out() -> None:
    model = graph(CHAIN)
    found = cut_out([value(model, "y")], [value(model, "a")])
    assert [n.op_type for n in found.nodes] == ["Add", "Exp", "Add"]
    assert names(found.inputs) == ["a"]


def test_a_value_read_twice_is_cut_once_and_copied_once() -> None:
    model = graph("  a = Mul (x, two)\n  b = Mul (a, a)\n  y = Add (b, a)")
    found = cut_out([value(model, "y"), value(model, "b")], [])
    assert len(found.nodes) == 3
    assert names(found.inputs) == ["x"] and names(found.outputs) == ["y", "b"]


def test_an_output_that_is_itself_cut_needs_no_node() -> None:
    model = graph(CHAIN)
    found = cut_out([value(model, "a")], [value(model, "a")])
    assert not found.nodes and names(found.inputs) == ["a"]


def test_a_graph_input_may_be_the_result() -> None:
    model = graph(CHAIN)
    found = cut_out([value(model, "x")], [])
    assert not found.nodes and names(found.inputs) == ["x"]


def test_of_a_tensor_whose_shape_alone_is_read_only_the_shape_comes_along() -> None:
    body = "  big = Exp (x)\n  n = Shape (big)\n  z = ConstantOfShape (n)\n  f = Cast <to = 1> (z)\n  y = Add (f, w)"
    found = cut_out([value(m := graph(body), "y")], [])
    assert "Exp" not in [n.op_type for n in found.nodes]
    assert names(found.inputs) == ["big"]
    model, _ = to_model(found, opsets={"": 20}, ir_version=9, inputs=found.inputs, keep=lambda _: True)
    (result,) = evaluator().prepare(model)({"i0": np.zeros((2, 3, 8), np.float32)})
    assert result.shape == (2, 3, 8)
    assert m.graph.num_nodes() == 5


def test_a_shape_of_something_computed_anyway_is_no_input() -> None:
    body = "  n = Shape (big)\n  big = Exp (x)\n  r = Reshape (big, n)\n  y = Add (r, big)"
    model = graph(body.replace("  n = Shape (big)\n  big = Exp (x)", "  big = Exp (x)\n  n = Shape (big)"))
    found = cut_out([value(model, "y")], [])
    assert names(found.inputs) == ["x"]
    order = [n.op_type for n in found.nodes]
    assert order.index("Exp") < order.index("Shape") < order.index("Reshape")


def test_what_an_if_makes_is_an_input() -> None:
    body = """  s = ReduceSum <keepdims = 0> (t)
  zero = Constant <value_int = 0> ()
  more = Greater (s, zero)
  a = If (more) <then_branch = g1 () => (float[B,S,8] p) { p = Exp (x) },
                 else_branch = g2 () => (float[B,S,8] q) { q = Identity (x) }>
  y = Mul (a, two)"""
    model = graph(body)
    found = cut_out([value(model, "y")], [])
    assert [n.op_type for n in found.nodes] == ["Mul"]
    assert names(found.inputs) == ["a"]


def test_structure_alone_decides_the_digest() -> None:
    one = graph(CHAIN)
    renamed = graph(
        CHAIN.replace("a =", "first =").replace("(a", "(first").replace(", a)", ", first)").replace("b", "second")
    )
    other = graph(CHAIN.replace("Exp", "Tanh"))
    constant = graph(CHAIN.replace("(x, two)", "(x, w)"))

    def digest(model: ir.Model) -> str:
        found = cut_out([value(model, "y")], [])
        return to_model(found, opsets={"": 20}, ir_version=9, inputs=found.inputs, keep=lambda _: True)[1]

    assert digest(one) == digest(renamed)
    assert len({digest(one), digest(other), digest(constant)}) == 3


def test_attributes_and_output_choice_are_part_of_the_digest() -> None:
    def digest(body: str, output: str) -> str:
        model = graph(body)
        found = cut_out([value(model, output)], [])
        return to_model(found, opsets={"": 20}, ir_version=9, inputs=found.inputs, keep=lambda _: True)[1]

    body = "  a, b = Split <axis = 2, num_outputs = 2> (x)\n  y = Concat <axis = 2> (b, a)"
    assert digest(body, "a") != digest(body, "b")
    assert digest(body, "y") != digest(body.replace("(b, a)", "(a, b)"), "y")
    assert digest(body, "y") != digest(body.replace("axis = 2> (b", "axis = 1> (b"), "y")


def test_the_copy_computes_what_the_graph_does_and_leaves_it_alone() -> None:
    model = graph(CHAIN)
    before = ir.to_proto(model).SerializeToString()
    found = cut_out([value(model, "y")], [value(model, "a")])
    copy, _ = to_model(found, opsets={"": 20}, ir_version=9, inputs=found.inputs, keep=lambda _: True)
    a = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    (result,) = evaluator().prepare(copy)({"i0": a})
    expected = np.exp(a + np.arange(1, 9, dtype=np.float32)) + a
    assert np.allclose(result, expected, rtol=1e-6)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_value_of_unknown_rank_cannot_be_an_input() -> None:
    model = ir.from_onnx_text("""<ir_version: 9, opset_import: ["" : 20]> g (float x) => (float y) { y = Exp (x) }""")
    for graph_input in model.graph.inputs:
        graph_input.shape = None
    found = cut_out([value(model, "y")], [])
    with pytest.raises(ValueError, match="rank"):
        to_model(found, opsets={"": 20}, ir_version=9, inputs=found.inputs, keep=lambda _: True)


def test_a_region_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "NODE_LIMIT", 20)
    chain = "\n".join(f"  v{n} = Exp (v{n - 1})" for n in range(1, 60)).replace("(v0)", "(x)")
    model = graph(chain + "\n  y = Exp (v59)")
    with pytest.raises(ValueError, match="more than 20 nodes"):
        cut_out([value(model, "y")], [])


def test_a_graph_deeper_than_the_recursion_limit_is_cut() -> None:
    chain = "\n".join(f"  v{n} = Identity (v{n - 1})" for n in range(1, 2500)).replace("(v0)", "(x)")
    model = graph(chain + "\n  y = Identity (v2499)")
    assert len(cut_out([value(model, "y")], []).nodes) == 2500


def test_a_cut_out_model_carries_the_functions_it_calls_and_no_others() -> None:
    """Bodies of own operators are long: a proof that does not call them must not copy and serialise them."""
    model = model_of(
        """<ir_version: 9, opset_import: ["" : 20, "d" : 1]>
g (float[B,S,8] x) => (float[B,S,8] y) {
  a = d.Outer (x)
  y = Exp (a)
}
<domain: "d", opset_import: ["" : 20, "d" : 1]>
Outer (p) => (q) { q = d.Inner (p) }
<domain: "d", opset_import: ["" : 20]>
Inner (p) => (q) { q = Abs (p) }
<domain: "d", opset_import: ["" : 20]>
Idle (p) => (q) { q = Neg (p) }"""
    )
    arguments = {
        "opsets": dict(model.graph.opset_imports),
        "ir_version": 9,
        "keep": lambda _: True,
        "functions": list(model.functions.values()),
    }
    whole = cut_out([value(model, "y")], [])
    made, _ = to_model(whole, inputs=whole.inputs, **arguments)
    assert sorted(name for _, name, _ in made.functions) == ["Inner", "Outer"]
    a = next(iter(model.graph)).outputs[0]
    a.type, a.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["B", "S", 8])
    part = cut_out([value(model, "y")], [a])
    made, _ = to_model(part, inputs=part.inputs, **arguments)
    assert not made.functions


def test_libraries_are_registered_only_where_a_model_needs_them() -> None:
    """Registering one takes far longer than making the session, and a run makes hundreds of sessions."""
    calls = []

    def note(options: object, *, only: frozenset[str]) -> None:
        calls.append(set(only))

    run = Evaluator(note).prepare(graph(CHAIN))
    assert (
        run({"x": np.zeros((1, 2, 8), np.float32), "t": np.zeros((1, 2), np.int64)})[0].shape == (1, 2, 8) and not calls
    )
    foreign = graph("  y = Relu (x)")
    foreign.graph.node(0).domain = "elsewhere"
    foreign.graph.opset_imports["elsewhere"] = 1
    with pytest.raises(Exception, match="elsewhere"):
        Evaluator(note).prepare(foreign)
    assert calls == [{"Relu"}]
