"""Conditions that hold for the rows without keys: those whose scores are all minus infinity."""

from __future__ import annotations

import math

import onnx_ir as ir

from ..graph import attribute, producer
from ..look import exactly_last_axis
from .scores import filling

__all__ = ["asks_for_empty_rows"]


def asks_for_empty_rows(condition: ir.Value | None, scores: ir.Value | None) -> bool:
    """Whether a condition, one for each row, holds where every score of the row is minus infinity and nowhere else.

    ``all(scores == -inf)``, its negations, and ``max(scores) == -inf``; a row with NaN is no such row.
    """
    negated = producer(condition, "Not")
    if negated is not None:
        return _some(negated.inputs[0], scores)
    least = _uncast(condition, "ReduceMin")
    if least is not None:
        return exactly_last_axis(least) and _is_lowest(_through_cast(least.inputs[0]), scores)
    test = producer(condition, "Equal", "IsInf")
    most = None if test is None else producer(test.inputs[0], "ReduceMax")
    return (
        most is not None
        and exactly_last_axis(most)
        and most.inputs[0] is scores
        and _is_lowest(condition, test.inputs[0])
    )


def _some(condition: ir.Value | None, scores: ir.Value | None) -> bool:
    """Whether a condition holds where some score of a row is more than minus infinity."""
    most = _uncast(condition, "ReduceMax")
    if most is None or not exactly_last_axis(most):
        return False
    each = _through_cast(most.inputs[0])
    negated = producer(each, "Not")
    if negated is not None:
        return _is_lowest(negated.inputs[0], scores)
    above = producer(each, "Greater")
    return above is not None and above.inputs[0] is scores and filling(above.inputs[1]) == -math.inf


def _is_lowest(condition: ir.Value | None, scores: ir.Value | None) -> bool:
    test = producer(condition, "Equal", "IsInf")
    if test is None or test.inputs[0] is not scores:
        return False
    if test.op_type == "IsInf":
        return attribute(test, "detect_negative", 1) == 1 and attribute(test, "detect_positive", 1) == 0
    return filling(test.inputs[1]) == -math.inf


def _uncast(value: ir.Value | None, op: str) -> ir.Node | None:
    return producer(_through_cast(value), op)


def _through_cast(value: ir.Value | None) -> ir.Value | None:
    cast = producer(value, "Cast")
    return value if cast is None else cast.inputs[0]
