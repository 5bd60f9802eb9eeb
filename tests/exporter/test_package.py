"""A Triton model repository: its layout, and its configuration read by protobuf with the fields of Triton's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

import deployml
from deployml.custom_ops import library_path
from deployml.runtime.integrations.triton import Tensor, config_text

STRING, INT32, INT64, MESSAGE, ENUM = 9, 5, 3, 11, 14
TYPES = [
    "INVALID",
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "STRING",
    "BF16",
]
#: The part of Triton's model_config.proto that is written: message -> fields (name, number, type, repeated, kind).
SCHEMA = {
    "Reshape": [("shape", 1, INT64, True, None)],
    "Tensor": [
        ("name", 1, STRING, False, None), ("data_type", 2, ENUM, False, "DataType"), ("dims", 4, INT64, True, None),
        ("reshape", 5, MESSAGE, False, "Reshape"),
    ],
    "Group": [("kind", 4, ENUM, False, "Kind"), ("count", 2, INT32, False, None)],
    "Batching": [],
    "Operations": [("op_library_filename", 1, STRING, True, None)],
    "Config": [
        ("name", 1, STRING, False, None), ("backend", 17, STRING, False, None),
        ("default_model_filename", 8, STRING, False, None), ("max_batch_size", 4, INT32, False, None),
        ("input", 5, MESSAGE, True, "Tensor"), ("output", 6, MESSAGE, True, "Tensor"),
        ("instance_group", 7, MESSAGE, True, "Group"), ("dynamic_batching", 11, MESSAGE, False, "Batching"),
        ("model_operations", 18, MESSAGE, False, "Operations"),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def read():
    """Parses a configuration as Triton does: unknown fields and wrong types are errors."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t", syntax="proto3")
    kinds = {"DataType": [f"TYPE_{t}" for t in TYPES], "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]}
    for name, values in kinds.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, inner in fields:
            added = message.field.add(name=field, number=number, type=kind, label=3 if repeated else 1)
            if inner is not None:
                added.type_name = f".t.{inner}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Config"))
    return lambda text: text_format.Parse(text, config())


IDS = Tensor("input_ids", "int64", (-1, -1))
OUT = Tensor('odd "name"\n', "float32", (-1, -1, 64))


def test_the_configuration_is_what_triton_reads(read):
    found = read(config_text("m", [IDS], [OUT], libraries=["/models/m/1/libops.so"]))
    assert (found.name, found.backend, found.max_batch_size) == ("m", "onnxruntime", 0)
    assert [(t.name, t.data_type, list(t.dims)) for t in found.input] == [("input_ids", 9, [-1, -1])]
    assert [(t.name, t.data_type, list(t.dims)) for t in found.output] == [(OUT.name, 11, [-1, -1, 64])]
    assert list(found.model_operations.op_library_filename) == ["/models/m/1/libops.so"]
    assert found.instance_group[0].kind == 2 and not found.HasField("dynamic_batching")


def test_batching_takes_the_first_axis_away(read):
    found = read(config_text("m", [IDS], [OUT], max_batch=8, gpu=True))
    assert found.max_batch_size == 8 and found.HasField("dynamic_batching")
    assert list(found.input[0].dims) == [-1] and list(found.output[0].dims) == [-1, 64]
    assert found.instance_group[0].kind == 1


def test_a_scalar_is_served_as_a_vector_of_one(read):
    found = read(config_text("m", [IDS], [Tensor("loss", "float32", ())]))
    assert list(found.output[0].dims) == [1] and found.output[0].HasField("reshape")


def test_what_triton_cannot_serve_is_refused():
    with pytest.raises(deployml.UnsupportedError, match="complex64"):
        config_text("m", [Tensor("x", "complex64", (1,))], [OUT])
    with pytest.raises(deployml.InputError, match="loss has no dynamic first axis"):
        config_text("m", [IDS], [OUT, Tensor("loss", "float32", ())], max_batch=4)


