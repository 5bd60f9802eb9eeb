"""``deployml::linear_attention``: a torch op that stands for one gated delta rule until translation.

torch code computes the rule in chunks of a fixed size, with a Python loop over the chunks: an export bakes their
number in. This op says the same thing for every length. Its meaning is in ``passes/canonical_recurrence.py``.
"""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["LINEAR_ATTENTION"]

_LIBRARY: Final = torch.library.Library("deployml", "FRAGMENT")
_LIBRARY.define(
    "linear_attention(Tensor query, Tensor key, Tensor value, Tensor decay, Tensor beta, Tensor? state, float scale) "
    "-> (Tensor, Tensor)"
)


def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, heads, size = query.shape
    channels = value.shape[-1]
    return query.new_empty([batch, length, heads, channels]), query.new_empty([batch, heads, size, channels])


def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, heads, size = query.shape
    channels = value.shape[-1]
    present = query.new_zeros([batch, heads, size, channels]) if state is None else state.clone()
    remains = decay.exp() if decay.dim() == 4 else decay.exp().unsqueeze(-1)
    rows = []
    for at in range(length):
        present = present * remains[:, at].unsqueeze(-1)
        answer = torch.einsum("bnkv,bnk->bnv", present, key[:, at])
        correction = (value[:, at] - answer) * beta[:, at].unsqueeze(-1)
        present = present + key[:, at].unsqueeze(-1) * correction.unsqueeze(-2)
        rows.append(torch.einsum("bnkv,bnk->bnv", present, query[:, at] * scale))
    return torch.stack(rows, 1) if rows else _fake(query, key, value, decay, beta, state, scale)[0], present


_LIBRARY.impl("linear_attention", _run, "CompositeExplicitAutograd")
torch.library.register_fake("deployml::linear_attention", _fake, lib=_LIBRARY)

#: The overload that stands in a captured program.
LINEAR_ATTENTION: Final = torch.ops.deployml.linear_attention.default
