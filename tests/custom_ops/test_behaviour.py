"""What the operator promises besides its numbers: errors, NaN, determinism, memory, names, fallback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from deployml.custom_ops import available, library_path
from deployml.custom_ops.flash_attention.cases import Case, make_inputs
from deployml.custom_ops.flash_attention.check import one_node_model, run_case
from deployml.custom_ops.flash_attention.op import Attributes, Signature, reference, signatures
from deployml.runtime.errors import InputError

FULL = Case(name="full", heads=4, kv_heads=2, lengths=(9, 17), mask="bk", bias="hqk", slopes=True, sink=True)


def run(case, options, inputs=None):
    return run_case(case, options, inputs)


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("query", (2, 17, 66), "input query has shape (2, 17, 66), expected (batch, length, a multiple of 4 heads)"),
        ("key", (3, 17, 32), "input key of shape (3, 17, 32) has batch 3, expected 2"),
        ("key", (2, 17, 34), "input key of shape (2, 17, 34) has head size 17, expected 16"),
        ("value", (2, 16, 32), "input value of shape (2, 16, 32) has length 16, expected 17"),
        ("mask", (2, 1, 1, 16), "input mask has shape (2, 1, 1, 16), expected one that broadcasts to (2, 4, 17, 17)"),
        ("bias", (3, 1, 17, 17), "input bias has shape (3, 1, 17, 17), expected one that broadcasts"),
        ("slopes", (3,), "input slopes has shape (3), expected (4,)"),
        ("sink", (4, 1), "input sink has shape (4, 1), expected (4,)"),
        ("key_lengths", (3,), "input key_lengths has shape (3), expected (2,)"),
        ("query", (2, 17), "input query has shape (2, 17), expected (batch, length"),
        ("bias", (1, 1, 1, 1, 17), "input bias has shape (1, 1, 1, 1, 17), expected one that broadcasts"),
    ],
)
def test_wrong_shape_names_input_and_value(name, shape, said, options):
    inputs = make_inputs(FULL)
    inputs[name] = np.zeros(shape, inputs[name].dtype)
    with pytest.raises(Exception) as caught:
        run(FULL, options(), inputs)
    assert said in str(caught.value)
    assert "deployml::FlashAttention_lengths_mask_bias_slopes_sink" in str(caught.value)


@pytest.mark.parametrize("lengths", [(18, 1), (-1, 3)])
def test_wrong_length_names_its_place(lengths, options):
    inputs = {**make_inputs(FULL), "key_lengths": np.array(lengths, np.int32)}
    with pytest.raises(Exception, match=rf"key_lengths\[0\] is {lengths[0]}, allowed is 0 to 17"):
        run(FULL, options(), inputs)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"num_heads": 0}, "attribute num_heads is 0, allowed is 1 to"),
        ({"num_heads": 3}, "attribute num_heads is 3, no multiple of kv_heads 2"),
        ({"causal": 2}, "attribute causal is 2, allowed is 0 to 1"),
        ({"window_left": -2}, "attribute window_left is -2, allowed is -1 to"),
        ({"softcap": -1.0}, "attribute softcap is -1, it must be finite and not negative"),
        ({"scale": float("inf")}, "attribute scale is inf, it must be finite"),
    ],
)
def test_wrong_attribute_names_it(attributes, said, options):
    case = Case(name="attributes")
    given = {"num_heads": 2, "kv_heads": 2, **attributes}
    model = one_node_model(case.signature, Attributes(**given), make_inputs(case))
    with pytest.raises(Exception) as caught:
        onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dtype"), [("key_lengths", "INT64"), ("mask", "UINT8"), ("bias", "DOUBLE"), ("value", "FLOAT16")]
)
def test_wrong_dtype_does_not_load(name, dtype, options):
    model = ir.from_proto(onnx.load_from_string(one_node_model(FULL.signature, FULL.attributes, make_inputs(FULL))))
    value = next(v for v in model.graph.inputs if v.name == name)
    value.type = ir.TensorType(ir.DataType[dtype])
    model.functions.clear()
    with pytest.raises(Exception, match="FlashAttention_lengths_mask_bias_slopes_sink"):
        onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options())


def test_past_of_another_shape_is_refused(options):
    case = Case(name="past", past=3, queries=2, keys=2)
    inputs = make_inputs(case)
    inputs["past_value"] = inputs["past_value"][:, :, :2]
    with pytest.raises(Exception, match=r"input past_value of shape \(2, 2, 2, 16\) has length 2, expected 3"):
        run(case, options(), inputs)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (5,)])
def test_wrong_table_says_what_is_expected(shape, options):
    case = Case(name="table", heads=4, table=2)
    inputs = {**make_inputs(case), "table": np.zeros(shape, np.float32)}
    with pytest.raises(Exception, match=r"input table has shape .*, expected \(4 or 1, an odd number of distances\)"):
        run(case, options(), inputs)


# ------------------------------------------------------------------------------------------------ shared buffers


def test_cache_bound_to_both_ends_is_written_in_place(options):
    """Only the new rows change, and what comes out is what separate buffers give."""
    case = Case(name="shared", cache=600, queries=2, keys=2, lengths=(601 - 1, 30), layout="bnsh", heads=4)
    inputs = make_inputs(case)
    expected = run(case, options(), inputs)
    model = one_node_model(case.signature, case.attributes, inputs)
    model = ir.from_proto(onnx.load_from_string(model))
    for node in [n for n in model.graph if n.op_type == "Cast"]:  # the outputs themselves are bound
        node.outputs[0].replace_all_uses_with(node.inputs[0], replace_graph_outputs=True)
        node.inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.remove(node, safe=True)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options())
    binding = session.io_binding()
    held = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a.copy()) for n, a in inputs.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    binding.bind_output(names[0], "cpu")
    binding.bind_ortvalue_output(names[1], held["past_key"])
    binding.bind_ortvalue_output(names[2], held["past_value"])
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), expected[0])
    for name, whole in zip(("past_key", "past_value"), expected[1:], strict=True):
        np.testing.assert_array_equal(held[name].numpy(), whole)
        changed = (held[name].numpy() != inputs[name]).any(axis=(1, 3))
        assert [list(np.flatnonzero(row)) for row in changed] == [[598, 599], [28, 29]]


# ------------------------------------------------------------------------------------------------ special values


@pytest.mark.parametrize("queries", [1, 30])
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_come_out_where_they_must(name, value, queries, options):
    case = Case(name="special", batch=1, queries=queries, keys=queries + 9, options={"causal": 1, "lower_right": 1})
    inputs = make_inputs(case)
    inputs[name][0, -1, 3] = value
    with np.errstate(all="ignore"):
        exact = reference(case.signature, case.attributes, inputs)[0]
    found = run(case, options(), inputs)[0]
    rows = slice(None) if name != "value" else slice(-1, None)  # 0 * inf in a row that excludes the key is its own
    np.testing.assert_array_equal(np.isnan(found[:, rows]), np.isnan(exact[:, rows]))
    assert np.isnan(exact).any() or not np.isnan(value)
    finite = np.isfinite(exact[:, rows])
    np.testing.assert_allclose(found[:, rows][finite], exact[:, rows][finite], atol=2e-6)


@pytest.mark.parametrize("queries", [1, 30])
def test_what_lies_behind_the_length_is_never_read(queries, options):
    case = Case(name="lengths", queries=queries, keys=600, lengths=(7, 530))
    inputs = make_inputs(case)
    clean = run(case, options(), inputs)[0]
    for name in ("key", "value"):
        inputs[name][0, 7:] = np.nan
        inputs[name][1, 530:] = np.inf
    np.testing.assert_array_equal(run(case, options(), inputs)[0], clean)


def test_masked_rows_give_zero_and_finite_masks_the_mean(options):
    inputs = make_inputs(Case(name="rows", mask="q"))
    inputs["mask"][:] = False
    assert not run(Case(name="rows", mask="q"), options(), inputs)[0].any()
    case = Case(name="rows", bias="k")
    inputs = make_inputs(case)
    inputs["bias"][:] = np.finfo(np.float32).min
    mean = np.broadcast_to(inputs["value"].mean(axis=1, keepdims=True), inputs["value"].shape)
    np.testing.assert_allclose(run(case, options(), inputs)[0], mean, atol=1e-6)


def test_negligible_is_not_masked(options):
    """A finite bias that is low, but not low enough to round to 0, keeps its share."""
    case = Case(name="low", batch=1, heads=1, kv_heads=1, queries=30, keys=1030, bias="k")
    inputs = make_inputs(case)
    inputs["bias"][:] = 0.0
    inputs["bias"][..., 1:] = -80.0
    inputs["value"][:, 1:] = 1e37
    found, exact = run(case, options(), inputs)[0], reference(case.signature, case.attributes, inputs)[0]
    np.testing.assert_allclose(found, exact, rtol=1e-3)
    assert np.abs(exact).max() > 10.0


# ------------------------------------------------------------------------------------------------ determinism, memory


def test_bits_do_not_depend_on_threads(options):
    case = Case(name="threads", batch=2, heads=4, kv_heads=2, queries=300, keys=700, bias="hqk", sink=True)
    inputs = make_inputs(case)
    first = run(case, options(threads=1), inputs)[0]
    for threads in (2, 3, 5):
        np.testing.assert_array_equal(run(case, options(threads=threads), inputs)[0], first)


@pytest.mark.parametrize("runs", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_sessions_in_two_threads_give_the_same_bits(runs, options):
    case = Case(name="sessions", queries=50, keys=90, mask="bk", past=4)
    inputs = make_inputs(case)
    model = one_node_model(case.signature, case.attributes, inputs)
    expected = run(case, options(), inputs)
    wrong = []

    def work():
        session = onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
        for _ in range(runs):
            found = session.run(None, inputs)
            wrong.extend(1 for x, y in zip(found, expected, strict=True) if not np.array_equal(x, y))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


MEMORY_SCRIPT = """
import resource, sys
import onnxruntime
from deployml.custom_ops import register
from deployml.custom_ops.flash_attention.cases import Case, make_inputs
from deployml.custom_ops.flash_attention.check import one_node_model

