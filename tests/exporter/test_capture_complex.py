"""Rotary embeddings written with complex numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from deployml.exporter.capture import capture
from deployml.exporter.load import load
from deployml.exporter.translate import translate


class _Rotated(nn.Module):
    """(batch, length, 4, 16) turned by the angle of its position, as the first Llama did."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1]).float()
        angle = torch.outer(place, 1.0 / 10 ** (torch.arange(8).float() / 8))
        turn = torch.polar(torch.ones_like(angle), angle)
        turn = turn.unsqueeze(0)[:, :, None, :].expand(1, -1, 4, -1).select(0, 0)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).flatten(3)


def test_complex_rotation_exports_and_agrees() -> None:
    module, generator = _Rotated().eval(), torch.Generator().manual_seed(0)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    traced = torch.randn(2, 7, 4, 16, generator=generator)
    with load(module, kwargs={"x": traced}, dynamic_shapes={"x": {0: batch, 1: length}}) as loaded:
        model = translate(capture(loaded), opset=21).model
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for size in ((1, 3), (3, 11)):
        x = torch.randn(*size, 4, 16, generator=generator)
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, module(x).numpy(), rtol=0, atol=1e-5)
