"""What cannot be loaded: one clear error each, in bounded time, and no code of the file is ever run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from deployml.exporter.load import load
from deployml.exporter.load.pickles import scan
from deployml.runtime.errors import InputError

SECONDS = 10.0


@pytest.fixture(autouse=True)
def bounded():
    """No refusal takes long, whatever the file says."""
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < SECONDS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)), path)
    return path


def refused(path: Path, *words: str, **options: object) -> InputError:
    """Load a path that must be refused; the message names the file and says what to do."""
    with pytest.raises(InputError) as error:
        load(path, **options)
    text = str(error.value)
    assert error.value.hint
    assert path.name in text
    for word in words:
        assert word in text, text
    return error.value


class Attack:
    """Unpickles into a call of os.system."""

    def __init__(self, sentinel: Path) -> None:
        self.command = f"touch {sentinel}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def sentinel(tmp_path: Path):
    """A file that exists once hostile code has run."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "code of the file was run"


def test_sentinel_would_be_seen(tmp_path):
    path = tmp_path / "seen"
    pickle.loads(pickle.dumps(Attack(path)))
    assert path.exists()


@pytest.mark.parametrize("wrap", ["bare", "beside weights", "inside a module"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "pickle protocol 5"])
@pytest.mark.parametrize("factory", [None, "nowhere:build"])
def test_hostile_pickle_runs_nothing(tmp_path, sentinel, wrap, form, factory):
    module = nn.Linear(2, 2)
    module.extra = Attack(sentinel)
    content = {
        "bare": Attack(sentinel),
        "beside weights": {"model": {"w": torch.ones(2)}, "x": Attack(sentinel)},
    }
    held = content.get(wrap, module)
    path = tmp_path / "model.pt"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(held, protocol=5 if form.endswith("5") else 2))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=form == "zip")
    error = refused(path, "system", factory=factory)
    assert "attack" in error.hint
    assert "--trust-pickle" not in str(error)


def test_allowing_a_hostile_name_does_not_help(tmp_path, sentinel):
    path = tmp_path / "model.pt"
    torch.save(Attack(sentinel), path)
    refused(path, allow_globals=("posix.system", "os.system", "nt.system"))


def test_hostile_inputs_file_runs_nothing(tmp_path, sentinel):
    path = tmp_path / "inputs.pt"
    torch.save({"x": Attack(sentinel)}, path)
    with pytest.raises(InputError, match="Python objects"):
        load(nn.Linear(2, 2), inputs_file=path)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    batch = torch.export.Dim("batch", min=2, max=64)
    module = nn.Sequential(nn.Linear(8, 8))
    torch.export.save(torch.export.export(module, (torch.randn(3, 8),), dynamic_shapes=({0: batch},)), path)
    return path


