"""Reading ONNX files of any origin into the project's IR."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir as ir

from ..passes.cleanup.infer import without_invented
from ..runtime.attempt import in_one_line
from ..runtime.errors import InputError, UnsupportedError
from .invariants import checker_breach
from .onnx_screen import screen
from .options import MIN_OPSET

__all__ = ["check_standard", "lift_opset", "open_file", "read_model", "require_file"]

#: What a file looks like that is not ONNX but is often taken for it.
_MAGIC: Final[dict[bytes, str]] = {
    b"PK\x03\x04": "a zip archive, as torch.save and torch.export.save write: deployml export takes it",
    b"\x80": "a pickle: deployml export takes it",
    b"TFL3": "a TensorFlow Lite file",
}


#: How onnx's converter begins what it says: a place of its own source.
_ASSERTION: Final = re.compile(r"(?<=: )\S+:\d+: \w+: Assertion `[^`]*` failed: ")


def read_model(path_or_model: Any) -> tuple[ir.Model, str]:
    """Read a model and its name without the folder.

    Args:
        path_or_model: Path, ``onnx.ModelProto`` or ``onnx_ir.Model``.

    Raises:
        InputError: if the file is missing, no ONNX, truncated, or its weights file is missing or short.
    """
    if isinstance(path_or_model, ir.Model):
        return path_or_model, path_or_model.graph.name or "model"
    if isinstance(path_or_model, onnx.ModelProto):
        return ir.serde.deserialize_model(path_or_model), path_or_model.graph.name or "model"
    if not isinstance(path_or_model, str | Path):
        raise InputError(
            f"cannot optimize a {type(path_or_model).__name__}",
            hint="give the path of an ONNX file, or use deployml.export for a torch module",
        )
    path = Path(path_or_model).expanduser()
    return open_file(path), path.name


def open_file(path: Path) -> ir.Model:
    """Read an ONNX file; weights in a file of their own are mapped, not read.

    Raises:
        InputError: if it is missing, no ONNX, truncated, or its weights file is missing or short.
    """
    require_file(path)
    try:
        with _hushed():
            model = ir.load(path)
    except MemoryError:
        raise
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be read: {error.strerror}", hint="check its permissions, or copy it"
        ) from error
    except Exception as error:  # protobuf and onnx_ir have many of their own; each says that the file is no good
        raise _unreadable(path) from error
    if not model.graph.opset_imports or not len(model.graph.outputs):
        raise _unreadable(path)
    screen(model, path)
    return model


def require_file(path: Path) -> None:
    """See to it that a model is there at all, before anything that belongs to it is looked for.

    Raises:
        InputError: if there is a folder, or nothing.
    """
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not an ONNX file", hint="name the .onnx file inside it")
    if not path.is_file():
        raise InputError(f"there is no file '{path}'", hint="check the path")


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep onnx_ir from telling what the screen says in words of its own."""
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


class _Caught(logging.Handler):
    """Keeps the last exception that a logger was told, whose records then go nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the exception of a record that has one."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception):
            self.error = error


@contextmanager
def _overheard(name: str) -> Iterator[_Caught]:
    """What a logger says while the block runs, kept from everybody else; it is as it was afterwards."""
    logger, caught = logging.getLogger(name), _Caught()
    before = logger.level, logger.propagate, logger.handlers[:], logger.disabled
    logger.setLevel(logging.WARNING)
    logger.propagate, logger.handlers, logger.disabled = False, [caught], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield caught
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers, logger.disabled = before[1:]


def lift_opset(model: ir.Model, wanted: int | None) -> tuple[str, ...]:
    """Convert a model, in place, to ``wanted``, or to the oldest opset the passes are written for.

    Returns:
        A sentence for the user where anything was converted.

    Raises:
        UnsupportedError: if the model uses no ai.onnx operators, or onnxscript cannot convert it.
    """
    have = model.graph.opset_imports.get("", model.graph.opset_imports.pop("ai.onnx", None))
    if have is None:
        raise UnsupportedError(
            "the model imports no ai.onnx operators", hint="give a model that is made of ONNX operators"
        )
    model.graph.opset_imports[""] = have
    goal = wanted if wanted is not None else max(have, MIN_OPSET)
    if goal == have:
        _forget_invented(model)
        return ()
    if goal < have:
        raise UnsupportedError(
            f"the model has opset {have} and cannot be lowered to {goal}", hint=f"leave --opset out, or give {have}"
        )
    signature = [(value, value.shape, value.type) for value in (*model.graph.inputs, *model.graph.outputs)]
    error = _converted(model, goal)
    if error is not None:
        raise _inconvertible(model, have, goal, error) from error
    _forget_invented(model)
    for value, shape, kind in signature:
        value.shape, value.type = shape, kind
    return (f"converted from opset {have} to {goal}",)


def _forget_invented(model: ir.Model) -> None:
    """Names that onnx's shape inference and converter make up ("unk__3") say of two sizes that they differ."""
    for value in (v for node in model.graph.all_nodes() for v in node.outputs):
        value.shape = without_invented(value.shape)


def _converted(model: ir.Model, goal: int) -> Exception | None:
    """Convert a model in place; what went wrong, or None. onnxscript logs what onnx's own converter raises."""
    from onnxscript import version_converter

    with _hushed(), _overheard("onnxscript.version_converter") as heard:
        try:
            version_converter.convert_version(model, goal, fallback=True)
        except Exception as error:  # the converter has no exception of its own
            return error
    return None if model.graph.opset_imports.get("") == goal else heard.error or RuntimeError("no reason was given")


def _inconvertible(model: ir.Model, have: int, goal: int, error: Exception) -> UnsupportedError:
    """The error for a model that has no way to an opset, by the node in its way where that is known."""
    node = next((n for n in model.graph.all_nodes() if n.domain in ("", "ai.onnx") and _unknown(n.op_type, have)), None)
    said = f"the model cannot be converted from opset {have} to {goal}: "
    if node is None:
        reason = _ASSERTION.sub("", in_one_line(error))
        return UnsupportedError(said + reason, hint=f"export it anew with opset {goal}")
    return UnsupportedError(
        f"{said}node '{node.name or node.outputs[0].name}' is a {node.op_type}, which ONNX does not have at opset "
        f"{have}; onnxruntime writes such nodes into files that it has optimised",
        hint=f"give the file as it was before onnxruntime saved it, or export it anew with opset {goal}",
    )


def _unknown(op_type: str, opset: int) -> bool:
    return not onnx.defs.has(op_type, max_inclusive_version=opset)


def check_standard(model: ir.Model, name: str) -> None:
    """Let onnx's checker look at a graph that is to be rewritten: what it refuses now would be laid on us later.

    Args:
        model: The graph, at the opset it will have.
        name: What it is called, for the message.

    Raises:
        InputError: with the checker's words.
    """
    breach = checker_breach(model)
    if breach is not None:
        raise InputError(f"'{name}' is no valid ONNX model: {breach}", hint="export it anew, or mend what is named")


def _unreadable(path: Path) -> InputError:
    with path.open("rb") as file:
        head = file.read(4)
    what = next((said for magic, said in _MAGIC.items() if head.startswith(magic)), None)
    if not head:
        what = "empty"
    return InputError(
        f"'{path.name}' is no ONNX file" + (f": it is {what}" if what else ", or it is damaged"),
        hint="check the path, or copy the file again",
    )
