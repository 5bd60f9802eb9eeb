"""The proof of a rewrite: run the sub-graph before and after on random inputs and compare.

Both forms are cut out of the model at the values the new form reads, given the same random inputs over several
sizes, and run. The error of the new form is judged against the error of the old one, each relative to the old
form in float64. Half precision is compared in float32 where the CPU has no kernel for it. Weights are replaced by
random ones, so that a default initialisation (biases of zero, norm weights of one) cannot hide a dropped term;
constants that carry structure (masks, scalars, indices) keep their values. Sub-graphs of equal structure are proven
once.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from . import canonical
from .draw import Plan, level_plans, plans, random_feeds
from .evaluate import Evaluator, Run, fed_halves, in_double, in_single
from .graph import Builder, attribute, op_name, scalar
from .judge import FORBIDS, Worst, judge
from .region import Region, cut_out, to_model
from .rule import Replacement, Safety

__all__ = ["Proof", "Prover"]


#: How many times the cut is moved up before a rewrite counts as not equal.
HIGHER: Final = 4

#: Of a form that takes much memory for each row no more than this are tried at a time.
FEW: Final = 32


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof found.

    Attributes:
        ok: Whether the two forms are equal within what was granted.
        error: Largest error of the new form, relative to the largest output.
        error_unfused: The same for the old form.
        granted: The relative error that was granted.
        method: "executed", "cached" or "not-run".
        detail: Why it failed or could not be run.
        assumptions: The assumptions that were needed, out of those the rewrite names.
    """

    ok: bool
    error: float | None = None
    error_unfused: float | None = None
    granted: float | None = None
    method: str = "executed"
    detail: str = ""
    assumptions: tuple[str, ...] = ()