def rewritten(source: Path, target: Path, change) -> Path:
    """Copy a zip archive, each entry passed through ``change(name, content)``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry.filename)))
    return target


def hostile_expression(program: Path, target: Path, sentinel: Path) -> Path:
    attack = f"__import__('os').system('touch {sentinel}')"

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        return re.sub(rb"Symbol\('s\d+', positive=True, integer=True\)", attack.encode(), content)

    return rewritten(program, target, change)


def hostile_sample(program: Path, target: Path, sentinel: Path) -> Path:
    attack = saved_bytes((Attack(sentinel),))
    return rewritten(program, target, lambda n, c: attack if n.endswith("sample_inputs/model.pt") else c)


def hostile_weight(program: Path, target: Path, sentinel: Path) -> Path:
    attack = saved_bytes(Attack(sentinel))

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights/weight_0"):
            return attack
        return content.replace(b'"use_pickle": false', b'"use_pickle": true') if "weights_config" in name else content

    return rewritten(program, target, change)


def saved_bytes(held: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("attack", [hostile_expression, hostile_sample, hostile_weight])
def test_hostile_program_runs_nothing(program, tmp_path, sentinel, attack):
    refused(attack(program, tmp_path / "model.pt2", sentinel))


@pytest.mark.parametrize("attack", [hostile_expression, hostile_sample, hostile_weight])
def test_hostile_program_is_a_real_attack(program, tmp_path, attack):
    """Trusted, the same files do run their code: the test above proves something."""
    path, ran = attack(program, tmp_path / "model.pt2", tmp_path / "seen"), tmp_path / "seen"
    with contextlib.suppress(InputError):
        load(path, trust_pickle=True)
    assert ran.exists()


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("models/model.json", {"guards_code": ["().__class__.__base__.__subclasses__()"]}),
        ("models/model.json", {"expr_str": "Max('__import__(\"os\").getcwd()', 1)"}),
        ("models/model.json", {"expr_str": "Symbol('__import__(\"os\").getcwd()')"}),
        ("models/model.json", {"expr_str": "lambdify(s0, s1)"}),
        ("models/model.json", {"target": "torch.hub.load", "inputs": []}),
        ("data/constants/model_constants_config.json", {"config": {"c": {"path_name": "opaque_obj_0"}}}),
        ("data/weights/model_weights_config.json", {"config": {"w": {"path_name": "../../etc/passwd"}}}),
    ],
)
def test_program_with_other_ways_to_run_code(program, tmp_path, part, content):
    changed = json.dumps(content).encode()
    hostile = rewritten(program, tmp_path / "model.pt2", lambda n, c: changed if n.endswith(part) else c)
    refused(hostile, "could run code", "--trust-pickle")


@pytest.mark.parametrize("keep", [0, 3, 50, 400, 1500, -100])
def test_truncated_archive(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[:keep])
    refused(saved)


@pytest.mark.parametrize("keep", [60, 400, 900, -20])
def test_truncated_legacy_file(tmp_path, keep):
    path = tmp_path / "old.pt"
    torch.save({"w": torch.randn(50)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path)


def test_damaged_record(saved):
    content = bytearray(saved.read_bytes())
    at = content.find(b"torch.nn.modules.linear")
    content[at : at + 40] = os.urandom(40)
    saved.write_bytes(bytes(content))
    refused(saved)


@pytest.mark.parametrize("seed", range(6))
def test_random_bytes(tmp_path, seed):
    path = tmp_path / "model.pt"
    noise = torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    head = [b"", b"PK\x03\x04", b"\x80\x02", b"\x08\x07\x12", struct.pack("<Q", 4000) + b"{", b"{"][seed]
    path.write_bytes(head + bytes(noise.tolist()))
    refused(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"weight_map": {}}', "index of sharded weights"),
        (b'{"a": 1}', "JSON"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"hello", "no form"),
    ],
)
def test_files_that_are_no_model(tmp_path, content, word):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    refused(path, word)


def test_onnx_model_is_sent_to_optimize(tmp_path):
    import onnx

    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    path = tmp_path / "model.pt"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    error = refused(path, "ONNX")
    assert "deployml optimize model.pt" in error.hint


def test_npz_is_sent_to_inputs(tmp_path):
    import numpy as np

    np.savez(tmp_path / "x.npz", x=np.ones(3))
    assert "--inputs x.npz" in refused(tmp_path / "x.npz").hint


def test_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "a.zip", "without a PyTorch model")


def test_missing_file_names_its_neighbours(saved):
    assert "model.pt" in refused(saved.with_name("modle.pt")).hint
    refused(saved.parent / "nowhere" / "x.pt")


def test_dangling_link(tmp_path):
    (tmp_path / "model.pt").symlink_to(tmp_path / "gone")
    refused(tmp_path / "model.pt", "link")


def test_folder_without_config(saved):
    assert "model.pt" in refused(saved.parent, "no config.json").hint


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("{", "cannot be read"),
        ("[]", "model_type"),
        ("{}", "model_type"),
        ('{"model_type": "bert"}', "no weights"),
    ],
)
def test_folder_that_is_incomplete(tmp_path, config, word):
    (tmp_path / "config.json").write_text(config)
    refused(tmp_path, word)


def test_folder_with_code_of_its_own(tmp_path, sentinel):
    config = {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoModel": "modeling.OwnModel"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text(f"open({str(sentinel)!r}, 'w')\n")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    refused(tmp_path, "code of its own", "--factory")


def test_truncated_safetensors(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(1000)}, path)
    content = path.read_bytes()
    for keep in (40, 90, 500):
        path.write_bytes(content[:keep])
        refused(path, factory=lambda: nn.Linear(1, 1))


def test_zip_bomb_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, protocol=2))
        with archive.open("m/data/0", "w", force_zip64=True) as entry:
            for _ in range(150):
                entry.write(bytes(1 << 20))
    assert path.stat().st_size < 2 << 20
    refused(path, "declares")


def test_two_entries_of_one_name(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning):
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/data.pkl", b"\x80\x02}.")
    refused(path, "one name")


def as_archive(path: Path, pickled: bytes) -> Path:
    """A torch.save file whose pickle is ``pickled``."""
    torch.save({}, path)
    other = path.with_suffix(".other")
    rewritten(path, other, lambda n, c: pickled if n.endswith("data.pkl") else c)
    shutil.move(other, path)
    return path


def test_deeply_nested_pickle(tmp_path):
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    refused(as_archive(tmp_path / "deep.pt", deep))
    nested = b"\x80\x02" + b"}U\x01m" * 100_000 + b"}" + b"s" * 100_000 + b"."
    refused(as_archive(tmp_path / "nested.pt", nested))


def test_pickle_that_doubles(tmp_path):
    """A billion laughs: tiny on disk and in memory, endless for whoever walks it without care."""
    laughs = b"\x80\x02]" + b"q\x00h\x00\x86" * 200 + b"."
    refused(as_archive(tmp_path / "laughs.pt", laughs))
    mappings = b"\x80\x02}" + b"".join(b"q%c}(U\x01ah%cU\x01bh%cu" % (i, i, i) for i in range(100)) + b"."
    refused(as_archive(tmp_path / "mappings.pt", mappings))


def test_pickle_that_asks_for_terabytes(tmp_path):
    huge = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R."
    refused(as_archive(tmp_path / "huge.pt", huge))


def test_pickle_with_endless_instructions(tmp_path):
    refused(as_archive(tmp_path / "long.pt", b"\x80\x02" + b"N0" * 6_000_000 + b"N."), "more instructions")


def test_scan_follows_every_way_to_name_a_global():
    assert scan(pickle.dumps(os.system, protocol=0)) == (f"{os.name}.system",)
    assert scan(pickle.dumps(os.system, protocol=2)) == (f"{os.name}.system",)
    assert scan(pickle.dumps([os.system, os.system], protocol=4)) == (f"{os.name}.system",)
    assert scan(b"(iposix\nsystem\n.") == ("posix.system",)
    assert scan(b"\x80\x02\x82\x01.") == ("copyreg extension 1",)
    with pytest.raises(ValueError, match=r".+"):
        scan(pickle.dumps([1, 2, 3])[:-1])


def test_refusal_of_many_globals_is_short(tmp_path):
    names = b"".join(b"cfoo.bar\nName%d\n0" % i for i in range(500))
    error = refused(as_archive(tmp_path / "many.pt", b"\x80\x02" + names + b"}."), "and 460 more")
    assert error.message.count("\n") < 60


def test_forged_names_reach_neither_the_terminal_nor_a_command(tmp_path):
    forged = b"\x80\x02ca; touch /tmp/x #\nName\n0c\x1b[31mred\nName\n0}."
    error = refused(as_archive(tmp_path / "forged.pt", forged), "attack", "touch")
    assert "\x1b" not in str(error)
    assert "--allow-global" not in str(error)
    state = {"\x1b[2Jweight": torch.ones(1)}
    torch.save(state, tmp_path / "keys.pt")
    assert "\x1b" not in str(refused(tmp_path / "keys.pt", "weight", factory=lambda: nn.Linear(1, 1)))


def test_command_quotes_the_file_name(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "my model;x.pt")
    assert "deployml export 'my model;x.pt' --trust-pickle" in refused(tmp_path / "my model;x.pt").hint


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("build", ["names no function"]),
        (":build", ["names no function"]),
        ("tinynet:", ["names no function"]),
        ("nopackage.mod:build", ["no module nopackage"]),
        ("nofile.py:build", ["nofile.py"]),
        ("tinynet:biuld", ["no biuld", "Did you mean build"]),
        ("tinynet:width", ["a int, not a function"]),
        ("tinynet:no_module", ["a int, not an nn.Module"]),
        ("tinynet:give_class", ["the class Net", "instance"]),
        ("tinynet:explode", ["the weights server is down", "tinynet.py:"]),
        ("tinynet:Net.forward", ["no Net.forward"]),
        ("broken.py:build", ["SyntaxError"]),
        ("leaves.py:build", ["SystemExit"]),
    ],
)
def test_wrong_factory(tmp_path, monkeypatch, factory, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tinynet", raising=False)
    source = "from torch import nn\nwidth = 3\nclass Net(nn.Linear):\n    pass\ndef build():\n    return Net(2, 2)\n"
    source += "def no_module():\n    return 42\ndef give_class():\n    return Net\n"
    source += "def explode():\n    raise RuntimeError('the weights server is down')\n"
    Path("tinynet.py").write_text(source)
    Path("broken.py").write_text("def build(:\n")
    Path("leaves.py").write_text("import sys\nsys.exit(3)\n")
    torch.save(nn.Linear(2, 2).state_dict(), "weights.pt")
    with pytest.raises(InputError) as error:
        load("weights.pt", factory=factory)
    assert "--factory" in str(error.value) or factory.partition(":")[0] in str(error.value)
    for word in words:
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("0.weight"), ["missing in the file (1)", "0.weight"]),
        (lambda state: state.update(new=torch.ones(1)), ["not in the model (1)", "new"]),
        (
            lambda state: state.update({"0.bias": torch.ones(9)}),
            ["0.bias: (9,) in the file, (64,) in the model"],
        ),
        (lambda state: [state.pop(key) for key in list(state)[1:]], ["missing in the file (3)"]),
        (lambda state: state.update({f"k{i}": torch.ones(1) for i in range(50)}), ["and 30 more"]),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, words):
    state = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)).state_dict()
    change(state)
    path = tmp_path / "weights.pt"
    torch.save(dict(state), path)
    refused(path, *words, factory=lambda: nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)))


def test_factory_where_it_has_no_place(program):
    refused(program, "brings its own module", factory="a.b:c")


@pytest.mark.parametrize("held", [{}, {"epoch": 3}, [1, 2], torch.ones(3), {"a": {"b": 1}}])
def test_saved_object_without_weights(tmp_path, held):
    path = tmp_path / "model.pt"
    torch.save(held, path)
    refused(path, "no module and no weights")
