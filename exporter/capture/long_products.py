"""Sizes that are products of three and more, while torch traces.

torch 2.13 takes such a size apart into one call of ``mul`` with all of them, which takes two numbers
(``_build_proxy_for_sym_expr``), and ends with "mul expected 2 arguments, got 3": a mask function of ``flex_attention``
that reads a (batch, sequence) tensor is enough.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import sympy
from torch.fx.experimental import proxy_tensor

__all__ = ["long_products"]


@contextlib.contextmanager
def long_products() -> Iterator[None]:
    """Let torch multiply sizes two at a time, inside the block."""
    before = getattr(proxy_tensor, "_build_proxy_for_sym_expr", None)
    register = getattr(proxy_tensor, "_sym_register", None)
    if before is None or register is None:  # another torch, which may not need it
        yield
        return

    def built(tracer: Any, expression: Any, out: Any = None) -> Any:
        factors = getattr(expression, "args", ())
        known = tracer.sympy_expr_tracker.get(expression) is not None
        if known or len(factors) < 3 or not isinstance(expression, sympy.Mul):
            return before(tracer, expression, out)
        both = built(tracer, sympy.Mul(*factors[:-1])), built(tracer, factors[-1])
        if None in both:
            return None
        if out is None:
            return both[0] * both[1]
        register(tracer, operator.mul, both, out)
        return out

    proxy_tensor._build_proxy_for_sym_expr = built
    try:
        yield
    finally:
        proxy_tensor._build_proxy_for_sym_expr = before