class Prover:
    """Proves rewrites of one model and remembers what it has proven.

    Args:
        model: The model the rewrites belong to; read only.
        evaluator: Runs small models.
        seed: Seed of the random inputs.
    """

    def __init__(self, model: ir.Model, evaluator: Evaluator, *, seed: int = 0) -> None:
        self._model = model
        self._evaluator = evaluator
        self._seed = seed
        self._known: dict[str, Proof] = {}

    def prove(self, replacement: Replacement, g: Builder, safety: Safety) -> Proof:
        """Prove one rewrite before it is committed. Never raises: what cannot be run is not proven."""
        try:
            return self._prove(replacement, g, safety)
        except Exception as error:  # any failure to execute means unproven, and the rewrite is rolled back
            return Proof(False, method="not-run", detail=f"the proof could not be run: {_first_line(error)}")

    def _prove(self, replacement: Replacement, g: Builder, safety: Safety) -> Proof:
        cut = _externals(g.nodes, replacement)
        first = proof = self._attempt(replacement, g, safety, cut)
        # Floats that the new form reads were taken as free. They may depend on one another, or carry a mask the
        # facts were read from: ask again with the cut further up, where less is taken as free.
        for _ in range(HIGHER):
            above = None if proof.ok else _one_up(cut, replacement)
            if above is None:
                break
            replacement = dataclasses.replace(replacement, forbidding=_forbidding_above(replacement.forbidding, cut))
            cut = above
            proof = self._attempt(replacement, g, safety, cut)
        return proof if proof.ok else first

    def _attempt(self, replacement: Replacement, g: Builder, safety: Safety, cut: list[ir.Value]) -> Proof:
        before, after = cut_out(replacement.old, cut), cut_out(replacement.new, cut)
        keep = _KeepConstants((*g.relied_on, *g.initializers))
        free = _free_inputs(before, after, keep)
        arguments = {
            "opsets": _opsets(self._model, g.nodes),
            "ir_version": self._model.ir_version,
            "inputs": free,
            "keep": keep,
            "functions": list(self._model.functions.values()),
        }
        old_model, old_key = to_model(before, **arguments)
        new_model, new_key = to_model(after, **arguments)
        forbidding = [i for i, v in enumerate(free) if any(v is f for f in replacement.forbidding)]
        draws = {id(v): draw for v, draw in replacement.draws}
        drawn = [(i, draws[id(v)]) for i, v in enumerate(free) if id(v) in draws]
        said = f"{replacement.assumptions}{replacement.doubted}"
        key = f"{old_key}{new_key}{safety}{said}{_shape_key(free)}{forbidding}{drawn}"
        if key in self._known:
            known = self._known[key]
            return dataclasses.replace(known, method="cached") if known.method == "executed" else known
        rows = _rows_output(old_model, replacement)
        canonical.expand_all(old_model)
        canonical.expand_all(new_model)
        nodes = (*before.nodes, *after.nodes)
        cases = plans(free, nodes, (*before.constants, *after.constants)), level_plans(free, nodes)
        if replacement.few:
            cases = [p for p in cases[0] if math.prod(p.sizes.values()) <= FEW], []
        proof = self._run(old_model, new_model, free, cases, safety, replacement, rows)
        self._known[key] = proof
        return proof

    def _run(
        self,
        old_model: ir.Model,
        new_model: ir.Model,
        free: Sequence[ir.Value],
        cases: tuple[Sequence[Plan], Sequence[Plan]],
        safety: Safety,
        replacement: Replacement,
        rows: bool,
    ) -> Proof:
        """Compare on the first cases; on the second ones where some axis was never longer than 1 in those."""
        doubles = [in_double(model) for model in (old_model, new_model)[: 1 + replacement.twin]]
        old_model, old_run, new_run = self._runs(old_model, new_model)
        exact_run = next((run for m in doubles if (run := self._evaluator.prepare_exact(m)) is not None), None)
        worst, trouble, emptied = Worst(), "", False
        count = len(replacement.old)
        wanted = {name for plan in cases[0] for name, size in plan.sizes.items() if size > 1}
        for number, plan in enumerate([*cases[0], *cases[1]]):
            if number >= len(cases[0]) and wanted <= worst.grown:
                break
            exact: Sequence[np.ndarray] | None = None
            feeds, old, why = self._old(old_run, free, plan, replacement)
            if old is None:  # these sizes do not fit the model (a fixed window, say) ...
                trouble = why
                exact = None if exact_run is None else _tried(exact_run, feeds)
                if exact is None:
                    continue
                old = _narrowed(exact, old_model)  # ... or onnxruntime refuses what the standard allows
            try:
                new = new_run(feeds)
            except Exception as error:
                return Proof(False, detail=f"the new form does not run where the old one does: {_first_line(error)}")
            if exact is None and exact_run is not None:
                exact = _tried(exact_run, feeds)
            alive, compared = old[count] if rows else None, worst.ran
            problem = judge(old[:count], new, exact, alive, safety, replacement.assumptions, worst)
            if problem:
                return Proof(False, worst.error, worst.unfused, worst.granted, detail=problem)
            emptied = emptied or (alive is not None and bool((alive < FORBIDS).any()))
            if worst.ran > compared:
                worst.grown |= {name for name, size in plan.sizes.items() if size > 1}
        never = wanted - worst.grown
        if not worst.ran:
            why = f"did not run on any size: {trouble}" if trouble else "gives no finite number on any size"
            return Proof(False, method="not-run", detail=f"the old form {why}")
        if never:  # equal where an axis is 1 says nothing of where it is broadcast
            why = f"the old form runs on no size of {', '.join(sorted(never))} but 1: {trouble}"
            return Proof(False, method="not-run", detail=why)
        needed = worst.needed.union(replacement.assumptions if replacement.doubted and not emptied else ())
        return Proof(True, worst.error, worst.unfused, worst.granted, assumptions=tuple(sorted(needed)))

    def _old(
        self, run: Run, free: Sequence[ir.Value], plan: Plan, replacement: Replacement
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray] | None, str]:
        """The inputs of a case, what the old form gives for them, and why it does not where it gives nothing."""
        feeds, trouble = dict[str, np.ndarray](), ""
        draws = {id(v): draw for v, draw in replacement.draws}
        for ids in (None,) if plan.ids is None else plan.ids.narrower():
            rng = np.random.default_rng([self._seed, plan.case, zlib.crc32(str(len(free)).encode())])
            feeds = random_feeds(free, plan.sizes, rng, plan.case, replacement.forbidding, ids, draws)
            try:
                return feeds, run(feeds), ""
            except Exception as error:
                trouble = _first_line(error)
        return feeds, None, trouble

    def _runs(self, old_model: ir.Model, new_model: ir.Model) -> tuple[ir.Model, Run, Run]:
        """Both forms ready to run, and the old one; in float32 where halves have no kernel on the CPU."""
        prepare = self._evaluator.prepare
        try:
            _require_numpy_types(old_model, new_model)
            return old_model, prepare(old_model), prepare(new_model)
        except Exception:
            types = [[o.dtype for o in model.graph.outputs] for model in (old_model, new_model)]
            if any(a is not b and None not in (a, b) for a, b in zip(*types, strict=False)):
                raise  # in float32 a half and a float would look the same
            old, new = in_single(old_model), in_single(new_model)
            return old, fed_halves(prepare(old)), fed_halves(prepare(new))


