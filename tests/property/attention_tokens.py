"""What queries and keys are made of: sequences, images, windows of images, fewer tokens, a memory beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .attention_spec import WIDTH, AttentionSpec

if TYPE_CHECKING:
    from .attention_source import _Writer

__all__ = ["COLUMNS", "MEMORY", "convolutions", "enter", "leave", "of_keys", "remember", "shift_mask"]

#: Columns of the image that a sequence is made into: its positions are the rows.
COLUMNS = {"channels": 2, "windows": 4, "shifted": 4}
#: Learned keys and values of a memory.
MEMORY = 2


def enter(w: _Writer) -> None:
    """Say B, S and T, ``x`` and what keys and values are made of."""
    s = w.spec
    if s.tokens == "channels":
        _image(w)
        return
    if s.tokens:
        _windows(w)
    w.say("S, B, _ = x.shape" if s.time_first else "B, S, _ = x.shape")
    w.few = "y" if s.cross else "x"
    if s.memory == "sequence":
        w.say(f"few = torch.cat((y, x), dim={0 if s.time_first else 1})")
    elif s.reduce == "stride":
        w.say(f"few = {w.few}[:, ::2]")
    elif s.reduce:
        w.say(f"few = {_reduced(w, f'{w.few}.transpose(1, 2)', 1)}.transpose(1, 2)")
    if s.reduce or s.memory == "sequence":
        w.few = "few"
    w.say(f"T = {w.few}.shape[{0 if s.time_first else 1}]" if w.few != "x" else "T = S")


def _reduced(w: _Writer, source: str, axes: int) -> str:
    """Half as many positions, along each of the last axes."""
    if w.spec.reduce == "pool":
        return f"F.avg_pool{axes}d({source}, 3, 2, 1)"
    w.hold(f"self.sr = nn.Conv{axes}d({WIDTH}, {WIDTH}, 3, 2, 1)")
    return f"self.sr({source})"


def _image(w: _Writer) -> None:
    s, columns = w.spec, COLUMNS["channels"]
    w.hold(f"self.place = nn.Parameter(torch.zeros({columns}, {WIDTH}))")
    w.say("x = (x[:, :, None] + self.place).permute(0, 3, 1, 2)")
    w.say("B, _, tall, broad = x.shape")
    w.say("S = tall * broad")
    w.few = "x"
    if s.cross:
        w.say("few = (y[:, :, None] + self.place).permute(0, 3, 1, 2)")
        w.few = "few"
    if s.reduce == "stride":
        w.say(f"few = {w.few}[:, :, ::2, ::2]")
    elif s.reduce:
        w.say(f"few = {_reduced(w, w.few, 2)}")
    if s.reduce:
        w.few = "few"
    w.say("T = few.shape[2] * few.shape[3]" if w.few == "few" else "T = S")


def convolutions(w: _Writer) -> None:
    """Say q, k and v as (B, positions, N, H) of 1 x 1 convolutions over an image."""
    s = w.spec
    if s.packing == "unbind":
        w.hold(f"self.qkv = nn.Conv2d({WIDTH}, {3 * s.heads * s.size}, 1, bias={s.linear_bias})")
        w.say(f"q, k, v = self.qkv(x).view(B, 3, {s.heads}, {s.size}, S).unbind(1)")
        w.say("q, k, v = q.permute(0, 3, 1, 2), k.permute(0, 3, 1, 2), v.permute(0, 3, 1, 2)")
        return
    for name, heads, size in (
        ("q", s.heads, s.size), ("k", s.kv_heads, s.size), ("v", s.kv_heads, s.value_size),
    ):  # fmt: skip
        w.hold(f"self.{name} = nn.Conv2d({WIDTH}, {heads * size}, 1, bias={s.linear_bias})")
        source, length = ("x", "S") if name == "q" else (w.few, "T")
        w.say(f"{name} = self.{name}({source}).flatten(2).view(B, {heads}, {size}, {length}).permute(0, 3, 1, 2)")


def _windows(w: _Writer) -> None:
    """Say the windows of two by two of an image of four columns, an odd row padded: (batch and windows, 4, width)."""
    s, columns = w.spec, COLUMNS["windows"]
    w.hold(f"self.place = nn.Parameter(torch.zeros({columns}, {WIDTH}))")
    w.say("batch, length, _ = x.shape")
    w.say("tall = length + length % 2")
    w.say("x = F.pad(x[:, :, None] + self.place, (0, 0, 0, 0, 0, length % 2))")
    if s.tokens == "shifted":
        w.say("x = torch.roll(x, -1, 1)")
    parted = f"view(batch, tall // 2, 2, {columns // 2}, 2, {WIDTH}).permute(0, 1, 3, 2, 4, 5)"
    w.say(f"x = x.{parted}.reshape(-1, 4, {WIDTH})")


def shift_mask(w: _Writer) -> str:
    """Say which tokens of a window are neighbours in a rolled image; returns the line that keeps the others apart."""
    s, half = w.spec, COLUMNS["shifted"] // 2
    w.say("place = torch.arange(tall)")
    w.say("region = (place >= tall - 2).long() + (place >= tall - 1).long()")
    w.say(f"region = region.view(tall // 2, 1, 2, 1).expand(tall // 2, {half}, 2, 2).reshape(-1, 4)")
    w.say("apart = region[:, None] != region[:, :, None]")
    w.say("apart = torch.zeros_like(apart, dtype=q.dtype).masked_fill(apart, -100.0)")
    lead = f"batch, tall // 2 * {half}, {s.heads}"
    return f"a = (a.view({lead}, 4, 4) + apart[:, None][None]).view(-1, {s.heads}, 4, 4)"


def leave(w: _Writer) -> None:
    """Say the output projection and the sequence that the image becomes again: the mean of its columns."""
    s = w.spec
    wide, width = s.heads * s.value_size, WIDTH if s.project else s.heads * s.value_size
    if s.tokens == "channels":
        w.say(f"out = out.transpose(1, 2).reshape(B, {wide}, tall, broad)")
        if s.project:
            w.hold(f"self.o = nn.Conv2d({wide}, {WIDTH}, 1)")
            w.say("out = self.o(out)")
        w.say("out = out.mean(-1).transpose(1, 2)")
        return
    if s.project:
        w.hold(f"self.o = nn.Linear({wide}, {WIDTH})")
        w.say("out = self.o(out)")
    half = COLUMNS[s.tokens] // 2
    w.say(f"out = out.view(batch, tall // 2, {half}, 2, 2, {width}).permute(0, 1, 3, 2, 4, 5)")
    w.say(f"out = out.reshape(batch, tall, {2 * half}, {width})")
    if s.tokens == "shifted":
        w.say("out = torch.roll(out, 1, 1)")
    w.say("out = out[:, :length].mean(2)")


def remember(w: _Writer) -> None:
    """Say the keys and values that stand beside those of the tokens, on (.., .., N, H)."""
    s = w.spec
    axis = 0 if s.time_first else 1
    if s.memory == "learned":
        for name, size in (("k", s.size), ("v", s.value_size)):
            shape = [1, 1, s.kv_heads, size]
            shape[axis] = MEMORY
            w.hold(f"self.m{name} = nn.Parameter(torch.zeros{tuple(shape)})")
            wide = f"{MEMORY}, B" if s.time_first else f"B, {MEMORY}"
            w.say(f"{name} = torch.cat((self.m{name}.expand({wide}, {s.kv_heads}, {size}), {name}), dim={axis})")
        w.say(f"T = T + {MEMORY}")
    if s.memory == "zeros":
        pads = (0,) * (4 if not s.time_first else 6) + (0, 1)
        w.say(f"k, v = F.pad(k, {pads}), F.pad(v, {pads})")
        w.say("T = T + 1")


def of_keys(spec: AttentionSpec, other: str, own: str, kept: str) -> str:
    """An input that has one number for each key, its last axis, as the keys stand; ``kept`` for those of a memory."""
    if spec.memory == "sequence":
        return f"torch.cat(({other}, {own}), dim=-1)"
    text = other if spec.cross else own
    if spec.reduce:
        text = f"{text}[..., ::2]"
    if spec.memory == "learned":
        return f"F.pad({text}, ({MEMORY}, 0), value={kept})"
    return f"F.pad({text}, (0, 1), value={kept})" if spec.memory else text
