"""Every kind of drift is caught by check, with the right exit code and a sentence that names the place."""

import importlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from deployml import check, lock, optimize
from deployml.cli import main
from deployml.exporter import measuring
from deployml.runtime import latency
from deployml.runtime.errors import InputError

from .gate_model import plain_model, save

OP = "FlashAttention_mask"


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Path:
    """A fused model with its source, lock, report and unfused sibling."""
    folder = tmp_path_factory.mktemp("locked")
    save(plain_model(), folder / "source.onnx")
    optimize(folder / "source.onnx", output=folder / "m.onnx", html=False)
    lock(folder / "m.onnx")
    return folder


@pytest.fixture
def work(locked, tmp_path) -> Path:
    """A copy to spoil; returns the path of the model."""
    for file in locked.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "m.onnx"


def edited(path: Path, edit) -> None:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def texts(path: Path, **options) -> str:
    """What check says; the command says the same and ends with 1."""
    found = check(path, **options)
    assert found.verdict == "fail"
    assert main(["check", str(path)]) == 1
    return "\n".join(f.text for f in found.failures)


def fused_op(path: Path) -> str:
    sites = json.loads(path.with_name("m.lock.json").read_text())["sites"]
    return sites[0]["op"].removeprefix("com.microsoft::")


def test_the_model_itself_passes(work):
    found = check(work, against=work.with_name("source.onnx"))
    assert found.verdict == "pass"
    assert found.findings == ()
    assert found.parity is not None
    assert main(["check", str(work)]) == 0


def test_an_unfused_site_is_caught_with_its_layer(work, capsys):
    optimize(work.with_name("source.onnx"), output=work, fuse_attention=False, html=False)
    text = texts(work)
    assert (
        f"layers 0-1 attention (encoder.layer.0-1.attention), 2 of them, was {fused_op(work)}, is now 5 plain nodes"
        in text
    )
    assert "it was left unfused; today's rules would make" in text
    assert "operators changed:" in text
    assert main(["check", str(work)]) == 1
    assert "FAIL layers 0-1 attention" in capsys.readouterr().out


def test_a_declined_site_comes_with_rule_reason_and_detail(work):
    report = json.loads(work.with_name("m.report.json").read_text())
    assert report["sites"][1]["module_path"] == "encoder.layer.1.attention"
    lost = work.with_name("m.lock.json").read_text()
    report["sites"][1] |= {
        "status": "declined",
        "op": None,
        "rule": None,
        "reason": "head-size",
        "nearest": "ATT102",
        "detail": "7 is odd",
    }
    work.with_name("m.report.json").write_text(json.dumps(report))
    assert work.with_name("m.lock.json").read_text() == lost
    text = texts(work)
    assert f"layer 1 attention (encoder.layer.1.attention) was {fused_op(work)}, is now 1 plain node" in text
    assert ": rule ATT102 declined, head-size, because 7 is odd" in text


def test_a_drifted_census_is_caught(work):
    def add_nodes(model):
        model.graph.node.extend([onnx.NodeProto(op_type="Neg", input=["y.was"], output=["n"])])
        model.graph.node.extend([onnx.NodeProto(op_type="Neg", input=["n"], output=["y"])])
        last = next(n for n in model.graph.node if "y" in n.output)
        last.output[list(last.output).index("y")] = "y.was"

    edited(work, add_nodes)
    assert "operators changed: Neg 0 -> 2; " in texts(work)


def spoil_weight(value):
    def edit(model):
        for weight in model.graph.initializer:
            if weight.name == "encoder.layer.1.attention.o.weight":
                array = numpy_helper.to_array(weight).copy()
                array[3, 4] = value
                weight.CopyFrom(numpy_helper.from_array(array, weight.name))
                return
        raise AssertionError([w.name for w in model.graph.initializer])

    return edit


def test_a_wrong_weight_is_caught_and_its_layer_named(work):
    edited(work, spoil_weight(2.5))
    assert "other weights than those that were locked, in encoder.layer.1;" in texts(work)


