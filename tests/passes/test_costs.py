"""The shipped cost table decides between operators with --fusion auto, and nothing is measured when it does."""

from __future__ import annotations

import ctypes
import math

import onnx.parser
import onnx_ir as ir
import pytest

from deployml.custom_ops import library_path
from deployml.passes.attention.costs import TYPICAL, _table, costs_of, kind_of
from deployml.passes.attention.example_texts import attention_text
from deployml.passes.attention.lower import best_first
from deployml.passes.attention.site import study
from deployml.runtime.errors import InputError
from deployml.runtime.isa import CPU_ISAS, machine_isa
from deployml.runtime.target import Target

OWN = "deployml::FlashAttention"


def target(**options) -> Target:
    return Target(**{"name": "cpu", "onnxruntime": (1, 31), "opset": 23, "cpu_isa": "avx512", **options})


def site(length: int | str = "S", **facts):
    text = attention_text(**facts).text
    for name in ("S", "T"):
        text = text.replace(f",{name},", f",{length},").replace(f",{name}]", f",{length}]")
    model = ir.from_proto(onnx.parser.parse_model(text))
    return study(next(iter(model.graph)))


def first(found, aim: Target) -> str:
    return best_first(aim, found.kinds(), found)[0].emits[0]


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({}, "plain"),
        ({"causal": "upper_left"}, "causal"),
        ({"mask": "B,1,S,T"}, "mask"),
        ({"bias": "1,4,S,T"}, "bias"),
        ({"causal": "upper_left", "bias": "1,4,S,S"}, "causal+bias"),
    ],
)
@pytest.mark.parametrize("length", [16, 100, 2048])
def test_the_fastest_measured_operator_comes_first(facts, kind, length):
    found = site(length, **facts)
    assert kind_of(found) == kind
    costs = costs_of(found, target())
    assert len(costs) >= 2 and OWN in costs
    assert costs[first(found, target())] == min(costs.values())


def test_a_named_axis_is_judged_at_the_typical_lengths_alike():
    rows = [r for r in _table()["avx512"] if (r["kind"], r["head_size"]) == ("causal", 32) and r["length"] in TYPICAL]
    logs = [math.log(row["microseconds"][OWN]) for row in rows]
    found = costs_of(site("S", causal="upper_left"), target())
    assert len(rows) == len(TYPICAL)
    assert found[OWN] == pytest.approx(math.exp(sum(logs) / len(logs)))


def test_always_goes_by_the_class_of_the_kernel():
    found = site(2048)
    assert first(found, target()) == OWN
    assert first(found, target(fusion="always")) == "com.microsoft::MultiHeadAttention"  # tiled too, and comes first
    assert first(site(16, bias="1,4,S,T"), target(fusion="always")) == OWN


def test_what_was_not_measured_has_no_cost():
    assert costs_of(site(64, softcap=30.0), target()) == {}
    assert costs_of(site(64, kv_heads=2), target()) == {}
    assert costs_of(site(64), target(name="cuda")) == {}


def test_each_instruction_set_has_rows_of_its_own():
    found = {isa: costs_of(site(512), target(cpu_isa=isa)) for isa in CPU_ISAS}
    assert all(OWN in costs for costs in found.values())
    assert found["avx512"][OWN] < found["avx2"][OWN] < found["portable"][OWN]


def test_unknown_words_are_refused():
    with pytest.raises(InputError, match="no fusion 'never'"):
        target(fusion="never")
    with pytest.raises(InputError, match="no instruction set 'sse9'"):
        target(cpu_isa="sse9")


def test_python_and_the_library_agree_on_the_instruction_set(monkeypatch):
    library = library_path("cpu")
    if library is None:
        pytest.skip("not run: the CPU operator library is not built")
    chosen = ctypes.CDLL(str(library)).deployml_cpu_isa
    chosen.restype = ctypes.c_char_p
    assert chosen().decode() == machine_isa()
    assert machine_isa() in CPU_ISAS


def test_every_row_of_the_table_compares_the_own_operator_with_another():
    rows = [row for of in _table().values() for row in of]
    assert len(rows) > 50
    assert all(OWN in row["microseconds"] and len(row["microseconds"]) > 1 for row in rows)
    assert all(us > 0 for row in rows for us in row["microseconds"].values())
