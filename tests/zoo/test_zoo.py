"""Every architecture of the zoo: it exports, every attention is fused or declined for a good reason, and it agrees."""

from __future__ import annotations

import functools

import pytest
from torch import nn

from deployml.runtime.errors import DeploymlError

from . import driver, table
from .driver import TOLERANCE, Exported
from .hf import Unavailable
from .models import ZOO, pairs, selected, shared

#: Attributes that hold the factor on the scores.
_SCALED = ("scale",)


def _parameters() -> list[object]:
    today = selected()
    slow = (pytest.mark.zoo, pytest.mark.slow)
    return [
        pytest.param(name, impl, id=f"{name}-{impl}", marks=pytest.mark.zoo if (name, impl) in today else slow)
        for name, impl in pairs()
    ]


@pytest.mark.parametrize(("name", "impl"), _parameters())
def test_model(name: str, impl: str) -> None:
    entry = ZOO[name]
    if entry.refused is not None:
        with pytest.raises(DeploymlError, match=entry.refused):
            driver.run(entry, impl)
        return
    try:
        result = driver.run(entry, impl)
    except Unavailable as missing:
        pytest.skip(f"not run: {missing}")
    assert len(result.sites) == entry.sites, [site.name for site in result.sites]
    unexpected = [s for s in result.declined if s.reason not in entry.declined]
    assert not unexpected, [(s.module_path, s.source, s.reason, s.detail) for s in unexpected]
    assert result.parity.real <= TOLERANCE, result.parity
    assert all(s.error is not None and s.granted is not None and s.error <= s.granted for s in result.sites if s.op)
    if entry.grouped:
        attentions = [site for site in result.sites if site.status == "fused" and site.origin != "recurrence"]
        assert result.grouped == len(attentions), "key/value heads were repeated"
    if result.fused and not entry.grows:
        assert result.nodes < result.unfused
    if (name, impl) in shared():
        return  # the page is held to all models by `make zoo`
    documented = table.parse(table.PAGE.read_text(encoding="utf-8")).get((name, impl))
    assert documented is not None, f"run python benchmarks/zoo_table.py {name}:{impl}"
    assert table.row_of(entry, impl, result).form == documented.form


def test_the_shares_of_all_days_are_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each commit runs another share (.ci/run); together they leave nothing out."""
    seen = set()
    for day in range(40):
        monkeypatch.setenv("ZOO_SHARE", f"{day}/40")
        assert len(shared()) <= -(-len(pairs()) // 40)
        seen |= selected()
    assert seen == set(pairs())


@functools.cache
def _exported(name: str) -> tuple[nn.Module, Exported]:
    entry = ZOO[name]
    module = entry.build(entry.impls[-1])
    return module, driver.exported(entry, module)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["nn_transformer_encoder", "hand_nano_gpt"])
def test_the_comparison_is_sharp(name: str) -> None:
    """A scale that is off by a tenth, in one site alone, moves an output by ten times the tolerance."""
    module, made = _exported(name)
    model = made.model.clone()
    node = next(n for n in model.graph if "Attention" in n.op_type)
    scale = node.attributes.get_float("scale", 0.0) or 0.25
    node.attributes.add(_float("scale", scale * 1.1))
    assert driver.compare(ZOO[name], module, model).real > 10 * TOLERANCE


@pytest.mark.zoo
def test_a_dropped_mask_shows() -> None:
    """Without the mask of one site an output moves by ten times the tolerance."""
    module, made = _exported("nn_transformer_encoder")
    model = made.model.clone()
    node = next(n for n in model.graph if "Attention" in n.op_type)
    if node.domain == "deployml":  # the operator's name lists its inputs
        assert node.op_type.endswith("_mask"), "the site carries its mask as an input, the last one"
        node.op_type = node.op_type.removesuffix("_mask")
        node.resize_inputs(len(node.inputs) - 1)
    else:
        masked = [i for i, v in enumerate(node.inputs) if i > 3 and v is not None]
        assert masked, "the site carries its mask as an input"
        for index in masked:
            node.replace_input_with(index, None)
    assert driver.compare(ZOO["nn_transformer_encoder"], module, model).real > 10 * TOLERANCE


def _float(name: str, value: float) -> object:
    import onnx_ir as ir

    return ir.AttrFloat32(name, value)


def _documented() -> tuple[set[str], set[str]]:
    documented = {model for model, _ in table.parse(table.PAGE.read_text(encoding="utf-8"))}
    return documented, {entry.name for entry in ZOO.values() if entry.refused is None}


def test_the_page_has_nothing_else() -> None:
    """Each row of the page is a model of the zoo, and the models of every day are there."""
    documented, known = _documented()
    assert documented <= known
    assert {entry.name for entry in ZOO.values() if entry.everyday} <= documented


@pytest.mark.slow
def test_every_entry_is_documented() -> None:
    """The page has a row for each model that the installed transformers can build."""
    documented, known = _documented()
    assert known <= documented, "run python benchmarks/zoo_table.py"
