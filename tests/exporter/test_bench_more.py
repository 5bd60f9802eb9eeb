"""What bench times besides the model: other files, other sizes, memory; and how it refuses what makes no sense."""

from __future__ import annotations

import json
import sys

import onnx
import pytest
from onnx import parser

import deployml
from deployml.exporter.sweeping import parse_sweep
from deployml.runtime.errors import InputError


@pytest.mark.parametrize(
    "text", ["batch", "batch=", "batch=0", "batch=1;2", "=3", "", " ", "b=1,2,3,4,5,6,7,8,9 c=1,2,3,4,5,6,7,8,9"]
)
def test_a_sweep_that_makes_no_sense_is_refused(text):
    with pytest.raises(InputError) as error:
        parse_sweep(text)
    assert error.value.hint


def test_a_sweep_is_read():
    assert parse_sweep("batch=1,4 sequence=32,32,128") == {"batch": (1, 4), "sequence": (32, 128)}
    assert parse_sweep(None) == {}


def test_more_contenders_sizes_memory_and_a_page(deployml_command, exported, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(exported.with_name("encoder.unfused.onnx").read_bytes())
    more = ("--contender", other, "--sweep", "batch=1,2", "--memory", "--page", tmp_path / "b.html")
    ran = deployml_command("bench", exported, "--seconds", "0.3", "--threads", "1", "--json", *more)
    assert ran.status == 0, ran.err
    latency = json.loads(ran.out)["latency"]
    assert [c["name"] for c in latency["contenders"]] == ["unfused", "fused", "other"]
    held = [c["peak_memory"] for c in latency["contenders"]]
    assert all((size is None) == (not sys.platform.startswith("linux")) and (size or 1) > 0 for size in held)
    assert [p["sizes"] for p in latency["sweep"]] == [{"batch": 1}, {"batch": 2}]
    assert set(latency["sweep"][1]["medians"]) == {"unfused", "fused", "other"}
    attention = [n for n in latency["profile"]["nodes"] if "Attention" in n["op"]]
    assert len(attention) == 2 and all(n["flops"] > 0 for n in attention)
    assert latency["flops"] > 0
    too_busy = any("too busy" in note for note in latency["notes"])
    assert (latency["mfu"] is None) == too_busy and (too_busy or 0 < latency["mfu"] <= 1)
    assert "Where the time goes" in (tmp_path / "b.html").read_text()


def test_a_contender_takes_no_name_that_deployml_gives(exported, tmp_path):
    for name in ("source", "compiled"):
        (tmp_path / f"{name}.onnx").write_bytes(exported.with_name("encoder.unfused.onnx").read_bytes())
    more = [tmp_path / "source.onnx", tmp_path / "compiled.onnx"]
    source = exported.with_name("encoder.unfused.onnx")
    found = deployml.bench(exported, against=source, contenders=more, seconds=0.3, threads=1).latency
    assert [c.name for c in found.contenders] == ["source", "unfused", "fused", *map(str, more)]


def test_eager_runs_on_the_threads_asked_for(exported, encoder, monkeypatch):
    import torch

    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    before = torch.get_num_threads()
    options = {"inputs": encoder.options[4::2], "factory": encoder.options[2], "seconds": 0.3}
    deployml.bench(exported, against=encoder.weights, threads=1, **options)
    assert seen == [1, before]


def test_what_cannot_be_timed_is_refused_before_anything_slow(deployml_command, exported, encoder, tmp_path):
    ran = deployml_command("bench", exported, "--sweep", "depth=3")
    assert ran.status == 2 and "no dynamic axis depth" in ran.err and "batch" in ran.err
    ran = deployml_command("bench", exported, "--compile")
    assert ran.status == 2 and "no torch source to compile" in ran.err
    ran = deployml_command("bench", exported, "--page", tmp_path)
    assert ran.status == 2 and "folder of that name" in ran.err
    ran = deployml_command("bench", exported, "--contender", encoder.weights)
    assert ran.status == 2 and "is no ONNX file" in ran.err


def test_eager_memory_is_measured_and_what_cannot_be_says_why(exported, encoder, deployml_command):
    options = ("--seconds", "0.3", "--threads", "1", "--memory", "--json")
    ran = deployml_command("bench", exported, "--against", *encoder.options, *options)
    assert ran.status == 0, ran.err
    held = {c["name"]: c["peak_memory"] for c in json.loads(ran.out)["latency"]["contenders"]}
    assert list(held) == ["eager", "unfused", "fused"]
    assert all(size > 100_000 for size in held.values())  # the weights alone are 130 kB

    from deployml.exporter.eager_memory import eager_footprint
    from deployml.exporter.options import SourceOptions

    with pytest.raises(InputError, match="object of this process"):
        eager_footprint(object(), SourceOptions(), {}, threads=1)


@pytest.mark.slow
def test_torch_compile_is_a_contender(deployml_command, exported, encoder):
    options = ("--compile", "--memory", "--seconds", "1", "--json")
    ran = deployml_command("bench", exported, "--against", *encoder.options, *options)
    assert ran.status == 0, ran.err
    latency = json.loads(ran.out)["latency"]
    found = {c["name"]: c for c in latency["contenders"]}
    assert "compiled" in found or any("'compiled' was not timed" in n for n in latency["notes"])
    assert "compiled" not in found or found["compiled"]["peak_memory"] > 100_000


THREE_ROWS = """
<ir_version: 10, opset_import: ["": 21]>
g (float[n, 4] x) => (float[n, 4] y) {
  three = Constant<value_ints=[3, 4]>()
  z = Reshape(x, three)
  t = Tanh(z)
  s = Shape(x)
  y = Reshape(t, s)
}
"""


def test_a_model_that_runs_at_no_size_that_is_timed_is_not_timed(deployml_command, tmp_path):
    onnx.save(parser.parse_model(THREE_ROWS), tmp_path / "three.onnx")
    ran = deployml_command("bench", tmp_path / "three.onnx", "--seconds", "0.2", "--json")
    latency = json.loads(ran.out)["latency"]
    assert ran.status == 3 and latency["verdict"] == "not-run" and latency["contenders"] == []
    assert "at no size that" in latency["notes"][0] and "Reshape" in latency["notes"][0]
    ran = deployml_command("bench", tmp_path / "three.onnx", "--seconds", "0.2", "--page", tmp_path / "p.html")
    assert ran.status == 3 and "at no size that" in " ".join(ran.out.split()), ran.out
    assert "at no size that" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_optimize_keeps_a_graph_that_cannot_be_timed(deployml_command, tmp_path):
    onnx.save(parser.parse_model(THREE_ROWS), tmp_path / "three.onnx")
    ran = deployml_command("optimize", tmp_path / "three.onnx", "-o", tmp_path / "made.onnx", "--bench-seconds", "0.2")
    assert ran.status == 3 and "Traceback" not in ran.err
    assert (tmp_path / "made.onnx").is_file() and "at no size that" in " ".join(ran.out.split())


def test_a_size_of_a_sweep_at_which_the_model_does_not_run_is_said(deployml_command, tmp_path):
    even = THREE_ROWS.replace("float[n, 4]", "float[rows, 4]").replace("[3, 4]", "[-1, 8]")
    onnx.save(parser.parse_model(even), tmp_path / "even.onnx")
    ran = deployml_command("bench", tmp_path / "even.onnx", "--seconds", "0.2", "--sweep", "rows=3,4", "--json")
    odd, fitting = json.loads(ran.out)["latency"]["sweep"]
    assert odd["medians"] == {} and "Reshape" in odd["note"]
    assert set(fitting["medians"]) == {"fused"} and fitting["note"] is None
