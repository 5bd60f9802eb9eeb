"""Every form a model comes in is recognised by its content and loads to the same outputs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deployml.exporter.load import load
from deployml.exporter.load.sniff import Format, sniff
from deployml.runtime.errors import InputError

X = ("x:float32[batch,seq,8]",)
TORCH_GLOBALS = (
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.activation.GELU",
)
NET_SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(width, 16)
        self.last = nn.Linear(16, width)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.last(torch.relu(self.first(x))) * self.scale

def build():
    return Net()

def build_wide():
    return Net(width=12)

def no_module():
    return 42

def give_class():
    return Net

def explode():
    raise RuntimeError("the weights server is down")
"""


@pytest.fixture(scope="module")
def sequential() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module `tinynet` to import."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinynet.py").write_text(NET_SOURCE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [name for name in sys.modules if name == "tinynet" or name.startswith("deployml_factory")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.fixture
def net(folder: Path):
    """An instance of the importable class, as another process would have it."""
    sys.path.append(str(folder))
    try:
        import tinynet

        torch.manual_seed(1)
        model = tinynet.Net().eval()
    finally:
        sys.path.remove(str(folder))
    return model


def same(loaded, expected: nn.Module) -> None:
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x), expected(x), rtol=0, atol=0)


def test_pickled_module_needs_trust_and_loads_with_it(sequential, tmp_path):
    path = tmp_path / "model.bin"
    torch.save(sequential, path)
    assert sniff(path) is Format.TORCH_ZIP
    with pytest.raises(InputError) as refusal:
        load(path, inputs=("input:float32[batch,8]",))
    assert all(name in refusal.value.message for name in TORCH_GLOBALS)
    assert all(f"--allow-global {name}" in refusal.value.hint for name in TORCH_GLOBALS)
    assert "--trust-pickle" in refusal.value.hint
    for trusted in (
        load(path, inputs=("input:float32[batch,8]",), trust_pickle=True),
        load(path, inputs=("input:float32[batch,8]",), allow_globals=TORCH_GLOBALS),
    ):
        assert (trusted.kind, trusted.name, trusted.source) == ("module", "model", "model.bin")
        same(trusted, sequential)


