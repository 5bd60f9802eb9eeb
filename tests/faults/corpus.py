"""Bad files, made by code: every way in which a file that is handed to a command may be no good.

Each maker writes one input into a folder and returns its path. ONNX files are written with raw protobuf, since nothing
else would write them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, parser

__all__ = ["BROKEN", "GOOD", "NOT_ONNX", "TORCH", "UNRUNNABLE", "good"]

Maker = Callable[[Path], Path]

#: A small model that every command takes.
GOOD = """
<ir_version: 10, opset_import: ["": 21]>
g (float[n, 4] x) => (float[n, 4] y)
<float[4, 4] w = {0.9, 0.1, -0.3, 0.2, 0.4, -0.8, 0.1, 0.5, -0.2, 0.3, 0.7, -0.6, 0.1, 0.2, -0.5, 0.8}>
{
  a = MatMul(x, w)
  [act] y = Tanh(a)
}
"""


def good() -> onnx.ModelProto:
    """A fresh copy of the small model."""
    return parser.parse_model(GOOD)


def _bytes(name: str, content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make


def _changed(change: Callable[[onnx.ModelProto], object]) -> Maker:
    """The small model with something wrong in it."""

    def make(folder: Path) -> Path:
        model = good()
        change(model)
        path = folder / "bad.onnx"
        path.write_bytes(model.SerializePartialToString())
        return path

    return make


def _cut(share: float) -> Maker:
    def make(folder: Path) -> Path:
        whole = good().SerializeToString()
        return _bytes("bad.onnx", whole[: int(len(whole) * share)])(folder)

    return make


def _external(**entries: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        del tensor.float_data[:]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return change


def _weight(dtype: int, dims: tuple[int, ...], raw: bytes) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        name = tensor.name
        tensor.Clear()
        tensor.name, tensor.data_type, tensor.raw_data = name, dtype, raw
        tensor.dims.extend(dims)

    return change


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def _same_output_twice(model: onnx.ModelProto) -> None:
    node = model.graph.node.add()
    node.CopyFrom(model.graph.node[0])
    node.name = "again"


def _dangling(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def _no_such_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def _wrong_count(model: onnx.ModelProto) -> None:
    model.graph.node[1].input.extend(["a", "a"])


def _deep(model: onnx.ModelProto) -> None:
    graph = model.graph
    for _ in range(90):  # protobuf itself refuses a depth of 100
        node = graph.node.add(op_type="If", input=["c"], output=["o"])
        for name in ("then_branch", "else_branch"):
            attribute = node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
            attribute.g.name = name
        graph = node.attribute[0].g


def _wide_dims(model: onnx.ModelProto) -> None:
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_value = 1 << 40


def _negative_dims(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -4


def _recursive_function(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="own", version=1)
    function = model.functions.add(name="F", domain="own", input=["x"], output=["y"])
    function.opset_import.add(domain="own", version=1)
    function.node.add(op_type="F", domain="own", input=["x"], output=["y"])
    model.graph.node[1].op_type, model.graph.node[1].domain = "F", "own"


def _no_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].ClearField("type")


def _sequence_input(model: onnx.ModelProto) -> None:
    kind = model.graph.input[0].type
    kind.Clear()
    kind.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def _opset(version: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return change


def _operator(op_type: str, domain: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[1].op_type, model.graph.node[1].domain = op_type, domain
        if domain:
            model.opset_import.add(domain=domain, version=1)

    return change


def _ir_version(version: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.ir_version = version

    return change


def _zip(files: dict[str, bytes], name: str = "bad.pt") -> Maker:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for inner, content in files.items():
                archive.writestr(inner, content)
        return folder / name

    return make


def _fifo(name: str) -> Maker:
    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def _folder(name: str) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def _missing(name: str) -> Maker:
    return lambda folder: folder / name


def _link(name: str, to: str) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).symlink_to(to)
        return folder / name

    return make


def _odd_name(folder: Path) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe\xa4 bad.onnx"))
    path.write_bytes(b"no model")
    return path


def _safetensors(header: bytes, body: bytes, length: int | None = None) -> Maker:
    return _bytes("bad.safetensors", struct.pack("<Q", len(header) if length is None else length) + header + body)


def _tensor(**entry: object) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


_BOMB = _zip({"archive/data.pkl": b"\0" * (64 << 20), "archive/version": b"3"})

#: What is no file at all, or no readable one, whatever command it is given to; the name ends in .onnx.
NOT_ONNX: dict[str, Maker] = {
    "missing": _missing("none.onnx"),
    "empty": _bytes("bad.onnx", b""),
    "folder": _folder("bad.onnx"),
    "fifo": _fifo("bad.onnx"),
    "device": _link("bad.onnx", "/dev/zero"),
    "dangling link": _link("bad.onnx", "nowhere.onnx"),
    "link to itself": _link("bad.onnx", "bad.onnx"),
    "name that is no UTF-8": _odd_name,
    "text": _bytes("bad.onnx", b"hello, world\n" * 20),
    "json": _bytes("bad.onnx", b'{"ir_version": 10}'),
    "zip": _zip({"a.txt": b"a"}, "bad.onnx"),
    "pickle": _bytes("bad.onnx", pickle.dumps({"a": 1})),
    "zeros": _bytes("bad.onnx", bytes(4096)),
    "ones": _bytes("bad.onnx", b"\xff" * 4096),
    "git lfs pointer": _bytes("bad.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    "length beyond the end": _bytes("bad.onnx", b"\x08\x0a\x3a\xff\xff\xff\x7f"),
    "numpy array": _bytes("bad.onnx", _npz()),
}

#: ONNX files that are broken: every command refuses them.
BROKEN: dict[str, Maker] = {
    "cut in half": _cut(0.5),
    "last byte gone": _cut(0.999),
    "first quarter": _cut(0.25),
    "no graph": _changed(lambda m: m.ClearField("graph")),
    "no nodes": _changed(lambda m: m.graph.ClearField("node")),
    "no outputs": _changed(lambda m: m.graph.ClearField("output")),
    "no opset": _changed(lambda m: m.ClearField("opset_import")),
    "opset 0": _changed(_opset(0)),
    "opset -1": _changed(_opset(-1)),
    "cycle": _changed(_cycle),
    "dangling input": _changed(_dangling),
    "output nobody makes": _changed(_no_such_output),
    "one value made twice": _changed(_same_output_twice),
    "two nodes of one name": _changed(lambda m: setattr(m.graph.node[0], "name", "act")),
    "operator without a name": _changed(_operator("", "")),
    "node without an output": _changed(lambda m: m.graph.node.add(op_type="MatMul", name="idle", input=["x", "w"])),
    "weights file missing": _changed(_external(location="weights.bin")),
    "weights file elsewhere": _changed(_external(location="../../../../etc/passwd")),
    "weights file absolute": _changed(_external(location="/etc/passwd", offset="0", length="64")),
    "weights file without a place": _changed(_external()),
    "weights offset negative": _changed(_external(location="bad.onnx", offset="-8", length="64")),
    "weights offset no number": _changed(_external(location="bad.onnx", offset="many", length="64")),
    "weights too short": _changed(_external(location="bad.onnx", offset="0", length="1000000")),
    "weights of another size": _changed(_external(location="bad.onnx", offset="0", length="4")),
    "weights cut short": _changed(_weight(TensorProto.FLOAT, (4, 4), bytes(12))),
    "weights of a huge shape": _changed(_weight(TensorProto.FLOAT, (1 << 31, 1 << 31), bytes(64))),
    "weights of a negative shape": _changed(_weight(TensorProto.FLOAT, (-4, 4), bytes(64))),
    "weights of an unknown type": _changed(_weight(999, (4, 4), bytes(64))),
    "weights without a type": _changed(_weight(0, (4, 4), bytes(64))),
    "weights of text": _changed(_weight(TensorProto.STRING, (4, 4), b"")),
    "deep nesting": _changed(_deep),
    "function that calls itself": _changed(_recursive_function),
    "absurd input size": _changed(_wide_dims),
    "negative input size": _changed(_negative_dims),
}

#: ONNX files that say something that can be read, and that onnxruntime refuses: commands that run a model refuse them.
UNRUNNABLE: dict[str, Maker] = {
    "opset 999": _changed(_opset(999)),
    "ir version 999": _changed(_ir_version(999)),
    "unknown operator": _changed(_operator("Frobnicate", "")),
    "operator of an unknown domain": _changed(_operator("Thing", "com.example")),
    "too many inputs": _changed(_wrong_count),
    "weights of integers": _changed(_weight(TensorProto.INT64, (4, 4), bytes(128))),
    "weights of another shape": _changed(_weight(TensorProto.FLOAT, (3, 5), bytes(60))),
    "input without a type": _changed(_no_type),
    "input that is a sequence": _changed(_sequence_input),
}

#: Files of torch and its neighbours; for export.
TORCH: dict[str, Maker] = {
    "missing": _missing("none.pt"),
    "empty": _bytes("bad.pt", b""),
    "fifo": _fifo("bad.pt"),
    "device": _link("bad.pt", "/dev/zero"),
    "link to itself": _link("bad.pt", "bad.pt"),
    "folder": _folder("bad"),
    "text": _bytes("bad.pt", b"hello"),
    "onnx": _bytes("bad.pt", good().SerializeToString()),
    "npz": _bytes("bad.npz", _npz()),
    "zip of nothing": _zip({}),
    "zip bomb": _BOMB,
    "zip cut short": lambda folder: _bytes("bad.pt", _BOMB(folder).read_bytes()[:3000])(folder),
    "zip that climbs": _zip({"../../evil/data.pkl": b"x", "archive/data.pkl": b"\x80\x02."}),
    "program of nothing": _zip({"m/archive_format": b"pt2", "m/models/model.json": b"{}"}, "bad.pt2"),
    "program of broken json": _zip({"m/archive_format": b"pt2", "m/models/model.json": b"{"}, "bad.pt2"),
    "script of nothing": _zip({"m/data.pkl": b"\x80\x02.", "m/constants.pkl": b"\x80\x02.", "m/version": b"3"}),
    "pickle that stops": _bytes("bad.pt", pickle.dumps({"a": [1] * 99})[:-20]),
    "pickle that runs code": _bytes("bad.pt", b"cos\nsystem\n(S'touch owned'\ntR."),
    "pickle of a number": _bytes("bad.pt", pickle.dumps(3)),
    "safetensors header too long": _safetensors(b"{}", b"", length=1 << 60),
    "safetensors header no json": _safetensors(b"{oops}  ", bytes(8)),
    "safetensors body short": _safetensors(_tensor(), bytes(3)),
    "safetensors offsets cross": _safetensors(_tensor(data_offsets=[8, 0]), bytes(8)),
    "safetensors shape absurd": _safetensors(_tensor(shape=[1 << 62]), bytes(8)),
    "safetensors dtype unknown": _safetensors(_tensor(dtype="F7"), bytes(8)),
    "safetensors of nothing": _safetensors(b"{}      ", b""),
    "gguf": _bytes("bad.pt", b"GGUF" + bytes(64)),
    "name that is no UTF-8": lambda f: _odd_name(f),
}
