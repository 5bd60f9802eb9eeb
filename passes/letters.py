"""Equations of Einsum, with every axis named by a letter."""

from __future__ import annotations

import string

import onnx_ir as ir

from .graph import attribute, dims

__all__ = ["letters_of"]


def letters_of(node: ir.Node) -> list[str] | None:
    """The letters of each operand of an Einsum, then those of its result.

    An ellipsis becomes letters of its own, the last ones shared where the operands have several of them; a result that
    is left out holds the ellipsis and, by the alphabet, what occurs once.

    Returns:
        None for an equation that does not fit its operands, or with an ellipsis over a rank that is not known.
    """
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    if len(terms) != len(node.inputs):
        return None
    if not arrow:
        plain = operands.replace(".", "").replace(",", "")
        result = "..." * ("..." in operands) + "".join(sorted(c for c in set(plain) if plain.count(c) == 1))
    if "." not in equation:
        return [*terms, result]
    free = [c for c in string.ascii_letters if c not in equation]
    wide = 0
    for place, (term, value) in enumerate(zip(terms, node.inputs, strict=True)):
        rank = dims(value)
        count = 0 if rank is None else len(rank) - len(term.replace("...", ""))
        if "..." in term and (rank is None or not 0 <= count <= len(free)):
            return None
        terms[place] = term.replace("...", "".join(free[:count][::-1]))
        wide = max(wide, count) if "..." in term else wide
    return [*terms, result.replace("...", "".join(free[:wide][::-1]))]