def test_command_in_the_refusal_is_the_one_that_works(sequential, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(sequential, path)
    with pytest.raises(InputError) as refusal:
        load(path)
    words = refusal.value.hint.splitlines()[0].split()
    named = [words[i + 1] for i, word in enumerate(words) if word == "--allow-global"]
    same(load(path, inputs=("input:float32[batch,8]",), allow_globals=named), sequential)


def test_allowing_some_globals_lists_all_again(sequential, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(sequential, path)
    with pytest.raises(InputError, match="GELU"):
        load(path, allow_globals=TORCH_GLOBALS[:2])


def test_legacy_format_needs_full_trust(sequential, tmp_path):
    path = tmp_path / "old.pt"
    torch.save(sequential, path, _use_new_zipfile_serialization=False)
    assert sniff(path) is Format.TORCH_LEGACY
    with pytest.raises(InputError, match=r"nn\.modules\.linear\.Linear"):
        load(path)
    with pytest.raises(InputError, match="cannot be allowed name by name") as refusal:
        load(path, allow_globals=TORCH_GLOBALS)
    assert "--trust-pickle" in refusal.value.hint
    same(load(path, inputs=("input:float32[batch,8]",), trust_pickle=True), sequential)


def test_class_in_the_current_folder_is_found(net, folder, monkeypatch):
    torch.save(net, folder / "model.pt")
    monkeypatch.delitem(sys.modules, "tinynet")
    loaded = load("model.pt", inputs=X, trust_pickle=True)
    same(loaded, net)
    assert str(folder) not in sys.path


def test_class_that_cannot_be_imported(net, folder, monkeypatch):
    torch.save(net, folder / "model.pt")
    (folder / "tinynet.py").rename(folder / "renamed.py")
    monkeypatch.delitem(sys.modules, "tinynet")
    with pytest.raises(InputError, match=r"cannot be imported here.*tinynet") as error:
        load("model.pt", inputs=X, trust_pickle=True)
    assert "--factory" in error.value.hint
    same(load("model.pt", inputs=X, factory="renamed.py:build"), net)


def test_class_of_the_saving_script(folder):
    script = NET_SOURCE + "\nif __name__ == '__main__':\n    torch.manual_seed(2)\n    torch.save(Net(), 'model.pt')\n"
    (folder / "train.py").write_text(script)
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, timeout=120)
    with pytest.raises(InputError, match=r"__main__\.Net") as refusal:
        load("model.pt", inputs=X)
    assert "--factory FILE.py:FN" in refusal.value.hint
    with pytest.raises(InputError, match=r"__main__\.Net") as refusal:
        load("model.pt", inputs=X, trust_pickle=True)
    assert "--factory FILE.py:FN" in refusal.value.hint
    loaded = load("model.pt", inputs=X, factory="train.py:build")
    torch.manual_seed(2)
    torch.testing.assert_close(loaded.module.state_dict()["first.weight"], nn.Linear(8, 16).weight.data)
    assert any("were not loaded" in note for note in loaded.notes)


def test_exported_program(sequential, tmp_path):
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(sequential, (torch.randn(3, 8),), dynamic_shapes=({0: batch},))
    path = tmp_path / "program.zip"
    torch.export.save(program, path)
    assert sniff(path) is Format.PROGRAM
    loaded = load(path)
    assert (loaded.kind, loaded.dynamic_shapes) == ("program", None)
    assert loaded.args[0].shape == (3, 8)
    torch.testing.assert_close(loaded.module.module()(*loaded.args), sequential(*loaded.args))


def test_program_without_examples_gets_some_within_its_ranges(sequential):
    batch = torch.export.Dim("batch", min=4, max=6)
    program = torch.export.export(sequential, (torch.randn(5, 8),), dynamic_shapes=({0: batch},))
    program.example_inputs = None
    loaded = load(program)
    assert loaded.name == "program"
    assert 4 <= loaded.args[0].shape[0] <= 6
    assert loaded.module.module()(*loaded.args).shape == loaded.args[0].shape


def test_program_exported_in_training_mode_is_told(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).train()
    loaded = load(torch.export.export(model, (torch.randn(3, 8),)))
    assert any("training mode" in note for note in loaded.notes)


def test_torchscript_archive(sequential, tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.script(sequential.train()).save(path)
    sequential.eval()
    assert sniff(path) is Format.TORCHSCRIPT
    with pytest.raises(InputError, match=r"\(input\)"):
        load(path)
    loaded = load(path, inputs=("input:float32[batch,seq,8]",))
    assert loaded.kind == "torchscript"
    assert not loaded.module.training
    assert [str(dim.__name__) for dim in loaded.dynamic_shapes[0].values()] == ["batch", "seq"]
    assert not loaded.kwargs
    same(loaded, sequential)


@pytest.mark.parametrize("nesting", ["plain", "model", "state_dict", "deep", "training"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_state_dict(net, folder, nesting, prefix):
    state = OrderedDict((prefix + name, tensor) for name, tensor in net.state_dict().items())
    checkpoint = {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"state_dict": state, "hyper": {"lr": 0.1}},
        "deep": {"run": {"checkpoint": {"net": state}}},
        "training": {
            "ema": {name: tensor + 1 for name, tensor in state.items()},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2), "step": torch.ones(())}}},
            "model_state_dict": state,
        },
    }[nesting]
    torch.save(checkpoint, folder / "weights.pt")
    loaded = load("weights.pt", inputs=X, factory="tinynet:build")
    same(loaded, net)
    assert not loaded.module.training
    assert not any("training mode" in note for note in loaded.notes)
    assert any(repr(prefix) in note for note in loaded.notes) == bool(prefix)


def test_state_dict_without_factory(net, folder):
    torch.save(net.state_dict(), folder / "weights.pt")
    with pytest.raises(InputError, match=r"a state_dict \(5 tensors\)") as error:
        load("weights.pt")
    assert "--factory pkg.mod:build" in error.value.hint