case = Case(name="long", batch=1, heads=1, kv_heads=1, queries=8192, keys=8192, head_dim=8, value_dim=8, bias="k")
inputs = make_inputs(case)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
register(options)
session = onnxruntime.InferenceSession(one_node_model(case.signature, case.attributes, inputs), options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(int(sys.argv[1])):
    session.run(None, inputs)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_grows_with_the_length_and_not_its_square(options):
    done = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT, "3"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 1024  # KiB; the scores alone would be 256 MiB


# ------------------------------------------------------------------------------------------------ names and fallback


def test_registering_some_names_leaves_the_others_out(options):
    """A model without its function body loads only where its name was registered; the limit is lifted afterwards."""
    case = Case(name="some", mask="k")
    model = ir.from_proto(onnx.load_from_string(one_node_model(case.signature, case.attributes, make_inputs(case))))
    model.functions.clear()
    bare = ir.to_proto(model).SerializeToString()
    onnxruntime.InferenceSession(bare, options("FlashAttention", "FlashAttention_mask"))
    with pytest.raises(Exception, match="FlashAttention_mask"):
        onnxruntime.InferenceSession(bare, options("FlashAttention_bias"))
    onnxruntime.InferenceSession(bare, options())


def test_names_and_signatures_are_each_others_inverse():
    found = signatures()
    assert len({s.op_type for s in found}) == len(found) == 384
    assert all(Signature.of(s.op_type) == s for s in found)
    for name in ("FlashAttention_sink_mask", "FlashAttention_past_cache_lengths", "FlashAttention_cache"):
        with pytest.raises(InputError, match="is no name of"):
            Signature.of(name)
    with pytest.raises(InputError, match="has both slopes and table"):
        Signature(slopes=True, table=True)
    with pytest.raises(InputError, match="has a past beside packed tensors"):
        Signature(layout="packed", past=True)


@pytest.mark.parametrize("layout", ["bsnh", "bnsh", "packed"])
def test_library_knows_every_name(layout, options):
    """Every signature runs its kernel: with wrong head counts the kernel's own message comes, not the body's."""
    for signature in signatures()[:: 7 if layout == "bnsh" else 3]:
        if signature.layout != layout:
            continue
        case = Case(
            name="names",
            layout=layout,
            past=2 if signature.past else None,
            cache=17 if signature.cache else None,
            lengths=(3, 4) if signature.lengths else None,
            mask="k" if signature.mask else None,
            bias="k" if signature.bias else None,
            slopes=signature.slopes,
            table=2 if signature.table else None,
            sink=signature.sink,
            weights=signature.weights,
        )
        model = one_node_model(case.signature, Attributes(num_heads=3, kv_heads=2), make_inputs(case))
        with pytest.raises(Exception, match=f"deployml::{signature.op_type}: attribute num_heads is 3"):
            onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("library", [True, False])
def test_kernel_runs_where_the_library_is_and_the_body_where_it_is_not(library, options, tmp_path):
    case = Case(name="which")
    inputs = make_inputs(case)
    made = options(library=library)
    made.enable_profiling = True
    made.profile_file_prefix = str(tmp_path / "profile")
    model = one_node_model(case.signature, case.attributes, inputs)
    session = onnxruntime.InferenceSession(model, made, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}
    assert ("FlashAttention" in ran) is library
    assert ("Softmax" in ran) is not library


def test_shapes_are_inferred(options):
    case = Case(name="shape", past=3, queries=2, keys=2, layout="bnsh", heads=4, value_dim=8)
    model = one_node_model(case.signature, case.attributes, make_inputs(case))
    session = onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes["output"] == ["query_0", "query_1", "query_2", "value_3"]


def test_shapes_of_packed_tensors_are_inferred(options):
    case = Case(name="shape", heads=4, layout="packed")
    proto = onnx.load_from_string(one_node_model(case.signature, case.attributes, make_inputs(case)))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8 * 16
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options(), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["packed_0", "packed_1", 4 * 16]


def test_wrong_packed_width_says_what_is_expected(options):
    case = Case(name="packed", heads=4, layout="packed")
    with pytest.raises(Exception, match=r"input packed has shape \(2, 17, 130\), expected .* a multiple of 8 heads"):
        run(case, options(), {"packed": np.zeros((2, 17, 130), np.float32)})


@pytest.mark.parametrize("layout", ["bsnh", "bnsh", "packed"])
def test_runs_without_a_word_in_the_log(layout, options, capfd):
    """A size that inference does not know must not become a wrong one, which onnxruntime reports at every run."""
    case = Case(name="log", past=None if layout == "packed" else 3, queries=2, keys=2, layout=layout)
    made = options()
    made.log_severity_level = 2
    run(case, made)
    assert capfd.readouterr().err == ""


def test_library_is_where_it_says():
    assert library_path("cpu") is None or "cpu" in available()
    assert all(library_path(backend) is not None for backend in available())


def test_import_is_light():
    script = (
        "import sys, deployml.custom_ops; "
        "print([m for m in ('torch', 'onnxruntime', 'onnx_ir', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
