"""A lock: what a model was when somebody approved it, as a small readable file beside it (X.lock.json).

It holds what must not change unnoticed and nothing that changes by itself: no times, no paths, no machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from .errors import InputError
from .files import atomic_write
from .report import from_json, to_json

__all__ = [
    "CONSTANTS",
    "LOCK_VERSION",
    "Lock",
    "LockedLatency",
    "LockedParity",
    "LockedSite",
    "LockedValue",
    "read_lock",
    "write_lock",
]

#: Version of the form. The first number changes when a field is removed or changes its meaning.
LOCK_VERSION: Final = "1.1"
#: Part of :attr:`Lock.weights` that holds what belongs to no module.
CONSTANTS: Final = "constants"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedValue:
    """An input or output: name, element type, shape with names for dynamic axes (None: dynamic without a name)."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedSite:
    """An attention and what computes it.

    Attributes:
        where: Dotted path of its module, or the name of its node where the graph holds no paths.
        status: "fused" or "declined".
        op: Operator that computes it, None when it is plain nodes.
        nodes: How many nodes compute it: 1 when fused, else those from the score product to the value product.
        kernel: Kernel class expected on the target, None when unknown.
        rule: Rule that decided, None when unknown.
        reason: Reason code of a decline.
        detail: A sentence on a decline.
        source: "file.py:123" of the code that called it.
        attributes: Of the node that computes it, when fused: name to value, as text.
    """

    where: str
    status: Literal["fused", "declined"]
    op: str | None = None
    nodes: int = 1
    kernel: str | None = None
    rule: str | None = None
    reason: str | None = None
    detail: str | None = None
    source: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedParity:
    """How near the model came to its reference when it was locked."""

    reference: str
    needed: float | None
    granted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedLatency:
    """The unfused graph's time over the model's, when it was locked: above 1 the model is faster."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What a model is.

    Attributes:
        model: File name of the model.
        target: What it was made for, None when it does not say.
        opsets: Domain ("ai.onnx" for the standard's) to version.
        ir_version: Of the file.
        inputs, outputs: In order.
        sites: Its attentions, in topological order.
        census: Qualified operator name to count.
        weights: Part of the model ("encoder.layer.0") to a digest of its weights; empty to leave weights out.
        wiring: Digest of operators, attributes and what reads what, without names; None in a lock of form 1.0.
        computation: The same with the weights, each where it is read; None there too, and where weights are left out.
        versions: Packages that made the model.
        parity: When the model's report held one.
        latency: The same.
        lock: Version of this form.
    """

    model: str
    target: str | None = None
    opsets: Mapping[str, int] = field(default_factory=dict)
    ir_version: int = 0
    inputs: tuple[LockedValue, ...] = ()
    outputs: tuple[LockedValue, ...] = ()
    sites: tuple[LockedSite, ...] = ()
    census: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    wiring: str | None = None
    computation: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: LockedParity | None = None
    latency: LockedLatency | None = None
    lock: str = LOCK_VERSION

    @property
    def fused(self) -> int:
        """How many attentions are fused."""
        return sum(s.status == "fused" for s in self.sites)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The lock as JSON text, keys in field order."""
        return to_json(self, indent=indent)


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock in one step.

    Raises:
        InputError: if the file cannot be written; an older one is whole.
    """
    atomic_write(path, lock.to_json() + "\n")


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        InputError: if it is missing, no lock, or of a newer form.
    """
    if not path.is_file():
        raise InputError(f"there is no lock '{path}'", hint="make one of a model you trust: deployml lock X.onnx")
    try:
        lock = from_json(path.read_text(encoding="utf-8"), Lock)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        hint = "make it anew: deployml lock X.onnx"
        raise InputError(f"'{path.name}' is no lock, or it is damaged", hint=hint) from error
    if str(lock.lock).split(".")[0] != LOCK_VERSION.split(".")[0]:
        raise InputError(
            f"'{path.name}' has the form {lock.lock}, this deployml reads {LOCK_VERSION}",
            hint="use the deployml that wrote it, or make it anew: deployml lock X.onnx",
        )
    return lock
