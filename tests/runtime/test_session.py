import os
import shutil

import numpy as np
import onnxruntime
import pytest
from onnx import parser

from deployml.runtime.errors import InputError, ToolchainError, UnsupportedError
from deployml.runtime.providers import check_usable
from deployml.runtime.session import feeds_for, nodes_per_provider, open_session
from deployml.runtime.target import Target


def model(body: str, *, opset: str = '"": 20', ir: int = 10, signature="(float[b,4] x) => (float[b,4] y)") -> bytes:
    text = f"<ir_version: {ir}, opset_import: [{opset}]> g {signature} {{ {body} }}"
    return parser.parse_model(text).SerializeToString()


def test_runs_and_counts_nodes(relu_model):
    session = open_session(relu_model, Target(name="portable", onnxruntime=(1, 22), opset=20), threads=1)
    x = np.array([[-1, 2, 3, -4]], np.float32)
    np.testing.assert_array_equal(session.run(None, feeds_for(session, {"x": x}))[0], -np.maximum(x, 0))
    assert nodes_per_provider(session) == {"CPUExecutionProvider": 2}


def test_placement_is_empty_where_it_was_not_recorded(relu_model):
    assert nodes_per_provider(onnxruntime.InferenceSession(relu_model, providers=["CPUExecutionProvider"])) == {}


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="not run: it has CUDA")
def test_cuda_on_a_cpu_wheel_is_an_error_unless_allowed(relu_model, capfd):
    with pytest.raises(ToolchainError, match="without CUDAExecutionProvider") as caught:
        open_session(relu_model, "cuda")
    assert "onnxruntime-gpu" in caught.value.hint
    allowed = open_session(relu_model, "cuda", allow_cpu_fallback=True)
    assert allowed.get_providers() == ["CPUExecutionProvider"]
    assert capfd.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_fell_back_is_an_error(relu_model, monkeypatch):
    """What the GPU wheel does on a machine without CUDA: it lists the provider and comes up without it."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(ToolchainError, match="asked for CUDAExecutionProvider, got only CPU") as caught:
        open_session(relu_model, "cuda")
    assert "--allow-cpu-fallback" in caught.value.hint


def test_a_provider_that_raises_does_not_come_up(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no device")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(ToolchainError, match="asked for CUDAExecutionProvider, got nothing: ") as caught:
        check_usable("CUDAExecutionProvider")
    assert "--allow-cpu-fallback" in caught.value.hint


def test_unknown_target(relu_model):
    with pytest.raises(InputError, match="no target 'tpu'"):
        open_session(relu_model, "tpu")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*gone\.onnx"):
        open_session(tmp_path / "gone.onnx")


def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        open_session(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello world" * 20, None])
def test_broken_file(tmp_path, relu_model, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(relu_model[:-20] if content is None else content)
    with pytest.raises(InputError, match=r"'broken\.onnx' is not a whole ONNX model"):
        open_session(path)


def test_external_weights_by_path_and_as_bytes(linear_model):
    path = linear_model("dir with space/模型.onnx")
    by_path = open_session(path)
    as_bytes = open_session(path.read_bytes(), data_folder=path.parent)
    feeds = {"x": np.ones((2, 64), np.float32)}
    np.testing.assert_array_equal(by_path.run(None, feeds)[0], as_bytes.run(None, feeds)[0])


def test_external_weights_missing(linear_model):
    path = linear_model()
    os.remove(f"{path}.data")
    with pytest.raises(InputError, match=r"'linear\.onnx\.data', which is not beside it"):
        open_session(path)


def test_external_weights_truncated(linear_model):
    path = linear_model()
    os.truncate(f"{path}.data", 100)
    with pytest.raises(InputError, match="truncated: initializer 'w' ends after byte 16384, the file has 100"):
        open_session(path)


def test_external_weights_behind_a_symbolic_link(linear_model, tmp_path):
    path = linear_model("a/linear.onnx")
    (tmp_path / "b").mkdir()
    shutil.move(f"{path}.data", tmp_path / "b" / "blob")
    os.symlink(tmp_path / "b" / "blob", f"{path}.data")
    with pytest.raises(InputError, match="outside the model's folder") as caught:
        open_session(path)
    assert "cp -L" in caught.value.hint


def test_own_operator_without_its_library():
    with pytest.raises(ToolchainError, match=r"deployml::Magic.*not registered") as caught:
        open_session(model("y = deployml.Magic(x)", opset='"": 20, "deployml": 1'))
    assert "deployml.session" in caught.value.hint


def test_foreign_operator():
    with pytest.raises(UnsupportedError, match="acme::Magic"):
        open_session(model("y = acme.Magic(x)", opset='"": 20, "acme": 1'))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (model("y = com.microsoft.Magic(x)", opset='"": 20, "com.microsoft": 1'), "com.microsoft::Magic"),
        (model("y = Magic(x)"), "Magic of opset 20"),
        (model("y = Relu(x)", opset='"": 99'), "opset 99"),
        (model("y = Relu(x)", ir=99), "IR version 99"),
    ],
)
def test_newer_than_onnxruntime(data, said):
    with pytest.raises(ToolchainError, match=said) as caught:
        open_session(data)
    assert "pip install -U" in caught.value.hint


def test_no_kernel_for_the_type():
    data = model("y = Relu(x)", signature="(bfloat16[b,4] x) => (bfloat16[b,4] y)")
    with pytest.raises(UnsupportedError, match="no kernel for Relu"):
        open_session(data)


def test_op_library_missing_or_broken(relu_model, tmp_path):
    with pytest.raises(ToolchainError, match=r"no op library 'gone\.so'"):
        open_session(relu_model, libraries=[tmp_path / "gone.so"])
    (tmp_path / "junk.so").write_bytes(b"junk")
    with pytest.raises(ToolchainError, match=r"'junk\.so' does not load: .*too short"):
        open_session(relu_model, libraries=[tmp_path / "junk.so"])


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "missing a, b"),
        ({"a": np.zeros((2, 4), np.float32), "c": 0}, "missing b; unknown c"),
        ({"a": np.zeros((2, 4)), "b": np.zeros((2,), np.int64)}, r"'a' is float64\[2, 4\].*float32\[n, 4\]"),
        ({"a": np.zeros((2, 5), np.float32), "b": np.zeros((2,), np.int64)}, r"'a' is float32\[2, 5\]"),
        ({"a": np.zeros((2,), np.float32), "b": np.zeros((2,), np.int64)}, r"'a' is float32\[2\]"),
        ({"a": np.zeros((2, 4), np.float32), "b": np.zeros((3,), np.int64)}, "disagree on 'n': 2 and 3"),
    ],
)
def test_feeds_that_do_not_fit(feeds, said):
    data = model(
        "c = Cast<to = 1>(b) d = Unsqueeze(c, i) y = Add(a, d)",
        signature="(float[n,4] a, int64[n] b) => (float[n,4] y) <int64[1] i = {1}>",
    )
    session = open_session(data)
    with pytest.raises(InputError, match=said):
        feeds_for(session, feeds)
