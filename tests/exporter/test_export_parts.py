"""The pieces that export is made of: options, inputs to feed, invariants, writing, the ONNX reader."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deployml.exporter.artifact import FileNames
from deployml.exporter.bundle import reproducible
from deployml.exporter.feeding import bench_cases, input_specs, parity_cases
from deployml.exporter.foreign_origins import adopt_origins
from deployml.exporter.fusing import check_required
from deployml.exporter.invariants import breaches, checker_breach, signature_of
from deployml.exporter.onnx_file import lift_opset, open_file
from deployml.exporter.options import Options, output_path, require_count
from deployml.exporter.settled import settled_outputs
from deployml.exporter.writing import stamp, weight_bytes, write_models
from deployml.passes.cleanup.fold import fold
from deployml.passes.cleanup.transposed import TransposedTensor, identity
from deployml.runtime.errors import DeploymlBug, InputError, UnsupportedError, VerdictError
from deployml.runtime.feeds import InputSpec
from deployml.runtime.files import Staging
from deployml.runtime.report import Site

TEXT = """
<ir_version: 10, opset_import: ["": 21]>
embed (int64[batch, seq] ids, int64[batch, seq] kinds, float[batch, seq] mask) => (float[batch, seq, 4] y) {
  at = Cast<to = 7>(ids)
  words = Gather(table, at)
  more = Gather(types, kinds)
  sum = Add(words, more)
  last = Constant<value_ints = [-1]>()
  wide = Unsqueeze(mask, last)
  y = Mul(sum, wide)
}
"""


def model_with(rows: int = 30, text: str = TEXT, other: str = "types", more: int = 3) -> ir.Model:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    for name, size in (("table", rows), (other, more)):
        array = np.random.default_rng(size).standard_normal((size, 4)).astype(np.float32)
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
        model.graph.initializers.add(value)
    return model


def test_options_add_up_to_a_target():
    assert Options(min_onnxruntime="1.22.1").resolve().onnxruntime == (1, 22, 1)
    assert Options(target="portable").resolve().opset == 23
    assert Options(opset=20).resolve().opset == 20
    assert Options().resolve(opset=22).opset == 22
    assert Options(target="portable", min_onnxruntime="1.22.1").resolve().opset == 21  # 1.22 does not load 23
    assert Options(target="portable", min_onnxruntime="1.23").resolve().opset == 23


@pytest.mark.parametrize(
    "given",
    [
        {"opset": 8},
        {"opset": "21"},
        {"min_onnxruntime": "1.21"},
        {"target": "vulkan"},
        {"opset": 23, "min_onnxruntime": "1.22"},
        {"disable_fusion": "own-attention"},
    ],
)
def test_options_that_cannot_be_had(given):
    with pytest.raises(InputError):
        Options(**given).resolve()


@pytest.mark.parametrize(("given", "count"), [(None, None), ("all", -1), ("ALL", -1), ("3", 3), (1, 1)])
def test_required_counts(given, count):
    assert require_count(given) == count


@pytest.mark.parametrize("given", ["", "-1", "0", "1.5", "every", True, 0])
def test_required_counts_that_are_none(given):
    with pytest.raises(InputError):
        require_count(given)


def test_output_names():
    names = FileNames(output_path("a/b.onnx").name)
    assert (names.model, names.data, names.unfused) == ("b.onnx", "b.onnx.data", "b.unfused.onnx")
    assert (names.report, names.html) == ("b.report.json", "b.report.html")
    for bad in ("b", "b.pt", ".onnx", ""):
        with pytest.raises(InputError):
            output_path(bad)


def test_integer_inputs_stay_within_the_table_they_index():
    specs = {spec.name: spec for spec in input_specs(model_with(rows=17))}
    assert (specs["ids"].bound, specs["kinds"].bound, specs["mask"].bound) == (17, 3, None)
    assert specs["ids"].shape == ("batch", "seq") and specs["ids"].role == "token-ids"
    for case in parity_cases(tuple(specs.values()), traced={"batch": 2}):
        assert case.feeds["ids"].max() < 17 and case.sizes["batch"] != 2


def test_offsets_into_one_table_and_boxes_are_kept_to():
    text = """<ir_version: 10, opset_import: ["": 21]>
    embed (int64[batch, seq, 3] codes, int64[batch, seq, 4] bbox)
      => (float[batch, seq, 3, 4] y, float[batch, seq, 4] z) {
      first = Constant<value_ints = [0, 10, 20]>()
      one = Constant<value_int = 2>()
      at = Add(first, codes)
      y = Gather(table, at)
      right = Gather<axis = 2>(bbox, one)
      z = Gather(widths, right)
    }"""
    specs = input_specs(model_with(text=text, other="widths", more=9))
    assert [(spec.bound, spec.role) for spec in specs] == [(10, "values"), (9, "boxes")]
    for case in parity_cases(specs):
        left, top, right, bottom = np.moveaxis(case.feeds["bbox"], -1, 0)
        assert (left <= right).all() and (top <= bottom).all()


def test_outputs_that_only_shapes_reach_are_settled(tmp_path):
    text = """<ir_version: 10, opset_import: ["": 21]>
    points (float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] shape_only, float[2] learned)
    <float[4] row = {1.0, 2.0, 3.0, 4.0}, float[2] bias = {0.5, 1.5}> {
      size = Shape(x)
      shape_only = Expand(row, size)
      y = Add(x, shape_only)
      learned = Neg(bias)
    }"""
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    assert settled_outputs(tmp_path / "m.onnx") == {"shape_only", "learned"}


def test_masks_that_are_added_are_told_by_their_example():
    model = model_with()
    assert input_specs(model)[2].role == "attention-mask"
    low = np.array([[0.0, -3.4e38]], np.float32)
    assert input_specs(model, examples={"mask": low})[2].role == "additive-mask"


def test_timing_inputs_shrink_until_a_model_takes_them():
    cases = bench_cases(input_specs(model_with()), limits={"seq": (1, 40)})
    assert [case.sizes["seq"] for case in cases] == [40, 32, 16, 8, 2]
    assert {case.sizes["batch"] for case in cases} == {1}


@pytest.mark.parametrize(
    ("traced", "lengths"), [({"seq": 900}, {900}), ({}, {300 + 75 * n for n in (127, 63, 31, 15, 7, 1)})]
)
def test_timing_inputs_are_no_smaller_than_a_model_takes(traced, lengths):
    cases = bench_cases(input_specs(model_with()), traced=traced, limits={"seq": (300, None)})
    assert {case.sizes["seq"] for case in cases} == lengths


@pytest.mark.parametrize(("real", "role"), [(True, "attention-mask"), (False, "key-padding-mask")])
def test_what_a_padding_mask_means_is_told_by_its_example(real, role):
    model = model_with(text=TEXT.replace("mask", "padding_mask"))
    padded = np.array([[real] * 5, [real] * 3 + [not real] * 2])
    found = {spec.name: spec.role for spec in input_specs(model, examples={"padding_mask": padded})}
    assert found["padding_mask"] == role


def test_padding_of_one_axis_and_scalars_are_drawn():
    specs = [
        InputSpec(name="n_padding", dtype="int64", shape=("batch",), role="key-padding-mask"),
        InputSpec(name="position", dtype="int64", shape=(), role="position-ids"),
        InputSpec(name="attention_mask", dtype="int64", shape=("batch",), role="attention-mask"),
    ]
    assert all(case.feeds["position"].shape == () and case.feeds["n_padding"].ndim == 1 for case in parity_cases(specs))
    assert bench_cases([])[0].feeds == {}


def test_an_axis_called_n_beside_the_batch_is_a_length():
    spec = InputSpec(name="samples", dtype="float32", shape=("batch", "n"))
    assert bench_cases([spec])[0].sizes == {"batch": 1, "n": 128}
    long = bench_cases([spec], traced={"batch": 2, "n": 1000}, limits={"n": (400, None)})
    assert long[0].sizes == {"batch": 1, "n": 1000}


def test_an_input_without_rank_cannot_be_fed():
    model = model_with()
    model.graph.inputs[0].shape = None
    with pytest.raises(UnsupportedError, match="ids"):
        input_specs(model)


def test_invariants_notice_every_breach():
    model = model_with()
    before = signature_of(model)
    assert breaches(model, before, ()) == [] and checker_breach(model) is None
    fused = Site(index=0, name="nowhere", status="fused", op="com.microsoft::MultiHeadAttention")
    assert "nowhere" in breaches(model, before, (fused,))[0]
    model.graph.outputs[0].name = "z"
    assert "outputs" in breaches(model, before, ())[0]
    model.graph.outputs[0].name = "y"
    model.graph.outputs[0].shape = ir.Shape([2, "seq", 4])
    assert "'y'" in breaches(model, before, ())[0]
    model.graph.outputs[0].shape = ir.Shape(["batch", "seq", 4])
    node = model.graph[0]
    node.domain, node.op_type = "deployml.canonical", "Attention"
    assert "canonical" in breaches(model, before, ())[0]


def test_weights_are_stored_once_and_models_stay_as_they_were(tmp_path):
    model, sibling = model_with(rows=2000), None
    sibling = model.clone()
    tensors = [value.const_value for value in model.graph.initializers.values()]
    with Staging(tmp_path / "m.onnx") as staging:
        roles = write_models(staging, FileNames("m.onnx"), model, sibling, external_data="always")
    assert roles == {"model": "m.onnx", "data": "m.onnx.data", "unfused": "m.unfused.onnx"}
    assert (tmp_path / "m.onnx.data").stat().st_size == 2000 * 4 * 4
    assert weight_bytes(model) == (2000 + 3) * 4 * 4
    assert [value.const_value for value in model.graph.initializers.values()] == tensors
    for name in ("m.onnx", "m.unfused.onnx"):
        loaded = onnx.load(tmp_path / name)
        table = next(t for t in loaded.graph.initializer if t.name == "table")
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(table), tensors[0].numpy())


def test_equal_tensors_that_are_two_objects_are_stored_once(tmp_path):
    model = model_with(rows=2000)
    sibling = model_with(rows=2000)
    with Staging(tmp_path / "m.onnx") as staging:
        write_models(staging, FileNames("m.onnx"), model, sibling, external_data="always")
    assert (tmp_path / "m.onnx.data").stat().st_size == 2000 * 4 * 4


class Counted(ir.Tensor):
    """A tensor that counts how often its numbers were read."""

    reads = 0

    def numpy(self):
        self.reads += 1
        return super().numpy()


def test_a_weight_that_both_graphs_hold_transposed_is_read_once(tmp_path):
    body = "t = Transpose <perm = [1, 0]> (table) y = MatMul (x, t)"
    text = f"g (float[2, 4] x, float[2000, 4] table) => (float[2, 2000] y) {{ {body} }}"
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    weight = model.graph.inputs.pop()
    weight.const_value = counted = Counted(np.arange(8000, dtype=np.float32).reshape(2000, 4), name="table")
    model.graph.register_initializer(weight)
    sibling = model.clone()
    assert fold(model) == fold(sibling) == 1
    with Staging(tmp_path / "m.onnx") as staging:
        write_models(staging, FileNames("m.onnx"), model, sibling, external_data="always")
    assert counted.reads == 1
    for name in ("m.onnx", "m.unfused.onnx"):
        (stored,) = onnx.load(tmp_path / name).graph.initializer
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored), counted.raw.T)


def test_the_transpose_of_a_transpose_is_one_of_the_first():
    tensor = ir.tensor(np.arange(24, dtype=np.float32).reshape(2, 3, 4), name="t")
    once = TransposedTensor(tensor, [1, 2, 0], name="once")
    twice = TransposedTensor(once, [0, 2, 1], name="twice")
    assert identity(twice) == identity(TransposedTensor(tensor, [1, 0, 2], name="other"))
    assert identity(twice) != identity(once) != identity(tensor)
    np.testing.assert_array_equal(twice.numpy(), tensor.numpy().transpose(1, 0, 2))


def test_stamping_is_sorted_and_sets_the_ir_version_of_the_opset():
    for opset, version in ((20, 10), (21, 10), (23, 11)):
        model = model_with()
        model.graph.opset_imports[""] = opset
        model.ir_version = 13
        stamp(model, properties={"deployml.b": "2", "deployml.a": "1"})
        assert model.ir_version == version
        assert list(model.metadata_props) == ["deployml.a", "deployml.b"]


def test_requirement_names_what_was_declined():
    sites = (
        Site(index=0, name="a", status="fused", op="X"),
        Site(index=1, name="b", status="declined", reason="why", detail="so", module_path="m.1", source="f.py:3"),
    )
    check_required(None, sites, model="m")
    check_required("1", sites, model="m")
    with pytest.raises(VerdictError, match=r"m\.1 \(f\.py:3\): why: so"):
        check_required("all", sites, model="m")
    with pytest.raises(VerdictError, match="1 of 2"):
        check_required(2, sites, model="m")
    with pytest.raises(VerdictError, match="no attention"):
        check_required("all", (), model="m")


def test_opsets_are_lifted_but_not_lowered():
    model = model_with()
    assert lift_opset(model, None) == ()
    with pytest.raises(UnsupportedError, match="20"):
        lift_opset(model, 20)
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"custom": 1}), ir_version=10)
    with pytest.raises(UnsupportedError):
        lift_opset(empty, None)


def older(body: str, opset: int) -> ir.Model:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[B,8] x) => (float[B,8] y) <float[8] w = '
    return ir.from_onnx_text(head + "{1, 1, 1, 1, 1, 1, 1, 1}> { " + body + " }")


def test_a_lift_says_nothing_beside_its_own_words(capfd):
    logger = logging.getLogger("onnxscript.version_converter")
    before = logger.level, logger.propagate, logger.handlers[:]
    assert lift_opset(older("y = Mul (x, w)", 14), None) == ("converted from opset 14 to 20",)
    with pytest.raises(UnsupportedError, match=r"from opset 14 to 20: node 'n' is a LayerNormalization") as told:
        lift_opset(older('["n"] y = LayerNormalization (x, w)', 14), None)
    assert "before onnxruntime saved it" in str(told.value.hint)
    assert capfd.readouterr() == ("", "")
    assert (logger.level, logger.propagate, logger.handlers[:]) == before


def test_a_refused_lift_tells_the_converters_reason(monkeypatch):
    def refuses(*_args: object, **_options: object) -> None:
        raise RuntimeError("/project/onnx/x.h:66: adapter_lookup: Assertion `false` failed: No Adapter for Mul")

    monkeypatch.setattr("onnx.version_converter.convert_version", refuses)
    with pytest.raises(UnsupportedError, match="from opset 14 to 20: RuntimeError: No Adapter for Mul") as told:
        lift_opset(older("y = Mul (x, w)", 14), None)
    assert told.value.hint == "export it anew with opset 20"


def test_a_weights_file_that_is_short_is_named(tmp_path):
    with Staging(tmp_path / "m.onnx") as staging:
        write_models(staging, FileNames("m.onnx"), model_with(rows=2000), None, external_data="always")
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match=r"m\.onnx\.data is too short"):
        open_file(tmp_path / "m.onnx")


def test_origins_of_torchs_own_export_are_adopted_without_its_paths():
    model = model_with()
    node = model.graph[0]
    node.metadata_props.update(
        {
            "pkg.torch.onnx.name_scopes": "['', 'encoder', 'encoder.layer.0', 'cast']",
            "pkg.torch.onnx.class_hierarchy": "['m.Model', 'm.Encoder', 'm.Layer', 'aten.to.dtype']",
            "pkg.torch.onnx.stack_trace": 'File "/somewhere/site-packages/m/model.py", line 7, in forward\n    x.to()',
            "namespace": "x",
        }
    )
    model.graph[1].metadata_props["pkg.torch.onnx.name_scopes"] = "not a list"
    assert adopt_origins(model) == 1
    assert dict(node.metadata_props) == {
        "deployml.module": "encoder.layer.0",
        "deployml.class": "Layer",
        "deployml.source": "m/model.py:7",
    }
    assert not model.graph[1].metadata_props


def test_generated_code_is_no_place_in_the_source():
    model = model_with()
    stack = 'File "/somewhere/site-packages/m/model.py", line 7, in forward\n    y\n'
    scopes = {
        "pkg.torch.onnx.name_scopes": "['', 'encoder', 'cast']",
        "pkg.torch.onnx.class_hierarchy": "['m.M', 'm.E']",
    }
    generated = 'File "<eval_with_key>.92", line 3, in forward\n    x\n'
    model.graph[0].metadata_props.update({**scopes, "pkg.torch.onnx.stack_trace": stack + generated})
    model.graph[1].metadata_props.update({**scopes, "pkg.torch.onnx.stack_trace": generated})
    adopt_origins(model)
    assert model.graph[0].metadata_props["deployml.source"] == "m/model.py:7"
    assert "deployml.source" not in model.graph[1].metadata_props


def test_a_fault_of_ours_leaves_its_graph_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = model_with(rows=2000)
    with pytest.raises(DeploymlBug, match="KeyError") as raised, reproducible(model):
        raise KeyError("lost")
    kept = onnx.load(Path(raised.value.bundle) / "before.onnx")
    assert "table" in [value.name for value in kept.graph.input]
    assert [t.name for t in kept.graph.initializer] == ["types"]
    with pytest.raises(InputError), reproducible(model):
        raise InputError("yours", hint="mend it")
    assert len(list(tmp_path.iterdir())) == 1
