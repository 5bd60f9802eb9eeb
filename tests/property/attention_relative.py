"""Products with vectors of relative positions, as DeBERTa, Transformer-XL, conformers and XLNet write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .attention_spec import MAX_LENGTH, WIDTH

if TYPE_CHECKING:
    from .attention_source import _Writer

__all__ = ["REACH", "positional"]

#: Distances beyond this share one vector of DeBERTa's.
REACH = 4


def positional(w: _Writer) -> None:
    """Say ``relative``, (B, N, S, T), from q and k of (.., .., N, H); the query keeps its bias for the content."""
    s = w.spec
    if not s.relative:
        return
    order = "permute(1, 2, 0, 3)" if s.time_first else "transpose(1, 2)"
    if s.relative.startswith("shift"):
        _shifted(w, order)
    else:
        _gathered(w, order)


def _gathered(w: _Writer, order: str) -> None:
    s = w.spec
    terms = ("c2p", "p2c") if s.relative == "both" else (s.relative,)
    factor = (s.size * (1 + len(terms))) ** -0.5
    w.hold(f"self.rel = nn.Parameter(torch.zeros({2 * REACH}, {WIDTH}))")
    w.say("distance = torch.arange(S)[:, None] - torch.arange(T)[None, :]")
    for term in terms:
        side, own = ("q", "k") if term == "c2p" else ("k", "q")
        projection = own if s.shared_positions else f"r{own}"
        if not s.shared_positions:
            w.hold(f"self.{projection} = nn.Linear({WIDTH}, {s.heads * s.size}, bias={s.linear_bias})")
        w.say(f"places = self.{projection}(self.rel).view({2 * REACH}, {s.heads}, {s.size}).permute(1, 2, 0)")
        w.say(f"rows = {side}.{order}")
        if side == "k" and s.kv_heads != s.heads:
            w.say(f"rows = rows.repeat_interleave({s.heads // s.kv_heads}, dim=1)")
        w.say(f"{term} = torch.matmul(rows, places)")
        if term == "c2p":
            w.say(f"index = (distance + {REACH}).clamp(0, {2 * REACH - 1})")
            w.say(f"c2p = torch.gather(c2p, -1, index.expand(B, {s.heads}, S, T)) * {factor!r}")
        else:
            w.say(f"index = (-distance.transpose(0, 1) + {REACH}).clamp(0, {2 * REACH - 1})")
            w.say(f"p2c = torch.gather(p2c, -1, index.expand(B, {s.heads}, T, S)).transpose(-1, -2) * {factor!r}")
    w.say(f"relative = {' + '.join(terms)}")


def _shifted(w: _Writer, order: str) -> None:
    s, m = w.spec, MAX_LENGTH
    part, count = {
        "shift": (f"{m} - S:{m} + T - 1", "S + T - 1"),
        "shift_xl": (f"{m} - T:{m}", "T"),
        "shift_select": (f"{m} - S:{m} + T", "S + T"),
    }[s.relative]
    w.hold(f"self.rel = nn.Parameter(torch.zeros({2 * m}, {WIDTH}))")
    w.hold(f"self.rk = nn.Linear({WIDTH}, {s.heads * s.size}, bias=False)")
    w.say(f"places = self.rk(self.rel[{part}]).view({count}, {s.heads}, {s.size}).permute(1, 2, 0)")
    if s.position_bias:
        w.hold(f"self.bu = nn.Parameter(torch.zeros({s.heads}, {s.size}))")
        w.hold(f"self.bv = nn.Parameter(torch.zeros({s.heads}, {s.size}))")
        w.say(f"rows = (q + self.bv).{order}")
        w.say("q = q + self.bu")
    else:
        w.say(f"rows = q.{order}")
    w.say("relative = torch.matmul(rows, places)")
    n = s.heads
    if s.relative == "shift":
        w.say(f"relative = F.pad(relative, (1, 0)).view(B, {n}, S + T, S)")
        w.say(f"relative = relative[:, :, 1:].reshape(B, {n}, S, S + T - 1)[..., :T]")
    elif s.relative == "shift_xl":
        w.say(f"front = torch.zeros(B, {n}, S, 1, dtype=q.dtype)")
        w.say(f"relative = torch.cat((front, relative), dim=-1).view(B, {n}, T + 1, S)")
        w.say(f"relative = relative[:, :, 1:].reshape(B, {n}, S, T)")
    else:
        w.say(f"relative = relative.reshape(B, {n}, S + T, S)[:, :, 1:].reshape(B, {n}, S, S + T - 1)")
        w.say("relative = torch.index_select(relative, 3, torch.arange(T))")
    w.say(f"relative = relative * {s.size**-0.5!r}")
