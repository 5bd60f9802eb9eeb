"""Operations, bytes and times: what is counted, what the profile is read as, what the report shows of it."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import parser

from deployml.runtime.errors import InputError
from deployml.runtime.flops import flops_of, packed_elements
from deployml.runtime.footprint import footprint
from deployml.runtime.html import html_report
from deployml.runtime.peak import measured_peak
from deployml.runtime.profile import profile, read_profile
from deployml.runtime.report import LatencyReport, Report, Site, SweepPoint, from_json
from deployml.runtime.session import open_session


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "flops"),
    [
        ("MatMul", [[2, 7, 32], [32, 48]], [[2, 7, 48]], 2 * 2 * 7 * 32 * 48),
        ("MatMul", [[2, 7, 32]], [[2, 7, 48]], 2 * 2 * 7 * 32 * 48),  # the weight is packed away
        ("FusedMatMul", [[4, 32, 7], [4, 32, 9]], [[4, 7, 9]], 2 * 4 * 7 * 32 * 9),  # left side transposed
        ("Gemm", [[5, 16], [16, 8], [8]], [[5, 8]], 2 * 5 * 16 * 8),
        ("Conv", [[1, 3, 32, 32], [8, 3, 4, 4]], [[1, 8, 8, 8]], 2 * 8 * 64 * 48),
        ("MultiHeadAttention", [[2, 7, 32], [2, 9, 32], [2, 9, 32]], [[2, 7, 32]], 2 * 2 * 2 * 7 * 9 * 32),
        ("GroupQueryAttention", [[1, 16, 32], [1, 16, 16], [1, 16, 16]], [[1, 16, 32]], 4 * 16 * 16 * 32),
        ("FlashAttention_mask", [[1, 4, 7, 8], [1, 2, 9, 8], [1, 2, 9, 8]], [[1, 4, 7, 8]], 4 * 4 * 7 * 9 * 8),
        ("FlashAttention_packed_mask", [[2, 7, 64], [2, 1, 1, 7]], [[2, 7, 32]], 4 * 2 * 7 * 7 * 32),
        ("Attention", [[1, 5, 8], [8, 24]], [[1, 5, 8]], 2 * 5 * 8 * 24 + 4 * 5 * 5 * 8),
        (
            "MixtureOfExperts_silu_gated",
            [[7, 32], [7, 2], [7, 2], [4, 96, 32], [4, 32, 48]],
            [[7, 32]],
            2 * 7 * 2 * (96 * 32 + 32 * 48),
        ),
        ("Add", [[4], [4]], [[4]], 0),
        ("Conv", [[1, 3, 32, 32]], [[1, 8, 8, 8]], None),
        ("MatMul", [], [], None),
    ],
)
def test_operations_of_a_node(op, inputs, outputs, flops):
    assert flops_of(op, inputs, outputs) == flops


def test_a_packed_weight_counts_as_bytes():
    assert packed_elements("MatMul", [[2, 7, 32]], [[2, 7, 48]]) == 32 * 48
    assert packed_elements("MatMul", [[2, 7, 32], [32, 48]], [[2, 7, 48]]) == 0
    assert packed_elements("Add", [[4]], [[4]]) == 0


def event(name, op, microseconds, shapes, out):
    args = {"op_name": op, "input_type_shape": [{"float": s} for s in shapes], "output_type_shape": [{"float": out}]}
    args |= {"activation_size": "100", "parameter_size": "20", "output_size": "30"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def test_a_profile_is_added_up_without_its_warm_up():
    slow_start = [event("a", "MatMul", 9000, [[4, 8], [8, 2]], [4, 2])] * 3
    events = [*slow_start, {"cat": "Session", "name": "model_run", "dur": 1}]
    events += [event("a", "MatMul", 200, [[4, 8], [8, 2]], [4, 2]), event("b", "Add", 100, [[4]], [4])] * 8
    found = read_profile(events, sites=["b"], peak=(1e5, 1e9))
    assert found.total_ms == pytest.approx(0.3)
    assert [(o.op, o.nodes, round(o.ms, 3)) for o in found.ops] == [("MatMul", 1, 0.2), ("Add", 1, 0.1)]
    assert found.flops == 128 and found.complete
    assert found.peak_flops == pytest.approx(128 / 200e-6)  # a node that was faster than the peak is the peak
    assert [n.name for n in found.nodes] == ["a", "b"] and found.nodes[0].bytes == 150


MODEL = """<ir_version: 10, opset_import: ["": 21]>
g (float[n, 64] x, float[64, 64] w) => (float[n, 64] y) { [dot] a = MatMul(x, w)
[bend] y = Tanh(a) }"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(MODEL), path)
    return path


def test_a_real_profile_names_the_nodes(model):
    feeds = {"x": np.ones((16, 64), np.float32), "w": np.ones((64, 64), np.float32)}
    found = profile(lambda prefix: open_session(model, threads=1, profile=prefix), feeds)
    assert {n.name: n.op for n in found.nodes} == {"dot": "MatMul", "bend": "Tanh"}
    assert found.flops == 2 * 16 * 64 * 64
    assert found.nodes[0].bytes == 4 * (16 * 64 + 64 * 64 + 16 * 64)
    assert not list(model.parent.glob("*.json"))


def test_the_peak_is_measured_and_kept():
    flops, moved = measured_peak(1)
    assert flops > 1e8 and moved > 1e8
    assert measured_peak(1) == (flops, moved)


def test_memory_is_measured_in_another_process(tmp_path):
    big = parser.parse_model(MODEL.replace("64]", "2048]").replace("[64,", "[2048,"))
    onnx.save(big, tmp_path / "big.onnx")
    feeds = {"x": np.ones((4, 2048), np.float32), "w": np.ones((2048, 2048), np.float32)}
    found = footprint(tmp_path / "big.onnx", "cpu", (), feeds, threads=1)
    assert (found is None) == (not sys.platform.startswith("linux")) and (found is None or found > 1 << 20)
    with pytest.raises(InputError, match="there is no file"):
        footprint(tmp_path / "none.onnx", "cpu", (), feeds, threads=1)


def latency():
    events = [event("attention.3", "FlashAttention_mask", 300, [[1, 4, 64, 16]] * 3, [1, 4, 64, 16])] * 8
    events += [event("dot", "MatMul", 500, [[64, 64], [64, 64]], [64, 64])] * 8
    sweep = (
        SweepPoint(sizes={"batch": 2}, medians={"fused": 1.5}),
        SweepPoint(sizes={"batch": 9}, medians={}, note="no"),
    )
    found = read_profile(events, sites=["attention.3"], peak=(1e9, 1e9))
    return LatencyReport(verdict="pass", shapes={}, threads=1, profile=found, sweep=sweep)


def test_the_page_shows_operators_sites_roofline_and_sweep():
    site = Site(index=0, name="attention.3", status="fused", op="deployml::FlashAttention_mask", module_path="layers.0")
    report = Report(
        command="bench",
        verdict="pass",
        model="m",
        source="m",
        target="cpu",
        versions={},
        sites=(site,),
        latency=latency(),
    )
    page = html_report(report)
    for words in ("By operator", "By attention site", "Roofline", "Other sizes", "FLOP for each byte", "batch 9"):
        assert words in page
    assert page.count('class="dot at"') == 1 and page.count('class="dot other"') == 1
    assert from_json(report.to_json(), Report).to_json() == report.to_json()
    json.loads(report.to_json())
