import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from deployml.runtime.html import html_report
from deployml.runtime.html.layered import lay_out
from deployml.runtime.html.markup import Markup, breakable, escape, tag
from deployml.runtime.html.numbers import ceiling_percent, factor, floor_cosine, power
from deployml.runtime.html.words import headline, ratio_sentence
from deployml.runtime.picture import Picture, PictureNode
from deployml.runtime.report import (
    Comparison,
    Contender,
    LatencyReport,
    NodeTime,
    ParityReport,
    Profile,
    Ratio,
    Report,
    Site,
    Stage,
)

from .browser import measure, needs_chromium, screenshot, to_pdf

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202egnp.exe\ud800\x07</style></title>"


def site(index: int, **options) -> Site:
    fields = {
        "index": index,
        "name": f"node_{index}",
        "status": "fused",
        "op": "com.microsoft::MultiHeadAttention",
        "kernel": "flash",
        "rule": "ATT102",
        "module_path": f"encoder.layer.{index}.attention.self",
        "source": "transformers/models/bert/modeling_bert.py:312",
        "facts": {
            "heads": 12,
            "kv_heads": 12,
            "head_dim": 64,
            "mask": {"mask": "key_padding", "given_as": "boolean"},
        },
        "error": 1e-7 * (index + 1),
    }
    return Site(**(fields | options))


def comparison(**options) -> Comparison:
    fields = {
        "case": "batch=3 sequence=7 mask=left",
        "output": "logits",
        "shape": (3, 7, 9),
        "needed": 2.2e-6,
        "granted": 1e-4,
        "basis": "against eager float32; unfused needs 2e-6",
        "cosine": 0.99999999,
        "top1": 1.0,
    }
    return Comparison(**(fields | options))


DECLINED = site(
    6,
    status="declined",
    op=None,
    kernel=None,
    reason="mask-not-proven",
    detail="found an Add of [b, 1, s, s] that no fact explains",
    nearest="ATT101",
    module_path="decoder.cross",
    error=None,
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
    flops=1_000_000_000,
    peak_flops=5e11,
    mfu=0.196,
)
REPORT = Report(
    command="export",
    verdict="pass",
    model="X.onnx",
    source="model.pt",
    target="cpu",
    versions={"onnx": "1.23.2"},
    sites=tuple(site(i) for i in range(6)),
    census_before={"MatMul": 40, "Gemm": 3},
    census_after={"MatMul": 28, "Gemm": 3, "com.microsoft::MultiHeadAttention": 6},
    parity=ParityReport(
        verdict="pass",
        reference="eager float32",
        comparisons=tuple(comparison(case=f"batch={b} sequence=7 mask=one-token") for b in range(1, 9)),
    ),
    latency=LATENCY,
    assumptions={"fully-masked-rows": "Rows without any key may differ."},
    warnings=("a warning",),
    not_run={"bench": "switched off (--no-bench)"},
    files={"model": "X.onnx"},
    stages=(Stage(name="capture", seconds=3.25, peak_rss=3 << 30),),
)
PICTURE = Picture(
    title="Before",
    nodes=(
        PictureNode(op="x", border=True),
        PictureNode(op="MatMul", detail="weight 64 × 64"),
        PictureNode(op="Softmax", core=True),
        PictureNode(op="MatMul", core=True),
    ),
    edges=((0, 1), (1, 2), (2, 3), (0, 3)),
    left_out=2,
)