def test_a_wrong_weight_is_caught_by_its_results(work):
    edited(work, spoil_weight(2.5))
    found = check(work, against=work.with_name("source.onnx"))
    assert found.verdict == "fail"
    assert main(["check", str(work), "--against", str(work.with_name("source.onnx"))]) == 1
    assert [f.kind for f in found.failures] == ["parity"]
    assert "output 'y' needs" in found.failures[0].text
    assert [f.kind for f in found.findings if f.verdict == "pass"] == ["weights"]


def test_a_nan_is_caught_in_the_output_and_in_the_weights(work):
    edited(work, spoil_weight(np.nan))
    text = texts(work)
    assert "output 'y' has NaN at" in text
    assert "NaN stands in the weights 'encoder.layer.1.attention.o.weight'" in text


def test_a_lost_dynamic_axis_is_caught(work):
    def fix(model):
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8

    edited(work, fix)
    assert "axis 1 of input 'x' was dynamic (sequence) and is now fixed at 8" in texts(work)


def test_a_changed_interface_is_caught(work):
    def rename(model):
        for node in model.graph.node:
            node.input[:] = ["kept" if name == "mask" else name for name in node.input]
        model.graph.input[1].name = "kept"

    edited(work, rename)
    text = texts(work)
    assert "input 'mask' is gone; the inputs are now 'x', 'kept'" in text
    assert "input 'kept' is new" in text


def test_another_opset_is_caught(work):
    def raise_opset(model):
        next(o for o in model.opset_import if o.domain == "").version = 21

    edited(work, raise_opset)
    assert "opset of ai.onnx was 20, is now 21" in texts(work)


def test_a_graph_that_does_not_load_is_said_so(work, capsys):
    def unknown(model):
        next(n for n in model.graph.node if n.op_type == "MatMul").op_type = "MatMulOfTomorrow"

    edited(work, unknown)
    assert main(["check", str(work)]) == 2
    assert "uses MatMulOfTomorrow of opset 20" in capsys.readouterr().err


