"""The proof of a whole-graph pass: run the model before and after on random inputs, with stand-in weights."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

import numpy as np
import onnx_ir as ir

from ..runtime.processors import usable_threads
from . import canonical
from .cleanup.fold import FOLDED_ELEMENTS
from .draw import SIZES, bind, can_be, dims_of, enlarged, random_feeds
from .evaluate import Evaluator, fed_halves, has_halves, in_single

__all__ = ["GRANTED", "difference"]

#: Relative to the largest output. Deep random networks amplify rounding; this is what parity grants a model.
GRANTED: Final = 1e-4
#: Initializers of more elements become inputs with random stand-ins, so that no weight is copied or serialised.
#: Those that folding computes from keep their values: what it makes of them must fit.
_SMALL: Final = FOLDED_ELEMENTS
#: Stand-ins of more bytes than this in all are not made; the pass is then recorded as not proven.
_LIMIT: Final = 4 << 30
#: Models with more bytes of weights run on all processors; to smaller ones other threads only cost.
_LARGE: Final = 32 << 20
#: Names that constant folding gives to weights it stores transposed (passes/cleanup/fold.py).
_TRANSPOSED: Final = re.compile(r"(?P<weight>.+)\.transposed(_(?P<order>[\d_]+))?(\.\d+)?")


def difference(before: ir.Model, after: ir.Model, evaluator: Evaluator) -> str | None:
    """What differs between two models that should compute the same.

    Args:
        before: The reference. Not changed.
        after: The model to judge, with the same inputs and outputs. Not changed.
        evaluator: Runs both.

    Returns:
        Half precision is compared in float32. None when every output agrees within :data:`GRANTED` on the sizes that
        run, else a sentence. A sentence
        that begins with "not run" says that nothing could be compared.
    """
    old, old_weights = _light(before)
    new, new_weights = _light(after)
    halves = has_halves(old) or has_halves(new)
    if halves:  # where a half is rounded depends on which nodes onnxruntime sees side by side, not on what they mean
        old, new = in_single(old), in_single(new)
    size = sum(v.const_value.nbytes for v in old_weights.values() if v.const_value is not None)
    if size > _LIMIT:
        return f"not run: stand-ins for the weights would take more than {_LIMIT >> 30} GiB"
    prepare = partial(evaluator.prepare, threads=usable_threads() if size > _LARGE else 1)
    try:
        run_old = fed_halves(prepare(old)) if halves else prepare(old)
    except Exception as error:  # onnxruntime has a class for each status; the note tells which
        return f"not run: {str(error).splitlines()[0][:200]}"
    try:
        run_new = fed_halves(prepare(new)) if halves else prepare(new)
    except Exception as error:  # the same, and then the pass is undone
        return f"the result does not load: {str(error).splitlines()[0][:200]}"
    stand_ins = _stand_ins({**old_weights, **new_weights})
    compared = False
    inputs = list(before.graph.inputs)
    for number, sizes in enumerate(_plans(before)):
        rng = np.random.default_rng([7, number])
        feeds = {
            str(value.name): array
            for value, array in zip(inputs, random_feeds(inputs, sizes, rng, number).values(), strict=True)
        }
        feeds |= stand_ins
        try:
            expected = run_old(feeds)
        except Exception:  # these sizes do not fit the model; where none does, the note says "not run"
            continue
        try:
            found = run_new(feeds)
        except Exception as error:
            return f"the result does not run where the model ran: {str(error).splitlines()[0][:200]}"
        problem = _compare(expected, found)
        if problem is not None:
            return problem
        compared = True
    return None if compared else "not run: no size that was tried fits the model"


def _plans(model: ir.Model) -> list[dict[str, int]]:
    """Sizes by symbol: two cases, and wider ones where a dimension inside the model would be empty."""
    dims = dims_of(o for n in model.graph for o in n.outputs)
    cases = [bind(list(model.graph.inputs), sizes) for sizes in SIZES[:2]]
    wider = [enlarged(case, dims) for case in cases]
    cases = [case for case in cases if can_be(case, dims)]
    return [*cases, *(case for case in wider if case not in cases)]


def _light(model: ir.Model) -> tuple[ir.Model, dict[str, ir.Value]]:
    """A copy whose large initializers are inputs, and those initializers by name."""
    light = model.clone()
    weights = {}
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.size <= _SMALL or value.is_graph_input() or not tensor.dtype.is_floating_point():
            continue
        weights[name] = model.graph.initializers[name]
        light.graph.initializers.pop(name)
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
        light.graph.inputs.append(value)
    canonical.expand_all(light)
    return light, weights


def _stand_ins(weights: dict[str, ir.Value]) -> dict[str, np.ndarray]:
    """Random weights by name. Alike weights share one array, so that depth costs no memory."""
    block = (np.random.default_rng(3).standard_normal(65_537) * 0.05).astype(np.float32)
    made, shared = {}, dict[tuple[object, ...], np.ndarray]()
    for name, value in sorted(weights.items()):
        key = _kind(name, value)
        if key not in shared:
            _, _, shape, dtype = key
            shared[key] = np.ascontiguousarray(_stand_in(name, shape, block).astype(dtype.numpy(), copy=False))
        made[name] = shared[key]
    return made


def _kind(name: str, value: ir.Value) -> tuple[int, str, tuple[int, ...], ir.DataType]:
    """What the stand-in of a weight depends on: one of three rolls, the order it is stored in, shape and type."""
    tensor = value.const_value
    assert tensor is not None
    stored, roll = _TRANSPOSED.fullmatch(name), _roll(name)
    order = "" if stored is None else name[len(stored["weight"]) :]
    return roll, order, tuple(int(d) for d in tensor.shape), tensor.dtype


def _roll(name: str) -> int:
    """Which of three rolls of the random block a weight gets, however often it was transposed."""
    while (stored := _TRANSPOSED.fullmatch(name)) is not None:
        name = stored["weight"]
    return sum(name.encode()) % 3


def _stand_in(name: str, shape: tuple[int, ...], block: np.ndarray) -> np.ndarray:
    """Numbers that depend on the name alone; a weight stored transposed gets the transpose of the same numbers."""
    stored = _TRANSPOSED.fullmatch(name)
    if stored is None:
        return np.resize(np.roll(block, 331 * _roll(name)), shape)
    order = stored["order"]
    perm = [int(axis) for axis in order.split("_")] if order else list(reversed(range(len(shape))))
    source = tuple(shape[perm.index(axis)] for axis in range(len(shape)))
    return _stand_in(stored["weight"], source, block).transpose(perm)


def _compare(expected: list[np.ndarray], found: list[np.ndarray]) -> str | None:
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {index} is {b.dtype}{list(b.shape)}, was {a.dtype}{list(a.shape)}"
        if not np.issubdtype(a.dtype, np.floating):
            if not np.array_equal(a, b):
                return f"output {index} is not equal"
            continue
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return f"output {index} has NaN in other places"
        finite = np.isfinite(a)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return f"output {index} has infinities in other places"
        largest = float(np.max(np.abs(a[finite]), initial=0.0)) or 1.0
        error = float(np.max(np.abs(a[finite].astype(np.float64) - b[finite]), initial=0.0)) / largest
        if error > GRANTED:
            return f"output {index} differs by {error:.1e} of its largest value"
    return None
