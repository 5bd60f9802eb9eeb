"""MixtureOfExperts against its float64 reference: kernel, function body, instruction sets, errors, special values."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

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
from deployml.custom_ops.mixture_of_experts.cases import CLAMPED, Case, cases, make_inputs, random_case
from deployml.custom_ops.mixture_of_experts.check import check_case, one_node_model, run_case
from deployml.passes.bodies import add_bodies
from deployml.runtime.errors import InputError, UnsupportedError

ALL = cases()
FULL = Signature(gated=True, bias=True)

# Run in a process of its own, because the instruction set is chosen once a process.
ISA_SCRIPT = """
import onnxruntime
from deployml.custom_ops import register
from deployml.custom_ops.mixture_of_experts.cases import cases, random_case
from deployml.custom_ops.mixture_of_experts.check import check_case

for case in [*cases(), *map(random_case, range(60))]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    register(options, only=[case.signature.op_type])
    result = check_case(case, options)
    if not result.passed:
        print(case.name, result.error, result.granted)
print("done")
"""


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_kernel_is_as_exact_as_the_naive_twin_allows(case, options):
    result = check_case(case, options(case.signature.op_type))
    assert result.passed, (result.error, result.granted)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_other_instruction_sets(isa):
    needs = {"avx512": "avx512bw", "avx2": "avx2"}.get(isa, "")
    if needs not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"not run: this processor has no {needs}")
    done = subprocess.run(
        [sys.executable, "-c", ISA_SCRIPT],
        env={**os.environ, "DEPLOYML_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "done\n"


def test_random_calls(options):
    made = {s.op_type: options(s.op_type) for s in signatures()}
    results = [check_case(case, made[case.signature.op_type]) for case in map(random_case, range(200))]
    assert not [r for r in results if not r.passed]


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


@pytest.mark.parametrize("library", [True, False])
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
    found = run_case(mistaken, options(FULL.op_type), inputs)
    exact = reference(FULL, CLAMPED, inputs)[0]
    assert np.max(np.abs(found - exact)) > 50 * check_case(right, options(FULL.op_type)).granted


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


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("x", (), "input x has shape (), expected (..., features)"),
        ("x", (7, 47), "input outer has shape (4, 48, 40), expected (4, 47, 40)"),
        ("x", (2, 7, 48), "input experts has shape (7, 2), expected the axes of x before the last, (2, 7), and then"),
        ("experts", (6, 2), "input experts has shape (6, 2), expected the axes of x before the last, (7), and then 2"),
        ("experts", (7,), "input experts has shape (7), expected the axes of x before the last, (7), and then experts"),
        ("weights", (7, 3), "input weights has shape (7, 3), expected the axes of x before the last, (7), and then 2"),
        ("weights", (7,), "input weights has shape (7), expected the axes of x before the last, (7), and then 2"),
        ("inner", (4, 40, 48), "input inner has shape (4, 40, 48), expected (4, 80, 48)"),
        ("inner", (3, 80, 48), "input inner has shape (3, 80, 48), expected (4, 80, 48)"),
        ("inner", (80, 48), "input inner has shape (80, 48), expected (experts, rows, features)"),
        ("outer", (4, 40, 48), "input outer has shape (4, 40, 48), expected (4, 48, 48)"),
        ("outer", (48, 40), "input outer has shape (48, 40), expected (experts, features, inner size)"),
        ("inner_bias", (4, 40), "input inner_bias has shape (4, 40), expected (4, 80)"),
        ("outer_bias", (48,), "input outer_bias has shape (48), expected (4, 48)"),
    ],
)
def test_wrong_shape_names_input_and_value(name, shape, said, options):
    case = Case(name="wrong", signature=FULL)
    inputs = make_inputs(case)
    inputs[name] = np.zeros(shape, inputs[name].dtype)
    with pytest.raises(Exception) as caught:
        run_case(case, options(FULL.op_type), inputs)
    assert said in str(caught.value)
    assert "deployml::MixtureOfExperts_silu_gated_bias" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("alpha", -1.0, "attribute alpha is -1, allowed is 0 to "),
        ("alpha", math.inf, "attribute alpha is inf, allowed is 0 to "),
        ("limit", -7.0, "attribute limit is -7, allowed is 0 to inf"),
        ("limit", math.nan, "attribute limit is nan, allowed is 0 to inf"),
        ("offset", -math.inf, "attribute offset is -inf, allowed is "),
    ],
)
def test_wrong_attribute_of_a_node_is_refused(name, value, said, options):
    ranks = {name: array.ndim for name, array in make_inputs(Case(name="wrong", signature=FULL)).items()}
    model = onnx.load_from_string(one_node_model(FULL, Attributes(), ranks))
    next(a for a in model.graph.node[0].attribute if a.name == name).f = value
    with pytest.raises(Exception) as caught:
        onnxruntime.InferenceSession(model.SerializeToString(), options(FULL.op_type))
    assert said in str(caught.value)


def test_wrong_type_is_refused(options):
    ranks = {name: array.ndim for name, array in make_inputs(Case(name="wrong", signature=FULL)).items()}
    for name, kind in (("weights", onnx.TensorProto.DOUBLE), ("experts", onnx.TensorProto.INT32)):
        model = onnx.load_from_string(one_node_model(FULL, Attributes(), ranks))
        next(v for v in model.graph.input if v.name == name).type.tensor_type.elem_type = kind
        with pytest.raises(Exception, match=f"(?s)MixtureOfExperts_silu_gated_bias.*{name}|{name}.*MixtureOfExperts"):
            onnxruntime.InferenceSession(model.SerializeToString(), options(FULL.op_type))


def test_a_node_without_attributes_has_the_defaults(options):
    case = Case(name="defaults", signature=FULL)
    inputs = make_inputs(case)
    ranks = {name: array.ndim for name, array in inputs.items()}
    model = onnx.load_from_string(one_node_model(FULL, Attributes(), ranks))
    del model.graph.node[0].attribute[:]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options(FULL.op_type))
    np.testing.assert_array_equal(session.run(None, inputs)[0], run_case(case, options(FULL.op_type), inputs))


# ------------------------------------------------------------------------------------------------ special values


@pytest.mark.parametrize("signature", signatures(), ids=lambda s: s.op_type)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_token(signature, value, options):
    for tokens in (6, 90):  # rows are multiplied where the weights lie, or with packed ones
        case = Case(name="special", signature=signature, tokens=(tokens,), attributes=Attributes())
        inputs = make_inputs(case)
        inputs["x"][1, 3] = value
        exact = reference(signature, case.attributes, inputs)[0]
        found = run_case(case, options(signature.op_type), inputs)
        assert not np.isfinite(exact[1]).all() and np.isfinite(np.delete(exact, 1, axis=0)).all()
        np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
        np.testing.assert_allclose(found[np.isfinite(exact)], exact[np.isfinite(exact)], atol=2e-5)


@pytest.mark.parametrize("where", ["inner", "outer", "inner_bias", "outer_bias", "weights"])
def test_nan_of_an_expert_reaches_only_its_tokens(where, options):
    for tokens in (6, 90):
        case = Case(name="special", signature=FULL, tokens=(tokens,), attributes=CLAMPED)
        inputs = make_inputs(case)
        inputs[where].reshape(len(inputs[where]), -1)[1, 1] = np.nan
        exact = reference(FULL, CLAMPED, inputs)[0]
        assert np.isnan(exact).any() and not np.isnan(exact).all()
        np.testing.assert_array_equal(np.isnan(run_case(case, options(FULL.op_type), inputs)), np.isnan(exact))


def test_weights_of_experts_that_nobody_chose_are_not_looked_at(options):
    case = Case(name="unread", signature=FULL, route="one", tokens=(40,))
    inputs = make_inputs(case)
    expected = run_case(case, options(FULL.op_type), inputs)
    for name in ("inner", "outer", "inner_bias", "outer_bias"):
        inputs[name][:-1] = np.nan
    np.testing.assert_array_equal(run_case(case, options(FULL.op_type), inputs), expected)


def test_empty_sizes(options):
    inputs = make_inputs(Case(name="empty", signature=FULL))
    none = {
        "no inner size": {"inner": (4, 0, 48), "outer": (4, 48, 0), "inner_bias": (4, 0)},
        "no experts": {"inner": (0, 80, 48), "outer": (0, 48, 40), "inner_bias": (0, 80), "outer_bias": (0, 48)},
        "no features": {"x": (7, 0), "inner": (4, 80, 0), "outer": (4, 0, 40), "outer_bias": (4, 0)},
    }
    for what, shapes in none.items():
        given = {**inputs, **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}
        found = run_case(Case(name=what, signature=FULL), options(FULL.op_type), given)
        np.testing.assert_allclose(found, reference(FULL, Attributes(), given)[0], atol=1e-6, err_msg=what)


# ------------------------------------------------------------------------------------------------ threads, fallback


@pytest.mark.parametrize("route", ["random", "skewed", "repeated"])
@pytest.mark.parametrize("tokens", [1, 13, 500])
def test_bits_do_not_depend_on_threads(route, tokens, options):
    case = Case(name="threads", signature=FULL, tokens=(tokens,), each=3, hidden=300, inner=200, route=route)
    inputs = make_inputs(case)
    first = run_case(case, options(FULL.op_type, threads=1), inputs)
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(run_case(case, options(FULL.op_type, threads=threads), inputs), first)


def test_choices_are_added_in_their_order(options):
    """Slots of one expert without products: the sum of the weights, in float32 from the first to the last."""
    signature = Signature(activation="relu", bias=True)
    case = Case(name="order", signature=signature, tokens=(1,), each=4, count=1, hidden=1, inner=1)
    inputs = make_inputs(case)
    inputs["experts"][:] = 0
    inputs |= {name: np.zeros_like(inputs[name]) for name in ("inner", "outer", "inner_bias")}
    inputs["outer_bias"][:] = 1.0
    for weights, expected in (([1e8, 1.0, -1e8, 1.0], 1.0), ([1e8, -1e8, 1.0, 1.0], 2.0), ([1.0, 1.0, 1e8, -1e8], 0.0)):
        inputs["weights"] = np.array([weights], np.float32)
        assert run_case(case, options(signature.op_type), inputs).item() == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_tokens_than_a_part_holds(dtype, options):
    """Tables of a part are bounded: 5 slots a token of 129 and 3 numbers leave room for 44150 tokens."""
    case = Case(
        name="parts",
        signature=Signature(activation="relu"),
        tokens=(70000,),
        each=5,
        hidden=129,
        inner=3,
        dtype=dtype,
        route="outside",
    )
    inputs = make_inputs(case)
    found = run_case(case, options(case.signature.op_type), inputs)
    for n in (0, 1, 44149, 44150, 69998, 69999):
        few = {
            name: array[n : n + 1] if name in ("x", "experts", "weights") else array for name, array in inputs.items()
        }
        exact = reference(case.signature, case.attributes, few)[0]
        np.testing.assert_allclose(found[n : n + 1], exact, atol=1e-5 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("library", [True, False])
def test_kernel_runs_where_the_library_is_and_the_body_where_it_is_not(library, options, tmp_path):
    made = options(library=library)
    made.enable_profiling = True
    made.profile_file_prefix = str(tmp_path / "profile")
    inputs = make_inputs(Case(name="which", signature=FULL))
    model = one_node_model(FULL, Attributes(), {n: a.ndim for n, a in inputs.items()})
    session = onnxruntime.InferenceSession(model, made, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}
    assert (FULL.op_type in ran) is library
    assert ("Loop" in ran) is not library


def test_shapes_are_inferred_and_nothing_is_logged(options, capfd):
    made = options()
    made.log_severity_level = 2
    inputs = make_inputs(Case(name="log", signature=FULL, tokens=(2, 3)))
    model = one_node_model(FULL, Attributes(), {name: array.ndim for name, array in inputs.items()})
    session = onnxruntime.InferenceSession(model, made, providers=["CPUExecutionProvider"])
    assert [output.shape for output in session.get_outputs()] == [["x_0", "x_1", "x_2"]]
    session.run(None, inputs)
    assert capfd.readouterr().err == ""
