"""The capability table: what each attention operator of onnxruntime really accepts and which kernel runs.

The table is data. A lowering asks it before it emits a node; ``deployml doctor --probe`` proves its rows on the
installed onnxruntime. Sources: onnxruntime's operator schemas and kernel registrations, and probes of the
released wheels (see docs/lowering.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import onnx_ir as ir

__all__ = ["TABLE", "Capability", "capability"]

Kernel = Literal["flash", "naive", "own", "compiled", "recurrence", "unknown"]

F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16

GQA: Final = "com.microsoft::GroupQueryAttention"
MHA: Final = "com.microsoft::MultiHeadAttention"
STANDARD: Final = "Attention"
OWN: Final = "deployml::FlashAttention"
LINEAR: Final = "com.microsoft::LinearAttention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One row: an operator on one target.

    Attributes:
        op: Qualified operator name.
        target: Target name.
        since: Oldest onnxruntime version the row holds for.
        until: Newest one, None while it goes on.
        opset: Oldest ai.onnx opset of the model.
        dtypes: Element types with a kernel.
        head_multiple: The head size must be a multiple of this.
        max_head: Largest head size, None for no limit.
        grouped: Whether kv_heads may be fewer than heads.
        unequal_value: Whether the value's head size may differ.
        bidirectional: Oldest version that computes attention that is not causal, None for never.
        cross: Whether query and key lengths may differ.
        padding_mask: Whether a (B, T) key mask is an input of its own.
        bias: Whether an additive (1|B, 1|N, S, T) bias is accepted.
        window: Whether a sliding window is an attribute.
        softcap: Oldest version with softcap before the mask, None for never.
        sink: Whether a sink logit per head is accepted.
        weights: Whether the softmax result is an output.
        kernel: Kernel class when nothing below disturbs it.
        disturbed_by: Facts ("mask", "bias", "softcap", "sink", "unequal_value", "causal") that cost the kernel.
    """

    op: str
    target: str
    since: tuple[int, ...] = (1, 22)
    until: tuple[int, ...] | None = None
    opset: int = 1
    dtypes: tuple[ir.DataType, ...] = (F32,)
    head_multiple: int = 1
    max_head: int | None = None
    grouped: bool = False
    unequal_value: bool = False
    bidirectional: tuple[int, ...] | None = (1, 22)
    cross: bool = True
    padding_mask: bool = False
    bias: bool = True
    window: bool = False
    softcap: tuple[int, ...] | None = None
    sink: bool = False
    weights: bool = False
    kernel: Kernel = "naive"
    disturbed_by: tuple[str, ...] = ()

    def kernel_for(self, facts: frozenset[str]) -> Kernel:
        """The kernel class expected for a site with these facts."""
        return "naive" if facts & set(self.disturbed_by) else self.kernel


#: What the own operator takes on a GPU. Its kernels there were compiled and emulated, not run.
_OWN_ON_GPU = {
    "dtypes": (F32, F16, BF16),
    "max_head": 256,
    "grouped": True,
    "unequal_value": True,
    "window": True,
    "softcap": (1, 22),
    "sink": True,
    "weights": True,
    "kernel": "compiled",
}
_STANDARD_KINDS = {"opset": 23, "grouped": True, "unequal_value": True, "softcap": (1, 28)}

TABLE: Final[tuple[Capability, ...]] = (
    Capability(
        op=GQA,
        target="cpu",
        dtypes=(F32, F16),
        head_multiple=8,
        grouped=True,
        bidirectional=(1, 31),
        cross=False,
        window=True,
        softcap=(1, 28),
        sink=True,
        kernel="flash",
        disturbed_by=("bidirectional", "softcap", "sink", "float16"),
    ),
    Capability(
        op=MHA,
        target="cpu",
        unequal_value=True,
        padding_mask=True,
        kernel="flash",
        disturbed_by=("mask", "bias", "causal"),
    ),
    Capability(op=STANDARD, target="cpu", dtypes=(F32, F16), since=(1, 23), **_STANDARD_KINDS),
    Capability(
        op=OWN,
        target="cpu",
        dtypes=(F32, F16, BF16),
        max_head=1024,
        grouped=True,
        unequal_value=True,
        window=True,
        softcap=(1, 22),
        sink=True,
        weights=True,
        kernel="own",
    ),
    Capability(op=LINEAR, target="cpu", since=(1, 31), kernel="recurrence"),
    Capability(
        op=GQA,
        target="cuda",
        dtypes=(F16, BF16),
        head_multiple=8,
        max_head=256,
        grouped=True,
        bidirectional=(1, 31),
        cross=False,
        window=True,
        softcap=(1, 28),
        sink=True,
        kernel="flash",
        disturbed_by=("bias", "mask"),
    ),
    Capability(
        op=MHA,
        target="cuda",
        dtypes=(F32, F16, BF16),
        unequal_value=True,
        kernel="flash",
        disturbed_by=("mask", "bias", "float32"),
    ),
    Capability(
        op=STANDARD,
        target="cuda",
        dtypes=(F32, F16, BF16),
        since=(1, 25),
        kernel="flash",
        disturbed_by=("mask", "bias", "float32", "unequal_value"),
        **_STANDARD_KINDS,
    ),
    Capability(op=OWN, target="cuda", **_OWN_ON_GPU),
    Capability(op=LINEAR, target="cuda", dtypes=(F32, F16, BF16), since=(1, 31), kernel="recurrence"),
    Capability(
        op=GQA,
        target="rocm",
        dtypes=(F16, BF16),
        head_multiple=8,
        grouped=True,
        bidirectional=None,
        cross=False,
        window=True,
        kernel="compiled",
    ),
    Capability(op=MHA, target="rocm", dtypes=(F32, F16), padding_mask=True, kernel="compiled"),
    # The ROCm provider, which claims own operators by their kernels, went after onnxruntime 1.22.
    Capability(op=OWN, target="rocm", until=(1, 22), **_OWN_ON_GPU),
    Capability(op=STANDARD, target="portable", dtypes=(F32, F16, BF16), since=(1, 23), **_STANDARD_KINDS),
)


def capability(op: str, target: str, version: tuple[int, ...]) -> Capability | None:
    """The row for an operator on a target at an onnxruntime version, or None when there is none."""
    rows = (c for c in TABLE if c.op == op and c.target == target and c.since <= version)
    return next((c for c in rows if c.until is None or version[: len(c.until)] <= c.until), None)
