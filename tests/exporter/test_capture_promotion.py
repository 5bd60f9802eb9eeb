"""Integers that meet floats: torch promotes them by itself, torch.onnx does not everywhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deployml.exporter.capture import capture
from deployml.exporter.load import load
from deployml.exporter.translate import translate

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "float-minus-int": lambda m: (1.0 - m) * -10000.0,
    "float-minus-int32": lambda m: 0.5 - m.to(torch.int32),
    "float-minus-bool-as-int": lambda m: 1.5 - (m > 0).to(torch.int64),
    "rsub-with-alpha": lambda m: torch.rsub(m, 1.5, alpha=2),
    "int-minus-int": lambda m: (1 - m).float(),
    "float-minus-float": lambda m: 1.0 - m.float(),
    "einsum-of-int-and-float": lambda m: torch.einsum("bi,j->bij", m, torch.tensor([0.5, 0.25])),
    "einsum-of-int-and-half": lambda m: torch.einsum("bi,bj->bij", m.half(), m),
    "arange-from-a-float": lambda m: m * torch.arange(0.0, m.shape[1]),
    "arange-by-a-float": lambda m: m * torch.arange(m.shape[1], 0, -1.0),
    "arange-of-integers": lambda m: m * torch.arange(1, m.shape[1] + 1),
    "einsum-of-one-tensor-twice": lambda m: torch.einsum("bi,bi->b", m, m),
}


class _Form(nn.Module):
    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form

    def forward(self, m: Tensor) -> Tensor:
        return self.form(m)


@pytest.mark.parametrize("name", FORMS)
def test_integers_become_floats_where_torch_makes_them(name: str) -> None:
    module = _Form(FORMS[name]).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    traced = torch.tensor([[0, 1, 2], [3, 0, 1]])
    with load(module, kwargs={"m": traced}, dynamic_shapes={"m": {0: batch, 1: length}}) as loaded:
        model = translate(capture(loaded), opset=21).model
    given = torch.tensor([[2, 0, 1, 5, 0]])
    expected = module(given).numpy()
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"m": given.numpy()})
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
