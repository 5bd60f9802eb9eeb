"""``flex_attention`` with the functions people write for it: one fused attention, equal to eager."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

import deployml

HEADS, SIZE = 4, 8


class Flex(nn.Module):
    """Self-attention by ``flex_attention``; subclasses say how."""

    kv_heads = HEADS

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(32, HEADS * SIZE)
        self.key = nn.Linear(32, self.kv_heads * SIZE)
        self.value = nn.Linear(32, self.kv_heads * SIZE)
        self.out = nn.Linear(HEADS * SIZE, 32)
        self.register_buffer("slopes", torch.tensor([0.5, 0.25, 0.125, 0.0625]))
        self.table = nn.Parameter(torch.randn(HEADS, 63, generator=torch.Generator().manual_seed(1)))

    def options(self, x: torch.Tensor) -> dict[str, Any]:
        return {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        q = self.query(x).view(b, s, HEADS, SIZE).transpose(1, 2)
        k = self.key(x).view(b, s, self.kv_heads, SIZE).transpose(1, 2)
        v = self.value(x).view(b, s, self.kv_heads, SIZE).transpose(1, 2)
        y = flex_attention(q, k, v, **self.options(x))
        return self.out(y.transpose(1, 2).reshape(b, s, -1))


class Plain(Flex):
    pass


class Grouped(Flex):
    kv_heads = 2

    def options(self, x: torch.Tensor) -> dict[str, Any]:
        return {"enable_gqa": True, "scale": 0.4}


class Alibi(Flex):
    def options(self, x: torch.Tensor) -> dict[str, Any]:
        def score_mod(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            return score - self.slopes[h] * (q - k).abs()

        return {"score_mod": score_mod}


class RelativeTable(Flex):
    def options(self, x: torch.Tensor) -> dict[str, Any]:
        return {"score_mod": lambda score, b, h, q, k: score + self.table[h, (q - k).clamp(-31, 31) + 31]}


class Softcap(Flex):
    def options(self, x: torch.Tensor) -> dict[str, Any]:
        return {"score_mod": lambda score, b, h, q, k: 5.0 * torch.tanh(score / 5.0)}


class CausalScore(Flex):
    def options(self, x: torch.Tensor) -> dict[str, Any]:
        return {"score_mod": lambda score, b, h, q, k: torch.where(q >= k, score, -float("inf"))}


def masked(mask_mod: Callable[..., Any], x: torch.Tensor, batch: int | None = None) -> dict[str, Any]:
    size = x.shape[1]
    return {"block_mask": create_block_mask(mask_mod, batch, None, size, size, device="cpu")}


class Causal(Flex):
    def options(self, x: torch.Tensor) -> dict[str, Any]:
        return masked(lambda b, h, q, k: q >= k, x)


class Window(Flex):
    def options(self, x: torch.Tensor) -> dict[str, Any]:
        return masked(lambda b, h, q, k: (q >= k) & (q - k < 5), x)


class Prefix(Flex):
    def options(self, x: torch.Tensor) -> dict[str, Any]:
        return masked(lambda b, h, q, k: (k < 3) | (q >= k), x)


class Everything(Flex):
    """A capped score with slopes below a causal mask, grouped heads."""

    kv_heads = 2

    def options(self, x: torch.Tensor) -> dict[str, Any]:
        def score_mod(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            return 5.0 * torch.tanh(score / 5.0) - self.slopes[h] * (q - k)

        return {"score_mod": score_mod, "enable_gqa": True, **masked(lambda b, h, q, k: q >= k, x)}


class Documents(Flex):
    """Packed documents: a token sees its own, named by the sign of its first feature, and row 0 nothing at all."""

    def options(self, x: torch.Tensor) -> dict[str, Any]:
        segment = (x[..., 0] > 0).long()
        mod = lambda b, h, q, k: (segment[b, q] == segment[b, k]) & (q > 0)  # noqa: E731
        return masked(mod, x, batch=x.shape[0])


WRITTEN = (
    *(Plain, Grouped, Alibi, RelativeTable, Softcap, CausalScore, Causal, Window, Prefix, Everything, Documents),
)


def exported(model: nn.Module, folder: Path, **options: Any) -> Any:
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(2))
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=32)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return deployml.export(
            model.eval(), (x,), output=folder / "m.onnx", dynamic_shapes=shapes, html=False, **options
        )


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.__name__)
def test_it_becomes_one_attention(kind: type[Flex], tmp_path: Path) -> None:
    torch.manual_seed(0)
    artifact = exported(kind(), tmp_path)
    (site,) = artifact.report.sites
    assert (site.status, site.reason) == ("fused", None)
    assert artifact.report.verdict == "pass"
    if kind in (Causal, CausalScore):
        assert site.facts["causal"] is True


def test_the_sums_of_rows_are_an_output_too(tmp_path: Path) -> None:
    class Sums(Flex):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            b, s, _ = x.shape
            q, k, v = (f(x).view(b, s, HEADS, SIZE).transpose(1, 2) for f in (self.query, self.key, self.value))
            y, aux = flex_attention(q, k, v, **self.options(x), return_aux=AuxRequest(lse=True))
            return y, aux.lse

        def options(self, x: torch.Tensor) -> dict[str, Any]:
            return masked(lambda b, h, q, k: q > k, x)  # the first row sees nothing

    torch.manual_seed(0)
    model = Sums()
    artifact = exported(model, tmp_path, fuse_attention=False)
    x = torch.randn(3, 9, 32)
    session = onnxruntime.InferenceSession(artifact.path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = model(x)
    for ours, eager in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, eager.numpy(), rtol=1e-5, atol=1e-5)
    assert np.isneginf(found[1][:, :, 0]).all()


def test_a_function_that_makes_tensors_is_refused_by_its_line(tmp_path: Path) -> None:
    class Makes(Flex):
        def options(self, x: torch.Tensor) -> dict[str, Any]:
            return {"score_mod": lambda score, b, h, q, k: score + torch.tensor([0.1, 0.2, 0.3, 0.4])[h]}

    with pytest.raises(deployml.UnsupportedError, match="flex_attention") as caught:
        exported(Makes(), tmp_path)
    assert "buffers of the module" in str(caught.value)
