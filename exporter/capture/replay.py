"""Running a captured program node by node, without its assertions, and comparing it with its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from ..source_map import Frame, frames
from .inputs import Examples

__all__ = ["ASSERTIONS", "Replay", "difference", "line_of"]

#: Largest difference allowed, relative to the largest entry of an output. A traced size or branch that was baked
#: in moves results by far more; float32 summation order by far less.
_TOLERANCE: Final = 1e-4

#: Numbers beyond this, and infinities, mark masked places: they say nothing of how large the others may differ.
_SENTINEL: Final = 1e30

ASSERTIONS: Final = frozenset(
    {
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten._assert_async.default,
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten.sym_constrain_range.default,
        torch.ops.aten.sym_constrain_range_for_size.default,
    }
)


class Replay(torch.fx.Interpreter):
    """Runs a program node by node, without its assertions on sizes and its writes to state, and knows where it is."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program.module(check_guards=False))
        self.current: torch.fx.Node | None = None

    def outputs(self, examples: Examples) -> list[torch.Tensor]:
        """The tensors that the program returns for some inputs."""
        with torch.no_grad():
            result = self.run(*[leaf.value for leaf in examples.leaves], enable_io_processing=False)
        return [value for value in result if isinstance(value, torch.Tensor)]

    def run_node(self, n: torch.fx.Node) -> Any:
        self.current = n
        if n.op == "call_function" and (n.target in ASSERTIONS or _writes_state(n)):
            return None
        return super().run_node(n)

    def frame(self) -> Frame | None:
        """The line of the model's code that the latest node comes from."""
        return line_of(self.current)


def _writes_state(node: torch.fx.Node) -> bool:
    """Whether a node only puts a new value into a buffer for the next call, which no ONNX graph does either.

    A buffer that the model makes anew for longer inputs has the size of the trace, and would not take the value.
    """
    target = node.args[0] if node.args else None
    into_buffer = isinstance(target, torch.fx.Node) and target.op == "get_attr"
    return node.target is torch.ops.aten.copy_.default and into_buffer and not node.users


def line_of(node: torch.fx.Node | None) -> Frame | None:
    """The line of the model's own code that a node comes from."""
    found = frames((node.meta.get("stack_trace") if node is not None else None) or "")
    own = [frame for frame in found if not frame.is_library]
    return (own or found or [None])[-1]


def difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], names: Sequence[str]) -> str:
    """A sentence on the first output that differs; empty when none does."""
    for name, want, got in zip(names, expected, found, strict=True):
        if want.shape != got.shape:
            return f"output '{name}' has the shape {list(got.shape)} instead of {list(want.shape)}"
        if want.numel() == 0:
            continue
        if not want.is_floating_point():
            if not torch.equal(want, got):
                return f"output '{name}' differs"
            continue
        sizes = want.double().abs()
        largest = torch.where(sizes < _SENTINEL, sizes, 0.0).max().item()
        same = torch.isclose(got.double(), want.double(), rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True)
        if not bool(same.all()):
            off = torch.nan_to_num(got.double() - want.double()).abs().max().item()
            return f"output '{name}' is off by {off:.2g} (its largest entry is {largest:.2g})"
    return ""
