"""Sizes that Python code turns into whole numbers, kept sizes while torch traces.

``int(windows / (height * width / 7 / 7))``, the batch that windows were folded from, is how many window attentions
are written. ``int`` of a size can only give a number, so the axis is fixed to the one in the examples; torch offers
nothing in between. Here the code of the model finds an ``int`` of another kind under that name, which gives sizes
back, and ``floor``, ``ceil`` and ``round`` give a size without division where that leaves no rest. ``len`` of a tensor
is its first size by the same means.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

__all__ = ["namespaces", "numbers_of_sizes", "whole_numbers"]

#: Packages whose code works on numbers alone.
_FOREIGN: Final = frozenset({"torch", "numpy", "deployml", *sys.stdlib_module_names}) - {"__main__"}
#: torch's names of functions of sizes, and the rational function that each is.
_RATIONAL: Final[dict[str, Callable[..., Any]]] = {
    "IntTrueDiv": lambda a, b: a / b,
    "FloatTrueDiv": lambda a, b: a / b,
    "ToFloat": lambda a: a,
}
_QUOTIENTS: Final = frozenset({"IntTrueDiv", "FloatTrueDiv"})
_CONVERSIONS: Final = ((torch.SymInt, "__int__"), (torch.SymFloat, "__int__"))
_ROUNDINGS: Final = ("__floor__", "__ceil__", "__trunc__", "__round__")


class _AnyInt(type):
    """Makes a class stand for ``int``, with sizes among what it converts."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            if isinstance(args[0], torch.SymInt):
                return args[0]
            if isinstance(args[0], torch.SymFloat):
                whole = _whole(args[0])
                whole = _floored(args[0]) if whole is None else whole
                return torch.sym_int(args[0]) if whole is None else whole
        return builtins.int(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, builtins.int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, builtins.int)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is builtins.int

    def __hash__(cls) -> int:
        return hash(builtins.int)


class _Int(int, metaclass=_AnyInt):
    """What the model's code finds under the name ``int``."""


def _len(value: Any, /) -> Any:
    """What the model's code finds under the name ``len``: Python wants a number of ``Tensor.__len__``."""
    return value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else builtins.len(value)


_NAMES: Final[dict[str, Any]] = {"int": _Int, "len": _len}


@contextlib.contextmanager
def numbers_of_sizes() -> Iterator[list[Any]]:
    """Collect the sizes that the model's code turns into numbers inside the block: the graph holds for these only.

    torch fixes the axis, or, where it cannot solve for it, leaves the number in the graph and the axis dynamic.
    """
    found: list[Any] = []
    before = [(kind, name, getattr(kind, name)) for kind, name in _CONVERSIONS]
    try:
        for kind, name, method in before:
            setattr(kind, name, _noting(method, found))
        yield found
    finally:
        for kind, name, method in before:
            setattr(kind, name, method)


def _noting(before: Callable[..., Any], found: list[Any]) -> Callable[..., Any]:
    def noting(self: Any) -> Any:
        if not _is_foreign(sys._getframe(1).f_globals.get("__name__", "")):
            found.append(self)
        return before(self)

    return noting


def _is_foreign(name: str) -> bool:
    return name.partition(".")[0] in _FOREIGN


@contextlib.contextmanager
def whole_numbers(module: torch.nn.Module) -> Iterator[None]:
    """Let ``int`` and rounding of a size, and ``len`` of a tensor, be sizes in a model's code, inside the block."""
    before = {name: getattr(torch.SymFloat, name) for name in _ROUNDINGS}
    # A name that a file has already is the model's own.
    given = [(names, name) for names in namespaces(module) for name in _NAMES if name not in names]
    try:
        for name, method in before.items():
            setattr(torch.SymFloat, name, _rounding(method))
        for names, name in given:
            names[name] = _NAMES[name]
        yield
    finally:
        for names, name in given:
            names.pop(name, None)
        for name, method in before.items():
            setattr(torch.SymFloat, name, method)


def _rounding(before: Callable[..., Any]) -> Callable[..., Any]:
    def rounded(self: torch.SymFloat, *digits: Any) -> Any:
        whole = None if digits else _whole(self)
        return before(self, *digits) if whole is None else whole

    return rounded


def namespaces(module: torch.nn.Module) -> list[dict[str, Any]]:
    """The global names of the files that define a model: of its classes, of functions they know, of files beside."""
    waiting = sorted({base.__module__ for part in module.modules() for base in type(part).__mro__})
    found: dict[str, dict[str, Any]] = {}
    while waiting:
        name = waiting.pop()
        code = sys.modules.get(name)
        if code is None or name in found or _is_foreign(name):
            continue
        found[name] = vars(code)
        for value in list(vars(code).values()):
            if isinstance(value, types.FunctionType):
                waiting.append(value.__module__ or "")
            elif isinstance(value, types.ModuleType) and _beside(value, code):
                waiting.append(value.__name__)
    return list(found.values())


def _beside(one: types.ModuleType, other: types.ModuleType) -> bool:
    """Whether two files are of one package, or of one folder."""
    folders = {os.path.dirname(getattr(file, "__file__", None) or "") for file in (one, other)}
    return len(folders) == 1 or one.__name__.partition(".")[0] == other.__name__.partition(".")[0]


def _whole(number: torch.SymFloat) -> torch.SymInt | None:
    """The size that a quotient of sizes is, where it divides without a rest; None where that is not known."""
    try:
        exact = sympy.cancel(_rational(number.node.expr))
        if not (exact.is_polynomial() and exact.is_integer and exact.free_symbols):
            return None
        environment, hint = number.node.shape_env, number.node.hint
        if hint is None or float(hint) != int(hint):
            return None
        return environment.create_symintnode(exact, hint=int(hint))
    except Exception:  # an expression of another kind, or another torch
        return None


def _floored(number: torch.SymFloat) -> torch.SymInt | None:
    """The size that a quotient of sizes is rounded to, written as torch writes the length of a convolution.

    ``int`` rounds towards zero and ``//`` down, so the quotient is checked to be no less than none.
    """
    try:
        terms = sympy.Add.make_args(number.node.expr)
        [quotient] = [term for term in terms if type(term).__name__ in _QUOTIENTS]
        over, under = (_rational(argument) for argument in quotient.args)
        rest = sympy.Add(*(_rational(term) for term in terms if term is not quotient))
        if not (over.is_integer and under.is_Integer and under > 0 and rest.is_integer and number.node.hint >= 0):
            return None
        size = number.node.shape_env.create_symintnode(FloorDiv(over, under) + rest, hint=int(number.node.hint))
    except Exception:  # an expression of another kind, or another torch
        return None
    torch._check(size >= 0)
    return size


def _rational(expression: Any) -> Any:
    arguments = [_rational(argument) for argument in expression.args]
    function = _RATIONAL.get(type(expression).__name__)
    if function is not None:
        return function(*arguments)
    if isinstance(expression, sympy.Float):
        return sympy.Rational(str(expression))
    return expression.func(*arguments) if arguments else expression
