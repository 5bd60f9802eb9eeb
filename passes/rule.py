"""What a rule is: a stateless class in one file that recognises one thing and rewrites it, or says why not."""

from __future__ import annotations

import abc
import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import onnx_ir as ir

from ..runtime.target import Target
from .graph import Builder, op_name

__all__ = ["ASSUMPTIONS", "Context", "Declined", "Draw", "Example", "Replacement", "Rule", "Safety", "Status"]

#: Named assumptions a rewrite may rest on, with the sentence the report shows.
ASSUMPTIONS: Final[dict[str, str]] = {
    "fully-masked-rows": (
        "Rows in which the mask leaves no key at all may give another value than the source does there; "
        "every row with at least one key is equal."
    ),
    "finite-fill": (
        "Scores stay above the finite number (-9000 or less) that a mask puts in the place of forbidden ones, so that "
        "forbidden keys have no weight beside allowed ones."
    ),
    "small-divisor": (
        "The small number (1e-8 or less) that guards the sum of attention weights before they are divided by it is "
        "lost beside the weights of the keys that the mask leaves."
    ),
}


class Safety(enum.Enum):
    """What a rewrite may change."""

    EXACT = "exact"
    """Bit-equal."""
    ROUNDING = "rounding"
    """The same mathematics in another order."""
    PRECISION = "precision"
    """A dtype or an accumulator changes."""
    ASSUMING = "assuming"
    """True only under a named assumption; off unless asked for."""


class Status(enum.Enum):
    """Maturity of a rule."""

    STABLE = "stable"
    PREVIEW = "preview"
    DEPRECATED = "deprecated"


class Declined(Exception):
    """The one way for a rule to say no.

    Args:
        reason: Stable kebab-case code ("head-size", "mask-not-proven").
        detail: One sentence: what was expected and what was found.
        at: The node or value at fault.
    """

    def __init__(self, reason: str, detail: str, *, at: ir.Node | ir.Value | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.at = at


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule may know besides its match: the model and the target. Read only."""

    model: ir.Model
    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How a proof draws a value at random, where its usual numbers would show little.

    Attributes:
        below: Integers from 0 up to this one, whatever makes the value in the graph; None for floats.
        distinct: No two of a row are equal: what makes them picks them so.
        deviation: Standard deviation of floats: that of a trained weight keeps an activation where it bends.
    """

    below: int | None = None
    distinct: bool = False
    deviation: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """What ``build`` returns: old values and the new ones that stand for them.

    Attributes:
        old: Values whose readers move over, outermost first.
        new: The values that replace them, in the same order.
        assumptions: Names from :data:`ASSUMPTIONS` under which the two are equal.
        rows_of: A canonical attention node whose empty rows the assumption speaks of.
        doubted: Whether there may be rows without keys that no random input shows: the assumption counts as needed
            unless the proof saw such rows, and both forms agreed in them.
        always: Names from :data:`ASSUMPTIONS` that hold whatever the proof sees: no random input shows the difference.
        forbidding: Floats that may hold minus infinity or the lowest number: the proof draws such ones too.
        twin: Whether the new form in float64 may stand for the old one there, whose operators have no such kernel.
            Where the two differ by more than rounding explains, the old form itself is the reference.
        draws: Values that the proof draws in a way of their own.
        few: Whether the proof keeps to few rows: the old form takes much memory for each.
    """

    old: Sequence[ir.Value]
    new: Sequence[ir.Value]
    assumptions: tuple[str, ...] = ()
    rows_of: ir.Node | None = None
    doubted: bool = False
    always: tuple[str, ...] = ()
    forbidding: tuple[ir.Value, ...] = ()
    twin: bool = False
    draws: tuple[tuple[ir.Value, Draw], ...] = ()
    few: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A graph a rule is tried on, as ONNX text.

    Attributes:
        text: The model in ONNX's textual form.
        fires: How often the rule must apply.
        because: The reason code it must decline with, when it must not apply.
        emits: Operator name to count in the result.
        onnxruntime: Version the target asks for.
    """

    text: str
    fires: int = 0
    because: str | None = None
    emits: dict[str, int] | None = None
    onnxruntime: tuple[int, ...] = (1, 31)


class Rule(abc.ABC):
    """One rewrite.

    A subclass sets the class variables, writes ``examine`` and ``build``, and carries its page in its
    docstring (What it finds, Why, Before -> After, When it declines, Numerics, References).
    """

    code: ClassVar[str]
    name: ClassVar[str]
    since: ClassVar[str] = "0.1"
    status: ClassVar[Status] = Status.STABLE
    safety: ClassVar[Safety] = Safety.ROUNDING
    anchors: ClassVar[frozenset[str]]
    emits: ClassVar[tuple[str, ...]]
    examples: ClassVar[tuple[Example, ...]] = ()

    def matches(self, graph: ir.Graph) -> Iterable[ir.Node]:
        """The nodes to examine: those whose qualified op name is an anchor, in order."""
        return [n for n in graph if op_name(n) in self.anchors]

    @abc.abstractmethod
    def examine(self, node: ir.Node, context: Context) -> Any:
        """Decide on one node.

        Returns:
            The rule's own frozen dataclass of facts.

        Raises:
            Declined: when the rule does not apply. With the reason "no-match" the refusal is not journalled.
        """

    @abc.abstractmethod
    def build(self, facts: Any, g: Builder) -> Replacement:
        """Build the replacement from the facts alone."""