CHAIN = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n,256] x) => (float[n,256] y) {{
{body}
}}"""


def chain(path: Path, products: int) -> None:
    body = "\n".join(f"  h{i + 1} = MatMul (h{i}, w)" for i in range(products))
    text = CHAIN.format(body=body.replace("h0,", "x,").replace(f"h{products} =", "y ="))
    model = parser.parse_model(text)
    eye = np.eye(256, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(eye + 0.001, "w"))
    onnx.save(model, path)


@pytest.fixture
def own_time(monkeypatch):
    """Time one thread by the processor time it used: what else runs on the machine does not count."""
    monkeypatch.setattr(measuring, "usable_threads", lambda: 1)
    monkeypatch.setattr(latency, "bench", partial(latency.bench, clock=time.thread_time))


def test_a_slow_down_against_the_unfused_sibling_is_caught(tmp_path, own_time):
    chain(tmp_path / "m.onnx", 12)
    chain(tmp_path / "m.unfused.onnx", 8)
    lock(tmp_path / "m.onnx")
    assert check(tmp_path / "m.onnx").verdict == "pass"
    assert check(tmp_path / "m.onnx", max_slowdown=3.0, seconds=1.0).verdict == "pass"
    found = check(tmp_path / "m.onnx", max_slowdown=1.2, seconds=2.0)
    assert found.verdict == "fail"
    assert main(["check", str(tmp_path / "m.onnx"), "--max-slowdown", "1.2", "--seconds", "2"]) == 1
    assert found.failures[0].kind == "latency"
    assert "times as long as the unfused graph" in found.failures[0].text
    assert "more than the 1.2 allowed" in found.failures[0].text


def test_a_time_that_cannot_be_decided_is_exit_3_only_on_request(work, monkeypatch):
    module = importlib.import_module("deployml.exporter.check")
    from deployml.runtime.report import LatencyReport, Ratio

    ratio = Ratio(of="unfused", over="fused", value=0.9, low=0.5, high=1.2, pairs=9, verdict="inconclusive")
    told = LatencyReport(verdict="inconclusive", shapes={}, threads=1, ratios=(ratio,))
    monkeypatch.setattr(module, "measure_latency", lambda *a, **k: told)
    assert main(["check", str(work)]) == 0
    assert main(["check", str(work), "--max-slowdown", "1.5"]) == 3


def test_what_is_missing_is_the_users_to_mend(work, capsys):
    assert main(["check", str(work.with_name("none.onnx"))]) == 2
    work.with_name("m.unfused.onnx").unlink()
    with pytest.raises(InputError, match=r"there is no 'm\.unfused\.onnx'"):
        check(work, max_slowdown=1.5)
    work.with_name("m.lock.json").unlink()
    assert main(["check", str(work)]) == 2
    assert "deployml lock" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": 3, "sites": 4}', '{"lock": "9.0", "model": "m"}', "[" * 9000]
)
def test_a_damaged_lock_is_said_so(work, text):
    work.with_name("m.lock.json").write_text(text)
    with pytest.raises(InputError, match=r"is no lock|has the form"):
        check(work)


def test_the_same_model_made_again_elsewhere_is_the_same_and_passes(work, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    code = (
        "import sys; from deployml import optimize;"
        "optimize(sys.argv[1], output=sys.argv[2], html=False, validate=False)"
    )
    source = str(work.with_name("source.onnx"))
    environment = dict(os.environ, PYTHONHASHSEED="77")
    subprocess.run([sys.executable, "-c", code, source, str(other / "m.onnx")], env=environment, check=True, cwd=other)
    assert (other / "m.onnx").read_bytes() == work.read_bytes()
    assert check(other / "m.onnx", lock=work.with_name("m.lock.json")).verdict == "pass"


def test_a_lock_holds_nothing_of_the_machine_and_stays_the_same(work):
    text = work.with_name("m.lock.json").read_text()
    assert str(work.parent) not in text
    lock(work)
    assert work.with_name("m.lock.json").read_text() == text
    assert len(text) < 5000


def test_json_is_the_report_and_nothing_else(work, capsys):
    capsys.readouterr()
    assert main(["check", str(work), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "pass"
    assert main(["lock", str(work), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "m.onnx"


def test_without_a_report_the_sites_are_read_from_the_graph(work):
    work.with_name("m.report.json").unlink()
    assert check(work).verdict == "pass"


def test_check_is_steady(work):
    for _ in range(5):
        assert check(work).findings == ()


@pytest.mark.slow
def test_fifty_checks_give_no_false_failure(work):
    """Results and time too: a machine that is busy may leave a time undecided, and never makes a failure of it."""
    source = work.with_name("source.onnx")
    verdicts = [check(work, against=source, max_slowdown=1.5, seconds=1.0).verdict for _ in range(50)]
    assert set(verdicts) <= {"pass", "inconclusive"}
    assert all(check(work, against=source).verdict == "pass" for _ in range(50))


def test_weights_may_be_left_out(work):
    assert lock(work, weights=False).weights == {}
    edited(work, spoil_weight(2.5))
    assert check(work).verdict == "pass"


def test_a_lock_reads_back(work):
    from deployml.runtime.lock import read_lock

    assert read_lock(work.with_name("m.lock.json")) == lock(work)
    assert isinstance(ir.load(work), ir.Model)


def own_attribute(name: str, value):
    """Give every attention another value of an attribute."""
    kind = {"type": onnx.AttributeProto.INT, "i": value}
    if isinstance(value, float):
        kind = {"type": onnx.AttributeProto.FLOAT, "f": value}

    def edit(model):
        nodes = [node for node in model.graph.node if node.op_type.startswith("FlashAttention")]
        assert nodes
        for node in nodes:
            kept = [a for a in node.attribute if a.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.AttributeProto(name=name, **kind)])

    return edit


@pytest.mark.parametrize(("name", "value", "said"), [("causal", 1, "causal"), ("scale", 1.0606601, " -> 1.0606601")])
def test_other_attributes_of_an_attention_are_caught(work, name, value, said):
    edited(work, own_attribute(name, value))
    text = texts(work)
    assert "layers 0-1 attention (encoder.layer.0-1.attention), 2 of them, computes something else: " in text
    assert said in text


def swapped(one: str, other: str):
    """Let the readers of two weights read each other's."""

    def edit(model):
        names = [n for node in model.graph.node for n in node.input]
        assert one in names and other in names, names
        for node in model.graph.node:
            node.input[:] = [{one: other, other: one}.get(n, n) for n in node.input]

    return edit


