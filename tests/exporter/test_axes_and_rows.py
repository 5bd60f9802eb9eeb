"""Axes that are sums or go together, and rows of attention without a key: exported, compared, said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import deployml
from deployml.runtime.report import Report

WIDTH, HEADS, SIZE = 32, 4, 8
FREE = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
PAST = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def heads(self, *inputs: Tensor) -> list[Tensor]:
        return [
            part(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for part, x in zip(self.parts, inputs, strict=True)
        ]


def report_of(module: nn.Module, folder: Path, *args: Any, shapes: Any) -> Report:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.15)
    options = {"html": False, "output": folder / "m.onnx"}
    return deployml.export(module.eval(), args, dynamic_shapes=shapes, **options).report


class OnlyThePast(Layer):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x, x, x)
        forbidden = torch.ones(x.shape[1], x.shape[1]).triu() > 0  # the first row has no key
        return (q @ k.mT).masked_fill(forbidden, -1e9).softmax(-1) @ v


class WithPast(Layer):
    def forward(self, new: Tensor, past_key: Tensor, past_value: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.heads(new, new, new)
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        total = k.shape[2]
        keep = (torch.arange(total) <= torch.arange(total - q.shape[2], total)[:, None]) & mask[:, None, None].bool()
        out = torch.where(keep, q @ k.mT * 0.3, torch.tensor(-3.4e38)).softmax(-1) @ v
        return out.transpose(1, 2).flatten(2), k, v


class Annotated(Layer):
    def forward(self, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        batch = query.size(0)
        q, k, v = (
            part(x).view(batch, -1, HEADS, SIZE).transpose(1, 2)
            for part, x in zip(self.parts, (query, memory, memory), strict=True)
        )
        return (q @ k.mT).masked_fill(mask[:, None, None] == 0, -1e9).softmax(-1) @ v


class Lengths(Layer):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        q, k, v = self.heads(x, x, x)
        forbidden = torch.arange(x.shape[1]) >= lengths.view(-1, 1, 1, 1)
        return (q @ k.mT).masked_fill(forbidden, -torch.inf).softmax(-1) @ v


def test_a_first_row_without_a_key_is_what_eager_gives(tmp_path: Path) -> None:
    report = report_of(OnlyThePast(), tmp_path, torch.randn(2, 9, WIDTH), shapes=(FREE,))
    assert (report.verdict, [s.status for s in report.sites]) == ("pass", ["fused"])


@pytest.mark.parametrize("named", [False, True])
def test_a_mask_as_long_as_past_and_new_tokens_is_their_sum(tmp_path: Path, named: bool) -> None:
    b, s, p, t = (Dim(name) for name in ("b", "s", "p", "total"))
    shapes: Any = (FREE, PAST, PAST, FREE)
    if named:
        shapes = ({0: b, 1: s}, {0: b, 2: p}, {0: b, 2: p}, {0: b, 1: t})
    past = torch.randn(2, HEADS, 5, SIZE)
    mask = torch.ones(2, 8, dtype=torch.int64)
    report = report_of(WithPast(), tmp_path, torch.randn(2, 3, WIDTH), past, past, mask, shapes=shapes)
    assert (report.verdict, [site.status for site in report.sites]) == ("pass", ["fused"])
    assert report.parity is not None and {c.verdict for c in report.parity.comparisons} == {"pass"}


def test_batches_that_the_trace_leaves_apart_are_drawn_together(tmp_path: Path) -> None:
    mask = torch.ones(2, 9, dtype=torch.int64)
    inputs = torch.randn(2, 4, WIDTH), torch.randn(2, 9, WIDTH), mask
    report = report_of(Annotated(), tmp_path, *inputs, shapes=(FREE, FREE, FREE))
    assert report.verdict == "pass" and report.parity is not None
    assert {c.verdict for c in report.parity.comparisons} == {"pass"}


def test_rows_that_are_nan_in_eager_are_left_to_the_assumption(tmp_path: Path) -> None:
    inputs = torch.randn(2, 9, WIDTH), torch.tensor([4, 9])  # a length of 0 is drawn
    report = report_of(Lengths(), tmp_path, *inputs, shapes=(FREE, {0: Dim.DYNAMIC}))
    assert report.verdict == "pass" and "fully-masked-rows" in report.assumptions
    assert report.parity is not None and any("NaN where rows have no key" in note for note in report.parity.notes)


def test_an_input_within_a_dict_has_axes_that_can_be_computed(tmp_path: Path) -> None:
    class Within(Layer):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.parts[0](batch["x"])

    report = report_of(Within(), tmp_path, {"x": torch.randn(2, 9, WIDTH)}, shapes=({"x": FREE},))
    assert report.verdict == "pass"


def test_exports_in_two_threads_take_turns(tmp_path: Path) -> None:
    class Plain(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(*self.heads(x, x, x))

    original = nn.functional.scaled_dot_product_attention
    models = [Plain().eval() for _ in range(2)]

    def verdict(number: int) -> tuple[str, list[str]]:
        output = tmp_path / f"{number}.onnx"
        report = deployml.export(models[number], (torch.randn(2, 9, WIDTH),), output=output, html=False).report
        return report.verdict, [site.status for site in report.sites]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(verdict, range(2))) == [("pass", ["fused"])] * 2
    assert nn.functional.scaled_dot_product_attention is original
