"""What a zoo entry is: how to build a tiny model, what to feed it, and what must become of its attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "CASES",
    "TRACED",
    "Audio",
    "Case",
    "Entry",
    "Features",
    "Hidden",
    "Inputs",
    "Pixels",
    "Sample",
    "Seq2Seq",
    "Tokens",
    "padding_mask",
    "redraw",
]


@dataclass(frozen=True)
class Case:
    """A shape and a kind of padding ("none", "right", "left" or "holes")."""

    batch: int
    length: int
    padding: str


#: What the trace sees: batch 3 with a padded row.
TRACED = Case(3, 7, "right")
#: What it did not see: other sizes, one row, left, right and hole padding.
CASES = (Case(1, 5, "none"), Case(2, 11, "left"), Case(4, 9, "right"), Case(3, 13, "holes"))


@dataclass(frozen=True)
class Sample:
    """Inputs of one call, and which (batch, position) pairs of its outputs are real, for each length."""

    kwargs: dict[str, Any]
    keeps: tuple[Tensor, ...] = ()


class Inputs(Protocol):
    """A family of inputs: dynamic axes by name of the input, and samples of any size."""

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]: ...

    @property
    def paddings(self) -> Sequence[str]: ...

    def sample(self, case: Case, generator: torch.Generator) -> Sample: ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: Name of the architecture.
        build: Makes the module for an attn_implementation ("eager", "sdpa"; "own" where there is no choice).
        inputs: What to feed it.
        impls: The implementations to try.
        sites: Attentions of the model.
        grouped: Whether it is a causal decoder with fewer key/value heads than query heads.
        declined: Reason code to the sentence that defends it to the user; no other decline is allowed.
        refused: What the error of the export says, for a model that torch.export cannot trace by design.
        everyday: Whether it belongs to the run of every day.
        grows: Why the fused graph has more nodes than the unfused one; "" where it must have fewer.
    """

    name: str
    build: Callable[[str], nn.Module]
    inputs: Inputs
    impls: tuple[str, ...] = ("eager", "sdpa")
    sites: int = 2
    grouped: bool = False
    declined: Mapping[str, str] = field(default_factory=dict)
    refused: str | None = None
    everyday: bool = False
    grows: str = ""