def _require_numpy_types(*models: ir.Model) -> None:
    """Refuse what onnxruntime has kernels for, but takes no array of."""
    values = (v for model in models for v in (*model.graph.inputs, *model.graph.outputs))
    if any(value.dtype == ir.DataType.BFLOAT16 for value in values):
        raise TypeError("onnxruntime takes no arrays of bfloat16")


def _tried(run: Run, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    try:
        return run(feeds)
    except Exception:
        return None


def _narrowed(exact: Sequence[np.ndarray], model: ir.Model) -> list[np.ndarray]:
    """Float64 results in the element types that the model declares for its outputs."""
    pairs = zip(exact, model.graph.outputs, strict=True)
    return [a if o.dtype is None else np.asarray(a).astype(o.dtype.numpy()) for a, o in pairs]


def _externals(nodes: Iterable[ir.Node], replacement: Replacement) -> list[ir.Value]:
    """Float values that the new nodes read and did not make, and integers that are drawn: where both forms are cut.

    One whose shape alone is read is no place to cut: the old form may run through it.
    """
    made = {id(o) for n in nodes for o in n.outputs}
    read = [v for n in nodes for v in n.inputs if v is not None and op_name(n) not in ("Shape", "Size")]
    read.extend(replacement.new)
    seen = {id(v): v for v, draw in replacement.draws if draw.below is not None and v.producer() is not None}
    for value in read:
        if id(value) in made or value.producer() is None:
            continue
        if _free_float(value):
            seen.setdefault(id(value), value)
    return list(seen.values())


def _one_up(cut: list[ir.Value], replacement: Replacement) -> list[ir.Value] | None:
    """The cut moved above the element-wise nodes that make it; None when none of it can move.

    Other values stay in the cut: above a matrix product there is nothing a mask or a bias is made of. So do integers
    that are drawn.
    """
    above: dict[int, ir.Value] = {}
    drawn = {id(v) for v, _ in replacement.draws}
    moved = False
    for value in cut:
        node = value.producer()
        if node is None or node.op_type in _HEAVY or len(node.outputs) != 1 or id(value) in drawn:
            above[id(value)] = value
            continue
        moved = True
        above.update((id(v), v) for v in node.inputs if v is not None and v.producer() is not None and _free_float(v))
    return list(above.values()) if moved else None


def _forbidding_above(forbidding: Sequence[ir.Value], cut: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
    """What may hold minus infinity once the cut has moved: also the terms that such a value is a sum or a view of."""
    moved = {id(v) for v in cut}
    found = list(forbidding)
    for value in forbidding:
        node = value.producer()
        if node is not None and id(value) in moved and _hands_on(node):
            found.extend(v for v in node.inputs if v is not None and v.producer() is not None and _free_float(v))
    return tuple(found)


def _hands_on(node: ir.Node) -> bool:
    """Whether an operator gives minus infinity where an operand has it; a factor must be a constant above 0."""
    if op_name(node) in ("Mul", "Div"):
        return any(number is not None and number > 0 for number in map(scalar, node.inputs))
    return op_name(node) in _HANDS_ON


#: Operators that give minus infinity where one of their operands has it.
_HANDS_ON: Final = frozenset(
    {
        *("Add", "Sum", "Where", "Expand", "Tile", "Pad", "Concat", "Split", "Gather", "Min", "Clip"),
        *("Reshape", "Unsqueeze", "Squeeze", "Identity", "Slice", "Transpose", "Cast"),
    }
)
_HEAVY: Final = frozenset(
    (
        "MatMul",
        "Gemm",
        "GroupedMatMul",
        "Conv",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
    )
)


def _free_float(value: ir.Value) -> bool:
    """Whether a value can be drawn at random: a float whose every dimension is a number or a symbol."""
    known = value.shape is not None and all(isinstance(d, int) or d.value is not None for d in value.shape)
    return known and value.dtype is not None and value.dtype.is_floating_point()


class _KeepConstants:
    """Decides which constants keep their values: structure does, weights do not."""

    def __init__(self, relied_on: Sequence[ir.Value]) -> None:
        self._relied = {id(v) for v in relied_on}

    def __call__(self, value: ir.Value) -> bool:
        tensor = value.const_value
        assert tensor is not None
        if id(value) in self._relied or not tensor.dtype.is_floating_point() or tensor.size <= 1:
            return True
        if len(tensor.shape) == 1 and tensor.size > 1 << 16:
            return False
        if len(tensor.shape) >= 2 and tensor.size > 1 << 22:
            return False
        return _structural(tensor.numpy().astype(np.float64, copy=False))


def _structural(array: np.ndarray) -> bool:
    """Masks and indicator tables (infinite or huge entries, or exactly two values), and tables of nothing but zeros.

    Facts are read from values: a table that an untrained model left at 0 adds nothing, and is not drawn as if it did.
    A bias of one axis is drawn: that it was 0 must not hide that a rewrite dropped it.
    """
    if not np.all(np.isfinite(array)) or np.max(np.abs(array)) > 1e4:
        return True
    return len(np.unique(array)) == 2 or (array.ndim > 1 and not array.any())


def _free_inputs(before: Region, after: Region, keep: _KeepConstants) -> list[ir.Value]:
    seen: dict[int, ir.Value] = {}
    for region in (before, after):
        for value in region.inputs:
            seen.setdefault(id(value), value)
        for value in region.constants:
            if not keep(value):
                seen.setdefault(id(value), value)
    return list(seen.values())


def _opsets(model: ir.Model, nodes: Iterable[ir.Node]) -> dict[str, int]:
    opsets = dict(model.graph.opset_imports)
    for node in nodes:
        opsets.setdefault(node.domain, 1)
    return opsets


def _shape_key(values: Sequence[ir.Value]) -> str:
    """Shapes with their symbols renamed in order of appearance, so that layers of one kind share a proof."""
    names: dict[str, str] = {}
    parts = []
    for value in values:
        assert value.shape is not None
        dims = [str(d) if isinstance(d, int) else names.setdefault(str(d.value), f"s{len(names)}") for d in value.shape]
        parts.append(f"{value.dtype}[{','.join(dims)}]")
    return ";".join(parts)


def _rows_output(model: ir.Model, replacement: Replacement) -> bool:
    """Add an output that says which rows of the attention have a key left, when an assumption speaks of them.

    The form that is replaced says so, by the largest of its masked scores: a new form that masks too much has no
    say in it.
    """
    if replacement.rows_of is None or "fully-masked-rows" not in replacement.assumptions:
        return False
    scores = _masked_scores(model)
    if scores is None:
        return False
    graph = model.graph
    g = Builder(graph, prefix="rows")
    axes = g.const(np.array([-1], np.int64))
    top = (
        g.op("ReduceMax", scores, axes, keepdims=0)
        if graph.opset_imports[""] >= 18
        else g.op("ReduceMax", scores, axes=[-1], keepdims=0)
    )
    top.type = ir.TensorType(scores.dtype or ir.DataType.FLOAT)
    graph.extend(g.nodes)
    for value in g.initializers:
        if value.uses():
            graph.register_initializer(value)
    graph.outputs.append(top)
    return True


def _masked_scores(model: ir.Model) -> ir.Value | None:
    """The masked scores of the one attention in a model, canonical or in plain nodes; None where there is not one."""
    nodes = [n for n in model.graph if canonical.is_attention(n)]
    if len(nodes) == 1:
        dtype = canonical.read(nodes[0]).query.dtype
        _, _, scores = canonical.replace_by_plain(nodes[0])
        scores.dtype = scores.dtype or dtype
        return scores
    plain = [n for n in model.graph if op_name(n) == "Softmax"]
    if nodes or len(plain) != 1 or plain[0].inputs[0] is None:
        return None
    rank = None if plain[0].inputs[0].shape is None else len(plain[0].inputs[0].shape)
    return plain[0].inputs[0] if attribute(plain[0], "axis", -1) in (-1, None if rank is None else rank - 1) else None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:300]
