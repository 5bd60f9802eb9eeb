"""torch operators that ONNX has no translation for: taken apart where they are Python, else listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from ...runtime.errors import UnsupportedError
from ..source_map import Origin
from .origins import origin_of

__all__ = ["open_custom_ops", "untranslated_error"]

_KNOWN: Final = frozenset({"aten", "prim", "prims", "higher_order", "deployml", "onnx", "onnx_symbolic", "_operator"})

#: Attention that bypasses ``scaled_dot_product_attention``: what to do about it instead of a generic hint.
_ATTENTION_HINT: Final = (
    "Load the model with attn_implementation='sdpa', or call torch.nn.functional.scaled_dot_product_attention."
)
_ATTENTION_WORDS: Final = ("flash_attn", "flex_attention", "xformers", "attention")


def open_custom_ops(program: ExportedProgram, translated: Iterable[Any]) -> ExportedProgram:
    """Replace custom operators by what their Python implementation does, where torch can trace it.

    Args:
        program: The captured program.
        translated: Operators that have a translation and stay.

    Returns:
        The same program when it holds no such operator, else a new one.

    Raises:
        UnsupportedError: custom operators that cannot be traced; all of them are listed.
    """
    keep = set(translated)
    foreign = {n.target: n for n in _calls(program) if _is_custom(n.target) and n.target not in keep}
    if not foreign:
        return program
    bodies = {target: _python_body(target) for target in foreign}
    closed = {target: "it is not written in Python" for target, body in bodies.items() if body is None}
    table = {target: body for target, body in bodies.items() if body is not None}
    if table and not closed:
        try:
            return program.run_decompositions(table)
        except Exception as error:  # torch raises whatever the implementation raises on symbolic tensors
            reason = f"torch cannot trace its Python code: {_first_line(error)}"
            closed = dict.fromkeys(table, reason)
    raise _error({str(target): (foreign[target], reason) for target, reason in closed.items()})


def untranslated_error(program: ExportedProgram, table: dict[Any, Any], opset: int) -> UnsupportedError | None:
    """The error that lists every operator of a program without a translation, or None when all have one."""
    decomposed, missing = _decomposed_and_missing(program, table, opset)
    if not missing:
        return None
    reason = "ONNX has no translation of it"
    return _error({str(node.target): (node, reason) for node in _calls(decomposed) if node.target in missing})


def _decomposed_and_missing(
    program: ExportedProgram, table: dict[Any, Any], opset: int
) -> tuple[ExportedProgram, set[Any]]:
    # torch offers no public way to ask which operators its translation knows; this runs only after a failure.
    try:
        from torch.onnx._internal.exporter import _core, _dispatching, _registration
    except ImportError:
        return program, set()
    registry = _registration.ONNXRegistry.from_torchlib(opset_version=max(opset, 18))
    for target, translation in table.items():
        registry.register_op(target, translation, is_complex=False)
    try:
        decomposed = _core._prepare_exported_program_for_export(program, registry=registry)
    except Exception:  # the failure being explained lies in the decomposition itself
        return program, set()
    missing = {
        node.target
        for node in _calls(decomposed)
        if isinstance(node.target, torch._ops.OpOverload)
        and not node.target.name().startswith("onnx::")
        and _dispatching.dispatch(node, registry)[0] is None
    }
    return decomposed, missing


def _calls(program: ExportedProgram) -> Iterator[torch.fx.Node]:
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from (node for node in module.graph.nodes if node.op == "call_function")


def _is_custom(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace not in _KNOWN


def _python_body(target: Any) -> Callable[..., Any] | None:
    # torch.library.custom_op keeps the decorated function; there is no public accessor.
    definitions = getattr(getattr(torch._library, "custom_ops", None), "OPDEFS", {})
    definition = definitions.get(target.name().split(".")[0])
    return getattr(definition, "_init_fn", None)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]


def _error(found: dict[str, tuple[torch.fx.Node, str]]) -> UnsupportedError:
    cache: dict[str, str] = {}
    lines = []
    for name, (node, reason) in sorted(found.items()):
        lines.append(f"{name} ({_place(origin_of(node, cache))}): {reason}")
    what = "operator" if len(lines) == 1 else "operators"
    is_attention = any(word in name for name in found for word in _ATTENTION_WORDS)
    hint = "Replace them by torch operators, or give them a Python implementation that torch.export can trace."
    return UnsupportedError(
        f"{len(lines)} {what} of the model cannot be written as ONNX: " + "; ".join(lines),
        hint=_ATTENTION_HINT if is_attention else hint,
    )


def _place(origin: Origin) -> str:
    module = f"module '{origin.module}'" if origin.module else "the model"
    return f"{module}, {origin.source}" if origin.source else module
