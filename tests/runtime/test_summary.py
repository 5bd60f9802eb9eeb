import io
from dataclasses import replace

import pytest
from rich.console import Console

from deployml.runtime.report import Comparison, Contender, LatencyReport, ParityReport, Ratio, Report, Site, Stage
from deployml.runtime.summary import group_sites, render


def site(index: int, **options) -> Site:
    fields = {
        "index": index,
        "name": f"node_{index}",
        "status": "fused",
        "op": "com.microsoft::MultiHeadAttention",
        "kernel": "flash",
        "rule": "ATT101",
        "module_path": f"encoder.layer.{index}.attention.self",
        "source": "transformers/models/bert/modeling_bert.py:312",
        "error": 1e-7 * (index + 1),
    }
    return Site(**(fields | options))


DECLINED = site(
    6,
    status="declined",
    op=None,
    kernel=None,
    reason="mask-not-proven",
    detail="found an Add of [b, 1, s, s] that no fact explains",
    nearest="com.microsoft::GroupQueryAttention",
    module_path="decoder.cross",
    source="my/model.py:88",
    error=None,
)
COMPARED = Comparison(
    case="batch=3 sequence=7 mask=left",
    output="logits",
    shape=(3, 7, 9),
    needed=2.2e-6,
    granted=1e-4,
    basis="against eager float32",
    cosine=0.99999999,
    top1=1.0,
)
LATENCY = LatencyReport(
    verdict="pass",
    shapes={"ids": (2, 128)},
    threads=2,
    contenders=(
        Contender(name="fused", median_ms=10.2, p90_ms=11, p99_ms=12, runs=50, provider="CPUExecutionProvider"),
        Contender(name="eager", median_ms=20.2, p90_ms=21, p99_ms=22, runs=50, provider="torch-cpu"),
    ),
    ratios=(Ratio(of="eager", over="fused", value=1.98, low=1.9, high=2.05, pairs=50),),
)
REPORT = Report(
    command="export",
    verdict="pass",
    model="X.onnx",
    source="model.pt",
    target="cpu",
    versions={},
    sites=tuple(site(i) for i in range(6)),
    census_before={"ai.onnx::MatMul": 40, "ai.onnx::Gemm": 3},
    census_after={"ai.onnx::MatMul": 28, "ai.onnx::Gemm": 3, "com.microsoft::MultiHeadAttention": 6},
    parity=ParityReport(verdict="pass", reference="eager float32", comparisons=(COMPARED,)),
    latency=LATENCY,
    files={"model": "X.onnx"},
    stages=(Stage(name="capture", seconds=3.25, peak_rss=3 << 30),),
)


def shown(report: Report, width: int = 80) -> str:
    out = io.StringIO()
    render(report, Console(file=out, width=width))
    return out.getvalue()


def test_the_verdict_comes_first_and_the_rest_is_there():
    text = shown(REPORT)
    assert text.startswith("PASS  X.onnx")
    for word in (
        "6 of 6 attentions fused",
        "43 -> 37 nodes",
        "1.98x eager's speed",
        "encoder.layer.0-5.attention.self",
    ):
        assert word in text
    for word in (
        "modeling_bert.py:312",
        "MultiHeadAttention",
        "flash",
        "6.0e-07",
        "cosine >= 0.9999999",
        "1.90 - 2.05",
    ):
        assert word in text
    assert "capture 3.2 s (3.0 GiB)" in text
    assert "Gemm" not in text  # it did not change
    assert "DECLINED" not in text


@pytest.mark.parametrize("width", [50, 80, 200])
def test_it_fits(width):
    many = replace(REPORT, sites=(*REPORT.sites, DECLINED), warnings=("w" * 300,), not_run={"bench": "--no-bench"})
    lines = shown(many, width).splitlines()
    assert max(map(len, lines)) <= min(width, 80)


def test_a_decline_says_what_where_and_why():
    text = " ".join(shown(replace(REPORT, verdict="fail", sites=(*REPORT.sites, DECLINED))).split())
    assert text.startswith("FAIL")
    for word in ("6 of 7", "mask-not-proven at decoder.cross (my/model.py:88)", "no fact explains", "explain ATT101"):
        assert word in text
    assert "nearest: GroupQueryAttention" in text


def test_a_failed_comparison_is_shown_with_its_place():
    bad = replace(COMPARED, verdict="fail", needed=0.5, worst=(0, 3, 1), note="something")
    text = shown(replace(REPORT, parity=replace(REPORT.parity, verdict="fail", comparisons=(COMPARED, bad))))
    assert "FAIL logits at batch=3 sequence=7 mask=left" in text
    assert "worst at [0, 3, 1]; something" in " ".join(text.split())


def test_names_are_never_read_as_markup():
    text = shown(replace(REPORT, warnings=("input [bold]x[/] is [red]",), model="[link=x].onnx"))
    assert "input [bold]x[/] is [red]" in text
    assert "[link=x].onnx" in text


def test_an_empty_report_is_still_a_sentence():
    text = shown(
        Report(command="optimize", verdict="inconclusive", model="X.onnx", source="X.onnx", target="cpu", versions={})
    )
    assert " ".join(text.split()) == "INCONCLUSIVE X.onnx optimize, target cpu nothing was measured"


def test_sites_are_grouped_by_what_became_of_them():
    sites = [site(0), site(1), site(3), site(2, kernel="naive"), DECLINED, site(5, module_path="encoder.layer.9.out.3")]
    groups = group_sites(sites)
    assert [(g.where, len(g.sites)) for g in groups] == [
        ("encoder.layer.0,1,3.attention.self", 3),
        ("encoder.layer.2.attention.self", 1),
        ("decoder.cross", 1),
        ("encoder.layer.9.out.3", 1),
    ]
    assert groups[0].error == pytest.approx(4e-7)
    assert groups[2].error is None


def test_a_graph_on_several_providers_is_shown_with_its_nodes():
    split = {"CUDAExecutionProvider": 40, "CPUExecutionProvider": 1}
    timed = replace(LATENCY, contenders=(replace(LATENCY.contenders[0], nodes=split), *LATENCY.contenders[1:]))
    text = shown(replace(REPORT, parity=replace(REPORT.parity, nodes=split), latency=timed))
    assert "ran on CUDA 40 nodes, CPU 1 node" in " ".join(text.split())
    assert "CUDA 40 nodes" in " ".join(text[text.index("Latency") :].split())
    assert "nodes, CPU" not in shown(REPORT)
