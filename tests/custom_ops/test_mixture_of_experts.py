"""MixtureOfExperts against its float64 reference: function body, errors, names."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from deployml.custom_ops import DOMAIN
from deployml.custom_ops.mixture_of_experts import (
    ACTIVATIONS,
    Attributes,
    Signature,
    function_body,
    make_node,
    naive,
    reference,
    signatures,
)
from deployml.custom_ops.mixture_of_experts.cases import CLAMPED, Case, cases, make_inputs
from deployml.custom_ops.mixture_of_experts.check import check_case, one_node_model, run_case
from deployml.passes.bodies import add_bodies
from deployml.runtime.errors import InputError, UnsupportedError

ALL = cases()
FULL = Signature(gated=True, bias=True)


@pytest.mark.parametrize("case", ALL[::3], ids=lambda case: case.name)
def test_function_body_means_the_same(case, options):
    result = check_case(case, options(library=False))
    assert result.passed, (result.error, result.granted)


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("signature", signatures(), ids=lambda s: s.op_type)
def test_function_body_in_other_opsets(signature, opset, options):
    case = Case(name="opset", signature=signature)
    inputs = make_inputs(case)
    ranks = {name: array.ndim for name, array in inputs.items()}
    model = one_node_model(signature, case.attributes, ranks, opset=opset)
    checked = onnx.load_from_string(model)
    for name in ("rows", "features"):  # the checker wants a shape
        checked.graph.output[0].type.tensor_type.shape.dim.add(dim_param=name)
    onnx.checker.check_model(checked, full_check=True)
    session = onnxruntime.InferenceSession(model, options(library=False), providers=["CPUExecutionProvider"])
    exact = reference(signature, case.attributes, inputs)[0]
    np.testing.assert_allclose(session.run(None, inputs)[0], exact, atol=1e-5)


def test_no_function_body_before_opset_18():
    with pytest.raises(UnsupportedError, match="MixtureOfExperts_silu_gated_bias has no function body in opset 17"):
        function_body(FULL, opset=17)


def test_model_carries_the_body_of_what_it_uses_and_no_other():
    signature = Signature(gated=True)
    ranks = {name: array.ndim for name, array in make_inputs(Case(name="body", signature=signature)).items()}
    model = ir.from_proto(onnx.load_from_string(one_node_model(signature, Attributes(), ranks)))
    model.functions.clear()
    add_bodies(model)
    assert [key[:2] for key in model.functions] == [(DOMAIN, "MixtureOfExperts_silu_gated")]
    model.graph.remove(model.graph[0])
    add_bodies(model)
    assert not model.functions


# ------------------------------------------------------------------------------------------------ reference


def by_hand(activation: str, alpha: float, g: float) -> float:
    """The activations, one number at a time."""
    return {
        "silu": lambda: g / (1 + math.exp(-alpha * g)),
        "gelu": lambda: g * math.erfc(-g / 2**0.5) / 2,
        "gelu_tanh": lambda: g / (1 + math.exp(-2 * (2 / math.pi) ** 0.5 * (g + 0.044715 * g**3))),
        "relu": lambda: max(g, 0.0),
        "relu_squared": lambda: max(g, 0.0) ** 2,
    }[activation]()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_reference_agrees_with_the_definition_number_by_number(activation, gated):
    signature = Signature(activation=activation, gated=gated, bias=True)
    given = {"alpha": 1.5, "limit": 0.75, "offset": -0.25}
    attributes = Attributes(**{name: given[name] for name in signature.attributes})
    case = Case(name="by-hand", signature=signature, tokens=(3,), hidden=4, inner=2, count=2, seed=1)
    inputs = {name: a if name == "experts" else a.astype(np.float64) for name, a in make_inputs(case).items()}
    expected = np.zeros((3, 4))
    for n in range(3):
        for k in range(2):
            e = inputs["experts"][n, k]
            rows = [sum(w * x for w, x in zip(row, inputs["x"][n], strict=True)) for row in inputs["inner"][e]]
            h = [row + b for row, b in zip(rows, inputs["inner_bias"][e], strict=True)]
            a = [by_hand(activation, attributes.alpha, v) for v in h]
            if gated:
                gates = [by_hand(activation, attributes.alpha, min(v, 0.75)) for v in h[:2]]
                a = [g * (max(min(v, 0.75), -0.75) - 0.25) for g, v in zip(gates, h[2:], strict=True)]
            for i in range(4):
                y = inputs["outer"][e, i] @ a + inputs["outer_bias"][e, i]
                expected[n, i] += inputs["weights"][n, k] * y
    np.testing.assert_allclose(reference(signature, attributes, inputs)[0], expected, rtol=1e-9)


def test_index_outside_adds_nothing_even_where_its_weight_is_infinite():
    case = Case(name="outside", signature=FULL, tokens=(2,), each=2)
    inputs = make_inputs(case)
    inputs["experts"][0, 0], inputs["experts"][1] = -1, 4
    inputs["weights"][0, 0], inputs["weights"][1] = np.inf, np.nan
    found = reference(FULL, case.attributes, inputs)[0]
    alone = {**inputs, "experts": inputs["experts"][:, 1:], "weights": inputs["weights"][:, 1:]}
    np.testing.assert_array_equal(found[0], reference(FULL, case.attributes, alone)[0][0])
    np.testing.assert_array_equal(found[1], 0.0)


@pytest.mark.parametrize("library", [False])
def test_index_outside_adds_nothing_to_the_run_either(library, options):
    case = Case(name="outside", signature=FULL, tokens=(2,), each=2)
    inputs = make_inputs(case)
    inputs["experts"][0, 0], inputs["experts"][1] = -1, 4
    inputs["weights"][0, 0], inputs["weights"][1] = np.inf, np.nan
    found = run_case(case, options(library=library), inputs)
    np.testing.assert_allclose(found, reference(FULL, case.attributes, inputs)[0], atol=1e-5)


def test_twin_is_not_the_reference():
    case = Case(name="twin", signature=FULL)
    inputs = make_inputs(case)
    exact, twin = reference(FULL, case.attributes, inputs)[0], naive(FULL, case.attributes, inputs)[0]
    assert np.max(np.abs(twin - exact)) > 0


@pytest.mark.parametrize("wrong", [{"alpha": 1.68}, {"limit": 6.0}, {"limit": math.inf}, {"offset": 0.98}])
def test_bound_is_sharp_enough_to_see_a_wrong_attribute(wrong, options):
    right = Case(name="right", signature=FULL, attributes=CLAMPED, spread=6.0, tokens=(33,))
    numbers = {name: getattr(CLAMPED, name) for name in FULL.attributes}
    inputs = make_inputs(right)
    mistaken = Case(name="wrong", signature=FULL, attributes=Attributes(**{**numbers, **wrong}))
    found = run_case(mistaken, options(library=False), inputs)
    exact = reference(FULL, CLAMPED, inputs)[0]
    assert np.max(np.abs(found - exact)) > 50 * check_case(right, options(library=False)).granted


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bound_is_sharp_enough_to_see_another_activation(activation, options):
    right = Case(name="right", signature=Signature(activation=activation, gated=True), tokens=(33,))
    inputs = make_inputs(right)
    exact, granted = reference(right.signature, Attributes(), inputs)[0], check_case(right, options(library=False))
    for other in set(ACTIVATIONS) - {activation}:
        mistaken = Case(name="wrong", signature=Signature(activation=other, gated=True))
        found = run_case(mistaken, options(library=False), inputs)
        assert np.max(np.abs(found - exact)) > 50 * granted.granted, other


# ------------------------------------------------------------------------------------------------ names, attributes


def test_names_and_signatures_are_each_others_inverse():
    found = signatures()
    assert len({s.op_type for s in found}) == len(found) == 20
    assert all(Signature.of(s.op_type) == s for s in found)
    assert Signature.of("MixtureOfExperts_gelu_tanh_bias") == Signature(activation="gelu_tanh", bias=True)
    for name in ("MixtureOfExperts", "MixtureOfExperts_silu_bias_gated", "MixtureOfExperts_swish", "FlashAttention"):
        with pytest.raises(InputError, match="is no name of"):
            Signature.of(name)
    with pytest.raises(InputError, match="'swish' is no activation"):
        Signature(activation="swish")


def test_a_node_has_the_attributes_of_its_signature():
    values = {name: ir.Value(name=name) for name in FULL.inputs}
    node = make_node(FULL, values, CLAMPED)
    assert {name: a.value for name, a in node.attributes.items()} == {"alpha": 1.702, "limit": 7.0, "offset": 1.0}
    node = make_node(FULL, values)
    assert {name: a.value for name, a in node.attributes.items()} == {"alpha": 1.0, "limit": math.inf, "offset": 0.0}
    assert not make_node(Signature(activation="relu"), values).attributes


@pytest.mark.parametrize(
    ("signature", "attributes", "said"),
    [
        (Signature(activation="relu", gated=True), Attributes(alpha=1.7), "has no attribute alpha, 1.7 was given"),
        (Signature(), Attributes(limit=7.0), "has no attribute limit, 7.0 was given"),
        (Signature(), Attributes(offset=1.0), "has no attribute offset, 1.0 was given"),
    ],
)
def test_attribute_of_another_signature_is_refused(signature, attributes, said):
    with pytest.raises(InputError, match=said):
        make_node(signature, {name: ir.Value(name=name) for name in signature.inputs}, attributes)


@pytest.mark.parametrize(
    "wrong", [{"alpha": math.inf}, {"alpha": -1.0}, {"limit": -1.0}, {"limit": math.nan}, {"offset": math.inf}]
)
def test_attribute_outside_its_range_is_refused(wrong):
    with pytest.raises(InputError, match=r"attribute \w+ of MixtureOfExperts is"):
        Attributes(**wrong)
