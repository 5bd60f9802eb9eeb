"""Screen a .pt2 archive before torch reads it: its loader unpickles objects and evaluates strings of the file.

``torch.export.load`` calls ``pickle.loads`` on "opaque" constants, falls back to an unsafe ``torch.load`` for weights
and sample inputs, hands shape expressions to ``sympy.sympify`` (which evaluates them as Python) and looks operator
names up anywhere in ``torch``. Each of these runs code of the file's choice. What this module lets through is what
``torch.export.save`` writes for programs made of torch operators.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from .archive import Archive

__all__ = ["suspicious"]

_MAX_JSON = 1 << 30
_MAX_EXPRESSION = 20_000
_OPERATOR = re.compile(r"(torch\.ops\.|_operator\.|math\.|torch\.sym_|torch\._higher_order_ops\.|torch\._sym_)[\w.]+$")
_SYMBOL = re.compile(r"[a-zA-Z]{1,4}\d+$|oo$|int_oo$|nan$|True$|False$|L$")
_FUNCTION = re.compile(
    r"(FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|[LR]Shift|PowByNatural"
    r"|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt"
    r"|RoundDecimal|ToFloat|Identity|Max|Min|Abs|Eq|Ne|Equality|Unequality|Lt|Le|Gt|Ge|And|Or|Not|Piecewise|floor"
    r"|ceiling|sqrt|exp|log|Pow|Mul|Add|Integer|Symbol|OpaqueUnaryFn_\w+|BitwiseFn_\w+|max|min|abs)$"
)
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.expr_context, ast.Tuple, ast.List, ast.IfExp, ast.keyword,
)  # fmt: skip
_GUARD_ATTRIBUTES = frozenset(
    {"size", "shape", "ndim", "stride", "dtype", "device", "storage_offset", "layout", "requires_grad"}
)


def suspicious(archive: Archive) -> tuple[str, ...]:
    """List what in a .pt2 archive could run code when it is loaded; empty for an ordinary program.

    Raises:
        InputError: An entry is damaged or absurdly large.
    """
    found: list[str] = []
    for name in archive.sizes:
        if not name.endswith(".json") or not name.startswith(("models/", "data/constants/", "data/weights/")):
            continue
        try:
            content = json.loads(archive.read(name, limit=_MAX_JSON))
        except (ValueError, RecursionError):
            found.append(f"{name} (not readable as JSON)")
            continue
        found += [
            f"{name}: {what}" for what in (_in_model(content) if name.startswith("models/") else _in_data(content))
        ]
    return tuple(dict.fromkeys(found))


def _in_data(content: Any) -> Iterator[str]:
    """Constants that are pickled Python objects. (Pickled tensors are read with weights_only forced.)"""
    for key, meta in _objects(content):
        path = meta.get("path_name")
        if isinstance(path, str) and path.startswith(("opaque_obj", "custom_obj")):
            yield f"a pickled object ({key or path})"
        elif isinstance(path, str) and (".." in path or path.startswith("/")):
            yield f"a path out of the archive ({path})"


def _in_model(content: Any) -> Iterator[str]:
    for _, item in _objects(content):
        target, expression = item.get("target"), item.get("expr_str")
        if isinstance(target, str) and "inputs" in item and not _OPERATOR.match(target):
            yield f"the operator {target[:100]}"
        if isinstance(expression, str) and not _plain(expression, guard=False):
            yield f"the expression {expression[:100]}"
        for guard in item.get("guards_code") or ():
            if not isinstance(guard, str) or not _plain(guard, guard=True):
                yield f"the guard {str(guard)[:100]}"


def _objects(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object in a document, with the key it stands under. Iterative: documents may nest deeply."""
    pending: list[tuple[str, Any]] = [("", content)]
    while pending:
        key, item = pending.pop()
        if isinstance(item, dict):
            yield key, item
            pending.extend(item.items())
        elif isinstance(item, list):
            pending.extend((key, value) for value in item)


def _plain(text: str, *, guard: bool) -> bool:
    """Say whether a string is arithmetic over symbols and known functions, nothing else."""
    if len(text) > _MAX_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    # sympy evaluates a string wherever it expects an expression; only the name of a Symbol is taken as it stands.
    names = {id(node.args[0]) for node in ast.walk(tree) if _is_symbol(node)}
    return all(id(node) in names or _plain_node(node, guard) for node in ast.walk(tree))


def _is_symbol(node: ast.AST) -> TypeGuard[ast.Call]:
    """``Symbol('s31', positive=True)``, as torch writes its symbols."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) != 1:
        return False
    name = node.args[0]
    known = isinstance(name, ast.Constant) and isinstance(name.value, str) and _SYMBOL.match(name.value)
    return node.func.id == "Symbol" and bool(known)


def _plain_node(node: ast.AST, guard: bool) -> bool:
    if isinstance(node, _ARITHMETIC):
        return True
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | bool) or (guard and isinstance(node.value, str | None))
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.match(node.id) or _FUNCTION.match(node.id) or (guard and node.id == "torch"))
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name | ast.Attribute)
    if isinstance(node, ast.Subscript):
        return guard
    if isinstance(node, ast.Attribute):
        return guard and (node.attr in _GUARD_ATTRIBUTES or _is_torch_name(node))
    return False


def _is_torch_name(node: ast.Attribute) -> bool:
    """``torch.float32`` and ``torch.sym_max`` and the like: one step below torch, no dunder."""
    known = re.match(r"(float|bfloat|int|uint|bool|complex|long|sym_)\w*$", node.attr)
    return isinstance(node.value, ast.Name) and node.value.id == "torch" and known is not None