def test_other_objects_beside_the_weights_are_not_loaded(net, folder):
    import argparse

    bag: defaultdict[str, int] = defaultdict(int, seen=3)
    checkpoint = {
        "model": net.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "counts": bag,
        "path": torch.nn.ReLU(),
    }
    torch.save(checkpoint, folder / "weights.pt")
    with pytest.raises(InputError, match=r"argparse\.Namespace"):
        load("weights.pt", inputs=X)
    same(load("weights.pt", inputs=X, factory="tinynet:build"), net)


def test_safetensors(net, folder):
    save_file(net.state_dict(), folder / "weights.pt")
    assert sniff(folder / "weights.pt") is Format.SAFETENSORS
    with pytest.raises(InputError, match="weights without the module"):
        load("weights.pt", inputs=X)
    same(load("weights.pt", inputs=X, factory="tinynet.py:build"), net)


def test_checkpoint_with_module_and_inputs(sequential, tmp_path):
    x = torch.randn(3, 8)
    checkpoint = {"model": sequential, "example_inputs": (x,), "dynamic_axes": {"input": {0: "batch"}}}
    torch.save(checkpoint, tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", trust_pickle=True)
    torch.testing.assert_close(loaded.args[0], x)
    assert loaded.dynamic_shapes["input"][0].__name__ == "batch"
    torch.save({"model": sequential, "inputs": {"input": x}}, tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", trust_pickle=True)
    torch.testing.assert_close(loaded.kwargs["input"], x)
    assert loaded.dynamic_shapes is None


def test_data_parallel_is_unwrapped(sequential, tmp_path):
    torch.save(nn.DataParallel(sequential), tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", inputs=("input:float32[batch,8]",), trust_pickle=True)
    assert type(loaded.module) is nn.Sequential
    assert any("DataParallel" in note for note in loaded.notes)


def test_module_object(sequential):
    x = torch.randn(1, 8)
    loaded = load(sequential, args=(x,))
    assert (loaded.module, loaded.name, loaded.dynamic_shapes) == (sequential, "Sequential", None)
    assert any("fixed" in note for note in loaded.notes)


def test_script_module_object(sequential):
    loaded = load(torch.jit.script(sequential), kwargs={"input": torch.randn(3, 8)})
    assert (loaded.kind, loaded.name, len(loaded.args)) == ("torchscript", "Sequential", 1)


def test_plain_pickle(sequential, tmp_path):
    import pickle

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(sequential))
    with pytest.raises(InputError, match=r"linear\.Linear"):
        load(path)
    same(load(path, inputs=("input:float32[batch,8]",), trust_pickle=True), sequential)


@pytest.mark.parametrize("what", [{"a": torch.ones(2)}, 3, None, b"bytes", io.BytesIO()])
def test_no_model_object(what):
    with pytest.raises(InputError, match="cannot export"):
        load(what)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory) -> Path:
    transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=120
    )
    path = tmp_path_factory.mktemp("hub") / "models--acme--tiny-bert" / "snapshots" / "c0ffee"
    transformers.BertForSequenceClassification(config).to(torch.bfloat16).save_pretrained(path)
    return path


def test_hugging_face_folder(bert_folder):
    assert sniff(bert_folder) is Format.HUGGING_FACE
    loaded = load(bert_folder)
    assert loaded.name == "tiny-bert"
    assert type(loaded.module).__name__ == "BertForSequenceClassification"
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}
    assert any("bfloat16" in note for note in loaded.notes)
    assert list(loaded.kwargs) == ["input_ids", "attention_mask"]
    assert not loaded.module.training


def test_hugging_face_folder_of_links(bert_folder, tmp_path):
    for file in bert_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert load(tmp_path).module.config.vocab_size == 120
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="not there"):
        load(tmp_path)


def test_hugging_face_folder_with_other_weights(bert_folder, tmp_path):
    config = json.loads((bert_folder / "config.json").read_text())
    config["architectures"] = ["BertForQuestionAnswering"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(bert_folder / "model.safetensors")
    with pytest.raises(InputError, match=r"would be random.*qa_outputs"):
        load(tmp_path)


def test_weights_inside_a_hugging_face_folder_point_to_it(bert_folder):
    with pytest.raises(InputError) as error:
        load(bert_folder / "model.safetensors")
    assert "folder it lies in" in error.value.hint