class _Tags(HTMLParser):
    """Names and attributes of every start tag, and the text; checks that tags nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page.replace("<wbr>", ""))  # where a line may break, a word goes on
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in ("meta", "link", "br"):
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f" {data} "


def text_of(page: str) -> str:
    return " ".join(_Tags(page).text.split())


def test_the_verdict_comes_first_in_words():
    text = text_of(html_report(REPORT))
    start = text.index("Pass All 6 attentions are fused; results agree with eager float32 in 8 cases;")
    assert start < text.index("Attention sites")
    assert "it is 1.98× faster than eager PyTorch." in text


def test_everything_of_the_report_is_there():
    text = text_of(html_report(replace(REPORT, sites=(*REPORT.sites, DECLINED)), before=PICTURE, after=PICTURE))
    for words in (
        "encoder.layer.0-5.attention.self",
        "transformers/models/bert/modeling_bert.py:312",
        "12 heads of 64",
        "key padding (given as boolean)",
        "6.0 × 10⁻⁷",
        "Not fused: decoder.cross (mask-not-proven)",
        "found an Add of [b, 1, s, s] that no fact explains",
        "deployml explain ATT102",
        "43 nodes before, 37 after",
        "2.2 × 10⁻⁶",
        "cosine at least 0.9999999",
        "same top choice in at least 100 % of rows",
        "granted 10⁻⁴ against eager float32",
        "1.98× faster than eager PyTorch, 95 % interval 1.90 to 2.05, 50 paired runs.",
        "1 GFLOP a run, 98 of 500 GFLOP/s measured on this machine",
        "19.6%",
        "fully-masked-rows",
        "a warning",
        "switched off (--no-bench)",
        "1.23.2",
        "3.0 GiB",
        "Before: 3 operators (2 more are not drawn)",
    ):
        assert words in text, words


def test_a_graph_on_several_providers_is_shown_with_its_nodes():
    split = {"CUDAExecutionProvider": 40, "CPUExecutionProvider": 1}
    timed = replace(LATENCY, contenders=(replace(LATENCY.contenders[0], nodes=split), *LATENCY.contenders[1:]))
    page = text_of(html_report(replace(REPORT, parity=replace(REPORT.parity, nodes=split), latency=timed)))
    assert page.count("CUDA 40 nodes, CPU 1 node") == 2
    assert "CUDA 40 nodes" not in text_of(html_report(REPORT))


def test_sites_have_their_time_where_the_run_was_profiled():
    fused = [s for s in REPORT.sites if s.status == "fused"]
    nodes = tuple(NodeTime(name=s.name, op=s.op or "", ms=0.25, flops=1, bytes=1) for s in fused)
    timed = replace(LATENCY, profile=Profile(total_ms=10.0, ops=(), nodes=nodes))
    page = text_of(html_report(replace(REPORT, latency=timed)))
    assert page.count("0.250 ms") >= len(fused)
    assert "0.250 ms" not in text_of(html_report(REPORT))


def test_failures_name_output_case_numbers_and_place():
    bad = comparison(verdict="fail", needed=0.5, worst=(0, 3, 1), note="something", nan_match=False)
    parity = ParityReport(verdict="fail", reference="eager float32", comparisons=(comparison(case="fine"), bad))
    text = text_of(html_report(replace(REPORT, verdict="fail", parity=parity)))
    assert text.index("Fail All 6") < text.index("results do not agree with eager float32 in 1 of 2 cases")
    assert "Fails: output “logits” at batch=3 sequence=7 mask=left" in text
    assert (
        "needs 0.5, granted 10⁻⁴, worst at [0, 3, 1]. NaN or infinity stands in other places than in the reference."
    ) in text


def test_a_failure_without_a_number_is_drawn_too():
    crash = comparison(output="*", needed=None, verdict="fail", note="runs in the reference, fails here: boom")
    skipped = comparison(needed=None, verdict="not-run", note="the reference cannot run this case")
    parity = ParityReport(verdict="fail", reference="eager float32", comparisons=(crash, skipped))
    text = text_of(html_report(replace(REPORT, verdict="fail", parity=parity)))
    assert "Fails: all outputs at batch=3" in text
    assert "fails here: boom" in text
    assert "1 comparisons were not made" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_no_number_breaks_the_plots(value):
    parity = ParityReport(verdict="fail", reference="r", comparisons=(comparison(needed=value, verdict="fail"),))
    ratio = Ratio(of="unfused", over="fused", value=1.0, low=0.0, high=float("inf"), pairs=3)
    latency = replace(LATENCY, ratios=(ratio,))
    page = html_report(replace(REPORT, parity=parity, latency=latency))
    assert "nan%" not in page
    assert "inf%" not in page
    assert "3 paired runs are too few for an interval" in page


def test_an_empty_report_is_still_a_page():
    bare = Report(command="optimize", verdict="inconclusive", model="", source="X", target="cpu", versions={})
    assert "Inconclusive No attention was found in this model" in text_of(html_report(bare))


def test_names_of_strangers_stay_text():
    hostile = Report(
        command=HOSTILE,
        verdict="fail",
        model=HOSTILE,
        source=HOSTILE,
        target=HOSTILE,
        versions={HOSTILE: HOSTILE},
        sites=(site(0, name=HOSTILE, module_path=HOSTILE, source=HOSTILE, op=HOSTILE, facts={HOSTILE: HOSTILE}),),
        census_before={HOSTILE: 3},
        census_after={"x": 1},
        parity=ParityReport(
            verdict="fail",
            reference=HOSTILE,
            comparisons=(comparison(case=HOSTILE, output=HOSTILE, basis=HOSTILE, verdict="fail", note=HOSTILE),),
            notes=(HOSTILE,),
        ),
        latency=replace(LATENCY, shapes={HOSTILE: (1,)}, notes=(HOSTILE,)),
        assumptions={HOSTILE: HOSTILE},
        warnings=(HOSTILE,),
        not_run={HOSTILE: HOSTILE},
        files={HOSTILE: HOSTILE},
        libraries=(HOSTILE,),
    )
    picture = Picture(title=HOSTILE, nodes=(PictureNode(op=HOSTILE, detail=HOSTILE),), edges=())
    page = html_report(hostile, before=picture)
    page.encode("utf-8")
    found = _Tags(page)
    assert {name for name, _ in found.tags} & {"script", "img", "iframe", "object", "embed"} == set()
    assert not [a for _, given in found.tags for a in given if a.startswith("on")]
    assert "\u202e" not in page
    assert "\\u{202e}" in page


def test_nothing_is_fetched_and_no_script_is_there():
    page = html_report(REPORT, before=PICTURE)
    assert re.findall(r"(?:https?:)?//[a-z]", page) == []
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src &#x27;none&#x27;" in page


def test_the_same_report_gives_the_same_page():
    assert html_report(REPORT, before=PICTURE) == html_report(REPORT, before=PICTURE)


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (1.2, 1.23, 1.26, "1.23× faster than eager PyTorch, 95 % interval 1.20 to 1.26, 50 paired runs."),
        (0.5, 0.8, 0.9, "1.25× slower than eager PyTorch, 95 % interval 1.11 to 2.00, 50 paired runs."),
        (
            0.9,
            1.0,
            1.1,
            "No measurable difference from eager PyTorch: ratio 1.00, 95 % interval 0.90 to 1.10,",
        ),
    ],
)
def test_ratios_in_words(low, value, high, said):
    assert said in ratio_sentence(Ratio(of="eager", over="fused", value=value, low=low, high=high, pairs=50))


@pytest.mark.parametrize(
    ("low", "value", "high", "said", "tile"),
    [
        (8.7, 21.2, 39.3, "at least 8.70× faster than eager PyTorch", "≥ 8.70×"),
        (1.9, 2.0, 2.1, "2.00× faster than eager PyTorch", "2.00×"),
        (0.2, 0.3, 0.5, "at least 2.00× slower than eager PyTorch", "≤ 0.50×"),
        (0.48, 0.5, 0.52, "2.00× slower than eager PyTorch", "0.50×"),
    ],
)
def test_a_wide_interval_is_told_by_its_careful_end(low, value, high, said, tile):
    ratio = Ratio(of="eager", over="fused", value=value, low=low, high=high, pairs=12)
    found = replace(REPORT, latency=replace(LATENCY, ratios=(ratio,)))
    assert said in headline(found)
    assert f"{tile} the speed of eager PyTorch" in text_of(html_report(found))


def test_partial_fusion_is_said_first():
    assert headline(replace(REPORT, sites=(site(0), DECLINED))).startswith("1 of 2 attentions are fused")
    assert headline(replace(REPORT, sites=(DECLINED,))).startswith("Its one attention was not fused")
    assert headline(replace(REPORT, not_run={"fusion": "off"})).startswith("Attention was left unfused on request")


def test_numbers_never_flatter():
    assert (power(2.2e-6), power(1e-4), power(0.0), power(None), power(1.5)) == (
        "2.2 × 10⁻⁶",
        "10⁻⁴",
        "0",
        "–",
        "1.5",
    )
    assert (ceiling_percent(0.0001), ceiling_percent(0.501)) == ("under 1 %", "51 %")
    assert floor_cosine(0.99999999) == "0.9999999"
    assert (factor(1.234), factor(139.54)) == ("1.23×", "140×")


def test_markup_escapes_all_but_itself():
    assert tag("p", "<b>", Markup("<i></i>"), title='"') == '<p title="&quot;">&lt;b&gt;<i></i></p>'
    assert escape("a\x00b") == "a\\u{0}b"


def test_names_break_at_their_parts():
    assert breakable("a/b_c.py:12") == "a/<wbr>b<wbr>_c.<wbr>py:12"
    assert breakable("own::Op<b>") == "own::<wbr>Op&lt;b&gt;"


def test_every_edge_points_down_and_no_boxes_overlap():
    edges = [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3), (4, 3)]
    widths = [60.0, 80.0, 100.0, 50.0, 40.0]
    plan = lay_out(widths, edges, gap=10.0)
    assert all(plan.layer[a] < plan.layer[b] for a, b in edges)
    for level in range(plan.layers):
        row = sorted((plan.x[n], widths[n]) for n in range(5) if plan.layer[n] == level)
        assert all(b - a >= (wa + wb) / 2 + 10 - 1e-6 for (a, wa), (b, wb) in itertools.pairwise(row))
    assert lay_out(widths, edges, gap=10.0) == plan


@needs_chromium
@pytest.mark.parametrize("width", [360, 390, 1100])
def test_chromium_shows_it_without_overflow_or_requests(tmp_path, width):
    many = replace(REPORT, sites=(*REPORT.sites, DECLINED), warnings=("w" * 300,), source="/".join("abcdefgh" * 20))
    found = json.loads(measure(html_report(many, before=PICTURE, after=PICTURE), width, tmp_path))
    assert found["scroll"] <= found["client"] == width
    assert found["wide"] == []
    assert found["scripts"] == 0
    assert found["outside"] == ["data:,"]
    assert found["heading"] == "X.onnx"


@needs_chromium
def test_chromium_draws_both_themes_and_prints(tmp_path):
    page = html_report(REPORT, before=PICTURE, after=PICTURE)
    light = screenshot(page, tmp_path / "light.png", theme="light").read_bytes()
    dark = screenshot(page, tmp_path / "dark.png", theme="dark").read_bytes()
    assert min(len(light), len(dark)) > 20_000  # a blank page is far smaller
    assert light != dark
    assert to_pdf(page, tmp_path).startswith(b"%PDF")


@needs_chromium
def test_chromium_runs_nothing_of_a_hostile_name(tmp_path):
    hostile = "<script>document.title='owned'</script><img src=x onerror=\"parent.document.title='owned'\">"
    found = json.loads(measure(html_report(replace(REPORT, model=hostile)), 390, tmp_path))
    assert found["heading"] == hostile
    assert found["scripts"] == 0