def test_weights_that_changed_places_are_caught(work):
    edited(work, swapped("encoder.layer.0.attention.o.weight", "encoder.layer.1.attention.o.weight"))
    assert "stand in each other's place" in texts(work)
    assert check(work, against=work.with_name("source.onnx")).failures[0].kind == "parity"


def test_operators_that_read_other_values_are_caught_and_another_order_is_none(tmp_path):
    text = CHAIN.format(body="  a = Tanh (x)\n  b = Erf (x)\n  c = Sub (a, b)\n  y = Sigmoid (c)")
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    lock(tmp_path / "m.onnx")
    moved = text.replace("  a = Tanh (x)\n  b = Erf (x)", "  b = Erf (x)\n  a = Tanh (x)")
    onnx.save(parser.parse_model(moved), tmp_path / "m.onnx")
    assert check(tmp_path / "m.onnx").findings == ()
    onnx.save(parser.parse_model(text.replace("(a, b)", "(b, a)")), tmp_path / "m.onnx")
    assert "read other values" in texts(tmp_path / "m.onnx")


def test_other_names_and_another_storage_are_no_difference(work):
    def rename(model):
        inner = {o: f"v{i}" for i, node in enumerate(model.graph.node) for o in node.output if o and o != "y"}
        inner |= {w.name: f"{w.name}.renamed" for w in model.graph.initializer}
        for node in model.graph.node:
            node.input[:] = [inner.get(n, n) for n in node.input]
            node.output[:] = [inner.get(n, n) for n in node.output]
        for weight in model.graph.initializer:
            weight.name = inner[weight.name]
        del model.graph.value_info[:]

    edited(work, rename)
    model = onnx.load(work)
    onnx.save(model, work, save_as_external_data=True, location="apart.bin", size_threshold=1024)
    assert check(work).findings == ()


def test_an_old_lock_is_still_read(work):
    place = work.with_name("m.lock.json")
    old = json.loads(place.read_text()) | {"lock": "1.0"}
    del old["wiring"], old["computation"]
    for site in old["sites"]:
        del site["attributes"]
    assert "attributes, and what each operator reads" in check(work).checked
    place.write_text(json.dumps(old))
    found = check(work)
    assert found.findings == () and "attributes, and what each operator reads" not in found.checked
    edited(work, spoil_weight(2.5))
    assert "other weights than those that were locked, in encoder.layer.1;" in texts(work)


def test_the_report_of_an_earlier_file_is_not_taken_for_this_ones(work, capsys):
    assert lock(work).parity is not None
    edited(work, own_attribute("scale", 0.5))
    assert lock(work).parity is None
    capsys.readouterr()
    assert main(["explain", str(work), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"] is None


@pytest.mark.parametrize("spoiled", ["big.onnx.data", "big.report.json"])
def test_a_report_goes_with_the_weights_and_says_whose_it_is(locked, tmp_path, spoiled):
    from deployml.exporter.beside import report_beside

    path = tmp_path / "big.onnx"
    optimize(locked / "source.onnx", output=path, external_data="always", validate=False, html=False)
    assert sorted(report_beside(path).digests) == ["data", "model"]
    place = tmp_path / spoiled
    if place.suffix == ".json":
        place.write_text(json.dumps(json.loads(place.read_text()) | {"digests": {}}))
    else:
        place.write_bytes(place.read_bytes()[::-1])
    assert report_beside(path) is None