def test_a_repository_is_written_whole_and_its_model_runs(read, deployml_command, exported, tmp_path):
    ran = deployml_command("package", exported, "-o", tmp_path / "models", "--max-batch", "4", "--json")
    assert ran.status == 0, ran.err
    made = json.loads(ran.out)
    folder = tmp_path / "models" / "encoder"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == sorted(made["files"])
    config = read((folder / "config.pbtxt").read_text())
    libraries = [p.removeprefix("/models/encoder/") for p in config.model_operations.op_library_filename]
    assert all((folder / library).is_file() for library in libraries)
    ids = np.arange(14, dtype=np.int64).reshape(2, 7)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    both = [deployml.session(p).run(None, feeds)[0] for p in (exported, folder / "1" / "model.onnx")]
    np.testing.assert_array_equal(*both)


def test_weights_in_a_file_of_their_own_come_along(exported, tmp_path):
    apart = tmp_path / "apart.onnx"
    deployml.optimize(
        exported.with_name("encoder.unfused.onnx"), output=apart, external_data="always", validate=False, html=False
    )
    made = deployml.package(apart, output=tmp_path / "models", name="other", version=3)
    assert "3/apart.onnx.data" in made.files
    deployml.session(tmp_path / "models" / "other" / "3" / "model.onnx")


def test_a_version_is_never_written_over(deployml_command, exported, tmp_path):
    arguments = ("package", exported, "-o", tmp_path)
    assert deployml_command(*arguments).status == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    ran = deployml_command(*arguments)
    assert ran.status == 2 and "version 1 of 'encoder' is there already" in ran.err and "--version 2" in ran.err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert deployml_command(*arguments, "--version", "2").status == 0


def test_a_configuration_that_says_other_things_is_not_lost(deployml_command, exported, tmp_path):
    arguments = ("package", exported, "-o", tmp_path)
    assert deployml_command(*arguments, "--max-batch", "4").status == 0
    config = tmp_path / "encoder" / "config.pbtxt"
    config.write_text(config.read_text() + "# tuned by hand\n")
    before = config.read_text()
    ran = deployml_command(*arguments, "--version", "2")
    assert ran.status == 2 and "- max_batch_size: 4" in ran.err and "+ max_batch_size: 0" in ran.err
    assert "--config keep" in ran.err and "- # tuned by hand" in ran.err
    assert not (tmp_path / "encoder" / "2").exists() and config.read_text() == before
    assert deployml_command(*arguments, "--version", "2", "--config", "keep").status == 0
    assert config.read_text() == before
    assert deployml_command(*arguments, "--version", "3", "--config", "replace").status == 0
    assert "max_batch_size: 0" in config.read_text() and "by hand" not in config.read_text()


@pytest.mark.skipif(library_path("cpu") is None, reason="not run: the CPU library is not built")
def test_the_op_library_of_another_version_is_named_while_it_is_the_same(exported, tmp_path):
    deployml.package(exported, output=tmp_path)
    config = tmp_path / "encoder" / "config.pbtxt"
    before = config.read_text()
    made = deployml.package(exported, output=tmp_path, version=2)
    assert config.read_text() == before and any("in version 1: keep" in note for note in made.notes)
    library = next((tmp_path / "encoder" / "1").glob("*.so"))
    library.write_bytes(library.read_bytes() + b"other")
    with pytest.raises(deployml.InputError, match="which serves every version"):
        deployml.package(exported, output=tmp_path, version=3)


@pytest.mark.skipif(library_path("cpu") is None, reason="not run: the CPU library is not built")
def test_a_library_without_kernels_for_the_gpu_is_said(exported, tmp_path):
    made = deployml.package(exported, output=tmp_path, target="rocm")
    assert any("no rocm kernels" in note and "--backend hip" in note for note in made.notes)


def test_a_version_is_a_number(exported, tmp_path):
    with pytest.raises(deployml.InputError, match="'2' is no version"):
        deployml.package(exported, output=tmp_path, version="2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--name", "../up"), "is no name"),
        (("--name", "模型"), "Latin letters"),
        (("--format", "kserve"), "kserve"),
        (("--repository", "models"), "no absolute path"),
        (("--config", "merge"), "keep or replace"),
    ],
)
def test_what_makes_no_sense_is_refused(deployml_command, exported, tmp_path, options, words):
    ran = deployml_command("package", exported, "-o", tmp_path, *options)
    assert ran.status == 2 and words in ran.err
    assert not list(tmp_path.iterdir())