def padding_mask(case: Case, generator: torch.Generator) -> Tensor:
    """(B, S) int64, 1 for real tokens. The first row stays whole, every row keeps at least two tokens."""
    mask = torch.ones(case.batch, case.length, dtype=torch.int64)
    for row in range(1, case.batch):
        pad = int(torch.randint(1, case.length - 2, (), generator=generator))
        if case.padding == "right":
            mask[row, case.length - pad :] = 0
        elif case.padding == "left":
            mask[row, :pad] = 0
        elif case.padding == "holes":
            mask[row, torch.randperm(case.length, generator=generator)[:pad]] = 0
    if case.batch == 1 and case.padding != "none":
        mask[0, case.length // 2] = 0
    return mask


def redraw(module: nn.Module, *, seed: int = 7) -> nn.Module:
    """Draw every parameter anew with standard deviation 0.15 (norm weights around 1), so that errors show."""
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for name, parameter in module.named_parameters():
        if id(parameter) in done or not parameter.is_floating_point():
            continue
        done.add(id(parameter))
        noise = torch.randn(parameter.shape, generator=generator) * 0.15
        scale_of_norm = parameter.dim() == 1 and name.endswith("weight")
        parameter.data = (noise + 1.0 if scale_of_norm else noise).to(parameter.dtype)
    return module.eval()


def _ids(case: Case, vocabulary: int, generator: torch.Generator) -> Tensor:
    return torch.randint(3, vocabulary, (case.batch, case.length), generator=generator)


_BOTH = {0: "batch", 1: "sequence"}


@dataclass(frozen=True)
class Tokens:
    """input_ids and attention_mask of (batch, sequence), and other inputs of that shape or of (batch, 4)."""

    vocabulary: int = 100
    extra: tuple[str, ...] = ()
    ids: str = "input_ids"
    mask: str | None = "attention_mask"
    constants: Mapping[str, Any] = field(default_factory=dict)

    paddings: Sequence[str] = ("none", "right", "left", "holes")

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        names = [self.ids, *([self.mask] if self.mask else []), *self.extra]
        return dict.fromkeys(names, _BOTH)

    def sample(self, case: Case, generator: torch.Generator) -> Sample:
        mask = padding_mask(case, generator)
        ids = _ids(case, self.vocabulary, generator)
        kwargs: dict[str, Any] = {self.ids: ids * mask if self.mask else ids}  # 0 where there is no token
        if self.mask:
            kwargs[self.mask] = mask
        for name in self.extra:
            kwargs[name] = _extra(name, case, generator)
        keep = mask.bool() if self.mask else torch.ones_like(mask).bool()
        return Sample({**kwargs, **self.constants}, (keep,))


def _extra(name: str, case: Case, generator: torch.Generator) -> Tensor:
    if name == "token_type_ids":
        return torch.randint(0, 2, (case.batch, case.length), generator=generator)
    if name == "bbox":
        return torch.randint(0, 40, (case.batch, case.length, 4), generator=generator).sort(-1).values
    raise AssertionError(f"no samples for an input named {name}")


@dataclass(frozen=True)
class Seq2Seq:
    """Source and target tokens, each with its mask; the target is two tokens shorter."""

    vocabulary: int = 100
    paddings: Sequence[str] = ("none", "right", "left", "holes")

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        target = {0: "batch", 1: "target"}
        return {
            "input_ids": _BOTH,
            "attention_mask": _BOTH,
            "decoder_input_ids": target,
            "decoder_attention_mask": target,
        }

    def sample(self, case: Case, generator: torch.Generator) -> Sample:
        short = Case(case.batch, case.length - 1, case.padding)
        mask, target = padding_mask(case, generator), padding_mask(short, generator)
        kwargs = {
            "input_ids": _ids(case, self.vocabulary, generator),
            "attention_mask": mask,
            "decoder_input_ids": _ids(short, self.vocabulary, generator),
            "decoder_attention_mask": target,
        }
        return Sample(kwargs, (mask.bool(), target.bool()))


@dataclass(frozen=True)
class Pixels:
    """Images of one fixed size, with a free batch, and other inputs by name."""

    size: int = 32
    name: str = "pixel_values"
    paddings: Sequence[str] = ("none",)

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {self.name: {0: "batch"}}

    def sample(self, case: Case, generator: torch.Generator) -> Sample:
        return Sample({self.name: torch.randn(case.batch, 3, self.size, self.size, generator=generator)})


@dataclass(frozen=True)
class Audio:
    """Waveforms of a free number of samples; where there is a mask, padding stands on the right."""

    mask: bool = True
    hop: int = 10
    paddings: Sequence[str] = ("none", "right")

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        names = ["input_values", *(["attention_mask"] if self.mask else [])]
        return {name: {0: "batch", 1: "samples"} for name in names}

    def sample(self, case: Case, generator: torch.Generator) -> Sample:
        length = case.length * self.hop + 20
        kwargs: dict[str, Any] = {"input_values": torch.randn(case.batch, length, generator=generator)}
        if self.mask:
            mask = torch.ones(case.batch, length, dtype=torch.int64)
            if case.padding == "right":
                mask[-1, length * 2 // 3 :] = 0
            kwargs["attention_mask"] = mask
        return Sample(kwargs)


@dataclass(frozen=True)
class Features:
    """Log-mel features of a fixed length; with a decoder, target tokens of a free one."""

    mels: int = 16
    frames: int = 40
    decoder: bool = True
    paddings: Sequence[str] = ("none",)

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        target = {"decoder_input_ids": {0: "batch", 1: "target"}} if self.decoder else {}
        return {"input_features": {0: "batch"}, **target}

    def sample(self, case: Case, generator: torch.Generator) -> Sample:
        kwargs = {"input_features": torch.randn(case.batch, self.mels, self.frames, generator=generator)}
        if self.decoder:
            kwargs["decoder_input_ids"] = _ids(case, 100, generator)
        return Sample(kwargs)


@dataclass(frozen=True)
class Hidden:
    """Tensors of (batch, sequence, 64) for modules written by hand.

    Attributes:
        names: The tensors; each after the first has a length of its own.
        padding: Name of a (batch, keys) mask of the last tensor; None for none.
        drops: Whether True in that mask means padding, as in ``nn.MultiheadAttention``; else 1 means real.
        time_first: Whether the tensors are (sequence, batch, 64).
        constants: Other arguments, baked in.
    """

    names: tuple[str, ...] = ("x",)
    padding: str | None = None
    drops: bool = False
    time_first: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def paddings(self) -> Sequence[str]:
        return ("none", "right", "left", "holes") if self.padding else ("none",)

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        order = (1, 0) if self.time_first else (0, 1)
        lengths = ["sequence", "keys", "more_keys"]
        axes = {n: {order[0]: "batch", order[1]: lengths[i]} for i, n in enumerate(self.names)}
        if self.padding:
            axes[self.padding] = {0: "batch", 1: lengths[len(self.names) - 1]}
        return axes

    def sample(self, case: Case, generator: torch.Generator) -> Sample:
        kwargs: dict[str, Any] = {}
        length = case.length
        for index, name in enumerate(self.names):
            length = case.length + index * 2
            sizes = (length, case.batch) if self.time_first else (case.batch, length)
            kwargs[name] = torch.randn(*sizes, 64, generator=generator)
        if self.padding:
            mask = padding_mask(Case(case.batch, length, case.padding), generator)
            kwargs[self.padding] = mask == 0 if self.drops else mask
            return Sample({**kwargs, **self.constants}, (mask.bool(),))
        return Sample({**kwargs, **self.constants})
