"""Writes a random attention as the torch module a person would have written, as source text."""

from __future__ import annotations

from . import attention_relative, attention_tokens
from .attention_spec import MAX_LENGTH, WIDTH, AttentionSpec

__all__ = ["INPUTS", "PRELUDE", "module_source"]

#: Width of the narrow projection that "latent" keys and values come from.
LATENT = 12

#: Inputs of every module, in order; S queries, T keys of the cross attentions.
INPUTS = ("x", "y", "tokens", "keys", "lengths", "segments", "add_s", "add_t", "keep_s", "keep_t")

PRELUDE = """
import math
import torch
import torch.nn.functional as F
from torch import nn

def rotate_half(x):
    one, two = x.chunk(2, dim=-1)
    return torch.cat((-two, one), dim=-1)

def rotate_pairs(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)

def rms(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

def four(x):
    return x[(None,) * (4 - x.dim())]

def bucket(distance):
    far = 4 + (torch.log(distance.abs().clamp(min=1).float() / 4) / math.log(4.0) * 4).long().clamp(max=3)
    near = torch.where(distance.abs() < 4, distance.abs(), far)
    return near + (distance > 0).long() * 8
"""


class _Writer:
    def __init__(self, spec: AttentionSpec, name: str) -> None:
        self.spec = spec
        self.name = name
        self.few = "x"  # what keys and values are made of
        self.state: list[str] = []
        self.body: list[str] = []

    def hold(self, text: str) -> None:
        self.state.append(text)

    def say(self, text: str) -> None:
        self.body.append(text)

    def source(self) -> str:
        s = self.spec
        attention_tokens.enter(self)
        self.projections()
        self.positions()
        attention_tokens.remember(self)
        attention_relative.positional(self)
        self.masks_and_bias()
        if s.product == "sdpa":
            self.sdpa()
        else:
            self.scores()
            self.probabilities()
            self.values()
        self.end()
        lines = [f"class {self.name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in self.state]
        lines += ["", f"    def forward(self, {', '.join(INPUTS)}):"]
        lines += [f"        {line}" for line in self.body]
        return "\n".join(lines) + "\n"

    def projections(self) -> None:
        s = self.spec
        lead, keys = ("S, B", "T, B") if s.time_first else ("B, S", "B, T")
        widths = (s.heads * s.size, s.kv_heads * s.size, s.kv_heads * s.value_size)
        views = (
            f"{lead}, {s.heads}, {s.size}",
            f"{keys}, {s.kv_heads}, {s.size}",
            f"{keys}, {s.kv_heads}, {s.value_size}",
        )
        if s.tokens == "channels":
            attention_tokens.convolutions(self)
            return
        if s.packing == "latent":
            self.latent(lead, keys)
            return
        if s.packing == "separate":
            for name, width, view in zip("qkv", widths, views, strict=True):
                self.hold(f"self.{name} = nn.Linear({WIDTH}, {width}, bias={s.linear_bias})")
                self.say(f"{name} = self.{name}({'x' if name == 'q' else self.few}).view({view})")
            return
        self.hold(f"self.qkv = nn.Linear({WIDTH}, {sum(widths)}, bias={s.linear_bias})")
        if s.packing == "split":
            self.say(f"q, k, v = self.qkv(x).split({list(widths)}, dim=-1)")
            for name, view in zip("qkv", views, strict=True):
                self.say(f"{name} = {name}.view({view})")
            return
        tail, axis = {
            "unbind": (f"3, {s.heads}, {s.size}", 2),
            "heads_first": (f"{s.heads}, 3, {s.size}", 3),
            "last": (f"{s.heads}, {s.size}, 3", 4),
        }[s.packing]
        self.say(f"q, k, v = self.qkv(x).view({lead}, {tail}).unbind({axis})")

    def latent(self, lead: str, keys: str) -> None:
        """One narrow projection gives keys and values of all heads, and the half of the key that they share."""
        s = self.spec
        own, shared = s.size - s.size // 2, s.size // 2
        self.hold(f"self.q = nn.Linear({WIDTH}, {s.heads * s.size}, bias={s.linear_bias})")
        self.hold(f"self.down = nn.Linear({WIDTH}, {LATENT + shared}, bias={s.linear_bias})")
        self.hold(f"self.up = nn.Linear({LATENT}, {s.heads * (own + s.value_size)}, bias=False)")
        self.say(f"q = self.q(x).view({lead}, {s.heads}, {s.size})")
        self.say(f"latent, shared = self.down({self.few}).split([{LATENT}, {shared}], dim=-1)")
        self.say(f"both = self.up(latent).view({keys}, {s.heads}, {own + s.value_size})")
        self.say(f"k, v = both.split([{own}, {s.value_size}], dim=-1)")
        self.say("shared = shared.unsqueeze(2)")
        if s.rotary:
            self.angles(shared)
            self.say(f"q, last = q.split([{own}, {shared}], dim=-1)")
            turn = self.turn
            self.say(f"q = torch.cat((q, last * cos + {turn}(last) * sin), dim=-1)")
            self.say(f"shared = shared * cos + {turn}(shared) * sin")
        self.say(f"k = torch.cat((k, shared.expand({keys}, {s.heads}, {shared})), dim=-1)")

    @property
    def turn(self) -> str:
        """The function that turns a head by a quarter."""
        return "rotate_pairs" if self.spec.rotary == "interleaved" else "rotate_half"

    def angles(self, part: int) -> None:
        """cos and sin for the first ``part`` of (.., .., N, H)."""
        s = self.spec
        several = s.rotary in ("axial", "axes")
        count = part // 2 if several else part
        self.hold(f"self.register_buffer('inverse', 10.0 ** -(torch.arange(0, {count}, 2).float() / {count}))")
        index = "[:, None, None]" if s.time_first else "[:, None]"
        if s.rotary == "sections":
            self.sections(part)
            return
        if several:
            self.say("rows = (torch.arange(S) // 3).to(self.inverse.dtype)[:, None] * self.inverse")
            self.say("columns = (torch.arange(S) % 3).to(self.inverse.dtype)[:, None] * self.inverse")
        if s.rotary == "axes":
            self.say("angle = torch.cat((rows, rows, columns, columns), -1)" + index)
        elif s.rotary == "axial":
            self.say("angle = torch.cat((rows, columns, rows, columns), -1)" + index)
        else:
            self.say("angle = torch.arange(S).to(self.inverse.dtype)[:, None] * self.inverse")
            double = "angle.repeat_interleave(2, -1)" if s.rotary == "interleaved" else "torch.cat((angle, angle), -1)"
            self.say(f"angle = {double}{index}")
        self.say("cos, sin = angle.cos(), angle.sin()")

    def sections(self, part: int) -> None:
        """cos and sin put together from those of three positions of a token."""
        last = part // 8
        sizes = [part // 2 - 2 * last, last, last] * 2
        self.say("places = torch.stack((torch.arange(S).expand(B, S), segments, tokens), dim=0)")
        self.say("angle = places[..., None].to(self.inverse.dtype) * self.inverse")
        self.say("angle = torch.cat((angle, angle), -1)")
        for name in ("cos", "sin"):
            self.say(f"parts = angle.{name}().split({sizes}, dim=-1)")
            self.say(f"{name} = torch.cat([part[n % 3] for n, part in enumerate(parts)], dim=-1)[:, :, None]")
            if self.spec.time_first:
                self.say(f"{name} = {name}.transpose(0, 1)")

    def positions(self) -> None:
        """Norm and rotary embedding, on (.., .., N, H)."""
        s = self.spec
        if s.norm:
            self.hold(f"self.nq, self.nk = nn.Parameter(torch.ones({s.size})), nn.Parameter(torch.ones({s.size}))")
            for name in "qk":
                call = f"rms({name}) * self.n{name}"
                if s.norm == "layer":
                    call = f"F.layer_norm({name}, ({s.size},), self.n{name}, None, 1e-5)"
                self.say(f"{name} = {call}")
        if s.scale == "cosine":
            self.say("q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)")
        if not s.rotary or s.packing == "latent":
            return
        part = s.size // 2 if s.rotary == "partial" else s.size
        self.angles(part)
        turn = self.turn
        for name in "qk":
            if s.rotary == "axes":
                self.say(f"one, two = {name}.chunk(2, dim=-1)")
                self.say(f"turned = torch.cat(({turn}(one), {turn}(two)), dim=-1)")
                self.say(f"{name} = {name} * cos + turned * sin")
            elif part == s.size:
                self.say(f"{name} = {name} * cos + {turn}({name}) * sin")
            else:
                self.say(f"turned, rest = {name}[..., :{part}], {name}[..., {part}:]")
                self.say(f"{name} = torch.cat((turned * cos + {turn}(turned) * sin, rest), dim=-1)")

    def masks_and_bias(self) -> None:
        s = self.spec
        kept = [_KEEP[name].format(**self.names()) for name in s.masks]
        if kept or s.bias in ("alibi", "t5", "relative"):
            self.say("i, j = torch.arange(S)[:, None], torch.arange(T)[None, :]")
        if "causal" in s.masks and s.swap:
            self.hold(f"self.register_buffer('tri', torch.ones({MAX_LENGTH}, {MAX_LENGTH}).tril().bool())")
        for number, text in enumerate(kept):
            self.say(f"keep{number} = {self.ordered(text)}")
        if kept:
            self.say("keep = " + " & ".join(f"keep{n}" for n in range(len(kept))))
        self.bias()

    def ordered(self, text: str) -> str:
        """A (B, N, S, T) broadcast in the order of the score letters."""
        swap = {"hbqk": (0, 1), "bqhk": (1, 2)}.get(self.spec.letters)
        if swap is None or self.spec.product != "einsum":
            return text
        return f"four({text}).transpose{swap}"

    def names(self) -> dict[str, str]:
        s = self.spec
        flat = s.rows == "unsqueeze"
        return {
            "w": str(s.window),
            "tokens": attention_tokens.of_keys(s, "keys", "tokens", "1"),
            "keep": attention_tokens.of_keys(s, "keep_t", "keep_s", "True"),
            "columns": ".unsqueeze(1).unsqueeze(2)" if flat else "[:, None, None, :]",
            "causal": "self.tri[:S, :T]" if s.swap else ("torch.ones(S, T).tril().bool()" if flat else "(j <= i)"),
            "lower": "torch.ones(S, T, dtype=torch.bool).tril(diagonal=T - S)" if flat else "(j <= i + (T - S))",
        }

    def bias(self) -> None:
        s, n, m = self.spec, self.spec.heads, MAX_LENGTH
        joined = s.product in ("sdpa", "baddbmm")
        if not s.bias:
            if s.relative and joined:
                self.say("bias = relative")
            return
        held = {
            "table": f"self.table = nn.Parameter(torch.zeros({n}, {m}, {m}))",
            "rows": f"self.table = nn.Parameter(torch.zeros({n}, {m}, 1))",
            "keys": f"self.table = nn.Parameter(torch.zeros({n}, 1, {m}))",
            "heads": f"self.table = nn.Parameter(torch.zeros({n}, 1, 1))",
            "alibi": f"self.register_buffer('slopes', 2.0 ** -torch.arange(1, {n + 1}).float().view({n}, 1, 1))",
            "alibi_table": f"self.register_buffer('table', -torch.rand({n}, 1, 1) * "
            f"(torch.arange({m})[:, None] - torch.arange({m})).abs())",
            "t5": f"self.table = nn.Embedding(16, {n})",
            "relative": f"self.table = nn.Embedding(7, {n})",
        }
        if s.bias in held:
            self.hold(held[s.bias])
        text = {
            "table": "self.table[None, :, :S, :T]",
            "rows": "self.table[None, :, :S, :]",
            "keys": "self.table[None, :, :, :T]",
            "heads": "self.table",
            "alibi": "self.slopes * (j - i)",
            "alibi_table": "self.table[:, :S, :T]",
            "t5": "self.table(bucket(j - i)).permute(2, 0, 1)[None]",
            "relative": "self.table((j - i).clamp(-3, 3) + 3).permute(2, 0, 1)",
            "input": attention_tokens.of_keys(s, "add_t", "add_s", "0.0"),
        }[s.bias]
        self.say(f"bias = {self.ordered(text)}")
        if s.relative and joined:
            self.say("bias = bias + relative")

    def sdpa(self) -> None:
        s = self.spec
        order = "permute(1, 2, 0, 3)" if s.time_first else "transpose(1, 2)"
        self.say(f"q, k, v = q.{order}, k.{order}, v.{order}")
        self.repeat(1)
        options = []
        if s.kv_heads != s.heads and s.repeat == "sdpa":
            options.append("enable_gqa=True")
        if s.scale in ("none", "query"):
            options.append("scale=1.0" if s.scale == "none" else "scale=0.3")
        if s.masks == ("causal",) and not s.biased and s.apart and not s.other_keys:
            options.append("is_causal=True")
        elif s.masks:
            options.append("attn_mask=keep")
            if s.biased:
                self.say(
                    "keep = bias.expand(B, -1, S, T).masked_fill(~keep, float('-inf'))"
                    if s.bias == "input"
                    else "keep = bias.masked_fill(~keep, float('-inf'))"
                )
            elif s.fill.startswith("add"):
                low = "torch.finfo(q.dtype).min" if s.fill == "add_min" else "float('-inf')"
                self.say(f"keep = torch.zeros_like(keep, dtype=q.dtype).masked_fill(~keep, {low})")
        elif s.biased:
            options.append("attn_mask=bias.expand(B, -1, S, T)" if s.bias == "input" else "attn_mask=bias")
        self.say(f"out = F.scaled_dot_product_attention({', '.join(['q', 'k', 'v', *options])})")
        self.merge("BNSV")

    def repeat(self, axis: int) -> None:
        s = self.spec
        group = s.heads // s.kv_heads
        if group == 1 or s.repeat in ("grouped", "sdpa"):
            return
        lead = "B, T" if axis == 2 else "B"
        for name, size in (("k", s.size), ("v", s.value_size)):
            if s.repeat == "interleave":
                self.say(f"{name} = {name}.repeat_interleave({group}, dim={axis})")
            elif s.repeat == "index":
                where = ":, " * axis
                self.say(f"{name} = {name}[{where}torch.arange({s.heads}) // {group}]")
            elif axis == 1:
                self.say(
                    f"{name} = {name}[:, :, None].expand({lead}, {s.kv_heads}, {group}, T, {size})"
                    f".reshape(B, {s.heads}, T, {size})"
                )
            else:
                self.say(
                    f"{name} = {name}[:, :, :, None].expand({lead}, {s.kv_heads}, {group}, {size})"
                    f".reshape(B, T, {s.heads}, {size})"
                )

    def scores(self) -> None:
        s = self.spec
        scale = s.size**-0.5
        if s.product == "einsum":
            self.repeat(2)
        if s.scale == "query":
            self.say(f"q = q * {scale!r}")
        if s.scale == "key":
            self.say(f"k = k / {1 / scale!r}")
        if s.scale == "both":
            self.say(f"q, k = q * {scale**0.5!r}, k * {scale**0.5!r}")
        getattr(self, f"_{'bmm' if s.product == 'baddbmm' else s.product}")(scale)
        if s.scale == "scores" and s.product != "baddbmm":
            self.say(f"a = a * {scale!r}")
        if s.scale == "negative":
            self.say(f"a = -a * {scale!r}")
        if s.scale == "divide":
            self.say(f"a = a / math.sqrt({s.size})")
        if s.scale in ("learned", "cosine"):
            self.hold(f"self.heat = nn.Parameter(torch.zeros({s.heads}, 1, 1))")
            heat = "self.heat" if s.scale == "learned" else "self.heat.clamp(max=4.0).exp()"
            self.say(f"a = a * {self.ordered(heat)}")
        if s.softcap:
            self.say(f"a = {s.softcap} * torch.tanh(a / {s.softcap})")
        if s.talking in ("before", "both"):
            self.hold(f"self.talk_in = nn.Parameter(torch.zeros({s.heads}, {s.heads}))")
            self.say("a = torch.einsum('bnst,mn->bmst', a, self.talk_in)")
        self.terms(scale)

    def terms(self, scale: float) -> None:
        s = self.spec
        masks = [f"keep{n}" for n in range(len(s.masks))] if s.apart else ["keep"] * bool(s.masks)
        added = [] if not s.bias or (s.product == "baddbmm" and not s.softcap) else ["a = a + bias"]
        if s.relative and s.product != "baddbmm":
            added.insert(0, f"a = a + {self.ordered('relative')}")
        elif s.relative and s.softcap:
            added = ["a = a + bias"]
        if s.tokens == "shifted":
            added.append(attention_tokens.shift_mask(self))
        late = [f"a = a * {scale!r}"] if s.scale == "late" else []
        forbidden = ["a = " + _FILL[s.fill].format(keep=mask) for mask in masks]
        for line in [*forbidden, *added, *late] if s.mask_first else [*added, *late, *forbidden]:
            self.say(line)
        if s.floor == "max":
            self.say("a = torch.max(a, torch.tensor(torch.finfo(a.dtype).min, dtype=a.dtype))")
        if s.floor == "clamp":
            self.say("a = a.clamp(min=torch.finfo(a.dtype).min)")

    def _matmul(self, scale: float) -> None:
        s = self.spec
        order = "permute(1, 2, 0, 3)" if s.time_first else "transpose(1, 2)"
        straight = s.key_transpose == "permute" and not s.time_first and s.kv_heads == s.heads
        self.say(f"q, v = q.{order}, v.{order}")
        self.say("k = k.permute(0, 2, 3, 1)" if straight else f"k = k.{order}")
        self.repeat(1)
        group = s.heads // s.kv_heads
        if group > 1 and s.repeat in ("grouped", "sdpa"):
            self.say(f"a = q.reshape(B, {s.kv_heads}, {group}, S, {s.size}) @ k[:, :, None].transpose(-2, -1)")
        elif straight:
            self.say("a = q @ k")
        else:
            self.say(f"a = torch.matmul(q, k.{'mT' if s.key_transpose == 'mT' else 'transpose(-1, -2)'})")

    def _bmm(self, scale: float) -> None:
        s = self.spec
        order = "permute(1, 2, 0, 3)" if s.time_first else "transpose(1, 2)"
        if s.time_first and s.kv_heads == s.heads:
            for name, length, size in (("q", "S", s.size), ("k", "T", s.size), ("v", "T", s.value_size)):
                self.say(f"{name} = {name}.reshape({length}, B * {s.heads}, {size}).transpose(0, 1)")
        else:
            self.say(f"q, k, v = q.{order}, k.{order}, v.{order}")
            self.repeat(1)
            for name, length, size in (("q", "S", s.size), ("k", "T", s.size), ("v", "T", s.value_size)):
                self.say(f"{name} = {name}.reshape(B * {s.heads}, {length}, {size})")
        if s.product == "bmm":
            self.say("a = torch.bmm(q, k.transpose(1, 2))")
        else:
            start = "torch.zeros(1, 1, 1, dtype=q.dtype)"
            if s.biased and not s.softcap:
                start = f"bias.expand(B, {s.heads}, S, T).reshape(B * {s.heads}, S, T)"
            alpha = scale if s.scale == "scores" else 1.0
            self.say(f"a = torch.baddbmm({start}, q, k.transpose(1, 2), beta=1.0, alpha={alpha!r})")
        if self._four():
            self.say(f"a = a.view(B, {s.heads}, S, T)")

    def _four(self) -> bool:
        return self.spec.rich

    def _einsum(self, scale: float) -> None:
        s = self.spec
        a, b = self.letters("bqhd"), self.letters("bkhd")
        result = self.letters(s.letters)
        if s.swap:
            self.say(f"a = torch.einsum('{b},{a}->{result}', k, q)")
        else:
            self.say(f"a = torch.einsum('{a},{b}->{result}', q, k)")

    def letters(self, term: str) -> str:
        return "".join(self.spec.rename["bhqkdv".index(c)] for c in term)

    def probabilities(self) -> None:
        s = self.spec
        if s.product in ("bmm", "baddbmm") and self._four() and not s.weights and not s.sink and s.apart:
            self.say(f"a = a.view(B * {s.heads}, S, T)")
        if s.sink == "logit":
            self.hold(f"self.sink = nn.Parameter(torch.zeros({s.heads}))")
            self.say(f"sink = self.sink.reshape(1, {s.heads}, 1, 1).expand(B, {s.heads}, S, 1)")
            self.say("p = F.softmax(torch.cat((a, sink), dim=-1), dim=-1)[..., :-1]")
        elif s.sink == "one":
            self.say("top = a.amax(-1, keepdim=True).clamp(min=0.0)")
            self.say("e = torch.exp(a - top)")
            self.say("p = e / (e.sum(-1, keepdim=True) + torch.exp(-top))")
        else:
            for line in _SOFTMAX[s.softmax]:
                self.say(line)
        if s.dropout:
            self.say("p = F.dropout(p, 0.1, self.training)")
        guards = {
            "nan_to_num": "p = torch.nan_to_num(p, 0.0)",
            "where": "p = torch.where(torch.isnan(p), 0.0, p)",
            "zero_rows": "p = p.masked_fill(~keep, 0.0)",
            "no_keys": "p = p.masked_fill(~keep.any(-1, keepdim=True), 0.0)",
        }
        if s.guard:
            self.say(guards[s.guard])
        if s.talking in ("after", "both"):
            self.hold(f"self.talk = nn.Linear({s.heads}, {s.heads}, bias=False)")
            self.say("p = self.talk(p.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)")

    def values(self) -> None:
        s = self.spec
        group = s.heads // s.kv_heads
        if s.weights:
            self.say("weights = p")
        if s.product == "einsum":
            p, v = self.letters(s.letters), self.letters("bkhv")
            self.say(f"out = torch.einsum('{p},{v}->{self.letters('bqhv')}', p, v)")
            self.merge("BSNV")
        elif s.product == "matmul" and group > 1 and s.repeat in ("grouped", "sdpa"):
            self.say(f"out = (p @ v[:, :, None]).reshape(B, {s.heads}, S, {s.value_size})")
            self.merge("BNSV")
        elif s.product == "matmul":
            self.say("out = p @ v")
            self.merge("BNSV")
        else:
            if self._four() and (s.weights or s.sink or not s.apart):
                self.say(f"p = p.reshape(B * {s.heads}, S, T)")
            self.say("out = torch.bmm(p, v)")
            self.merge("bmm")

    def merge(self, layout: str) -> None:
        s = self.spec
        wide = s.heads * s.value_size
        if layout == "bmm" and s.time_first:
            self.say(f"out = out.transpose(0, 1).reshape(S, B, {wide})")
            return
        if layout == "bmm":
            self.say(f"out = out.view(B, {s.heads}, S, {s.value_size})")
        if layout == "BSNV":
            self.say("out = out.flatten(2)")
        elif s.time_first:
            self.say(f"out = out.permute(2, 0, 1, 3).reshape(S, B, {wide})")
        else:
            self.say(f"out = out.transpose(1, 2).contiguous().view(B, S, {wide})")

    def end(self) -> None:
        s = self.spec
        if s.tokens:
            attention_tokens.leave(self)
        elif s.project:
            self.hold(f"self.o = nn.Linear({s.heads * s.value_size}, {WIDTH})")
            self.say("out = self.o(out)")
        self.say("return (out, weights)" if s.weights else "return out")


_KEEP = {
    "causal": "{causal}",
    "lower_right": "{lower}",
    "padding": "({tokens} != 0){columns}",
    "lengths": "(j < lengths[:, None]){columns}",
    "left": "(j >= lengths[:, None]){columns}",
    "input": "{keep}",
    "window": "((j <= i) & (i - j < {w}))",
    "band": "((i - j).abs() < {w})",
    "prefix": "((j <= i) | (j < {w}))",
    "block": "(i // {w} == j // {w})",
    "segments": "(segments[:, None, :, None] == segments[:, None, None, :])",
    "queries": "((tokens[:, None, :, None] != 0) & (tokens[:, None, None, :] != 0))",
}

_FILL = {
    "-inf": "a.masked_fill(~{keep}, float('-inf'))",
    "min": "a.masked_fill(~{keep}, torch.finfo(a.dtype).min)",
    "1e9": "a.masked_fill({keep} == 0, -1e9)",
    "where": "torch.where({keep}, a, float('-inf'))",
    "where_min": "torch.where({keep}, a, torch.full((), torch.finfo(a.dtype).min, dtype=a.dtype))",
    "add_inf": "a + torch.zeros_like({keep}, dtype=a.dtype).masked_fill(~{keep}, float('-inf'))",
    "add_min": "a + (1.0 - {keep}.to(a.dtype)) * torch.finfo(a.dtype).min",
    "add_1e4": "a + (1.0 - {keep}.to(a.dtype)) * -10000.0",
}

_SOFTMAX = {
    "plain": ("p = F.softmax(a, dim=-1)",),
    "float": ("p = F.softmax(a, dim=-1, dtype=torch.float32).to(v.dtype)",),
    "exp": ("e = torch.exp(a)", "p = e / e.sum(-1, keepdim=True)"),
    "exp_max": ("e = torch.exp(a - a.amax(-1, keepdim=True))", "p = e / e.sum(dim=-1, keepdim=True)"),
    "log": ("p = F.log_softmax(a, dim=-1).exp()",),
    "again": ("p = F.softmax(a, dim=-1) * keep.to(a.dtype)", "p = p / (p.sum(-1, keepdim=True) + 1e-13)"),
    "exp_kept": ("e = torch.exp(a - a.amax(-1, keepdim=True)) * keep.to(a.dtype)", "p = e / e.sum(-1, keepdim=True)"),
}


def module_source(spec: AttentionSpec, name: str = "Attention") -> str:
    """The class as text; :data:`PRELUDE` holds what it needs."""
    return _Writer(spec, name).source()
