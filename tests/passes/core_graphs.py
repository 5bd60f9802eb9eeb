"""Graphs, references and wrong rules for the tests of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from deployml.custom_ops import register
from deployml.passes import canonical
from deployml.passes.cleanup import infer_shapes
from deployml.passes.engine import Engine
from deployml.passes.evaluate import Evaluator
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.passes.rule import Context, Rule
from deployml.runtime.target import Target

__all__ = [
    "CPU",
    "Call",
    "applied",
    "attention",
    "call_model",
    "evaluator",
    "feeds",
    "hand_written",
    "model_of",
    "run",
    "serialized",
]

CPU = Target(name="cpu", onnxruntime=(1, 31, 1), opset=20)
BATCH, ROWS, COLUMNS = 3, 5, 7


def evaluator() -> Evaluator:
    """An evaluator that knows the project's own operators."""
    return Evaluator(register)


def model_of(text: str) -> ir.Model:
    """A model from ONNX text, shapes inferred."""
    model = ir.from_onnx_text(text)
    infer_shapes(model)
    return model


@dataclass(frozen=True)
class Call:
    """One canonical attention: sizes, attributes and the shapes of its optional inputs."""

    heads: int = 4
    kv_heads: int = 4
    size: int = 16
    value_size: int = 16
    keys: str = "T"
    mask: str = ""
    bias: str = ""
    sink: bool = False
    scale: float = 0.25
    causal: str = "none"
    softcap: float = 0.0
    empty_rows: str = "zero"
    weights: bool = False


def call_model(call: Call, opset: int = 20) -> ir.Model:
    """A model of this one call with inputs q, k, v, m, b, s and outputs y, w."""
    keys = call.keys
    inputs = [
        f"float[B,{call.heads},S,{call.size}] q",
        f"float[B,{call.kv_heads},{keys},{call.size}] k",
        f"float[B,{call.kv_heads},{keys},{call.value_size}] v",
    ]
    names = ["q", "k", "v", "", "", ""]
    optional = (
        (call.mask, "bool", "m"),
        (call.bias, "float", "b"),
        (f"{call.heads}" * call.sink, "float", "s"),
    )
    for slot, (shape, kind, name) in enumerate(optional):
        if shape:
            inputs.append(f"{kind}[{shape}] {name}")
            names[3 + slot] = name
    while not names[-1]:
        names.pop()
    outputs = [f"float[B,{call.heads},S,{call.value_size}] y"]
    outputs += [f"float[B,{call.heads},S,{keys}] w"] * call.weights
    attributes = [f"scale = {call.scale}", f'causal = "{call.causal}"', f'empty_rows = "{call.empty_rows}"']
    attributes += [f"softcap = {call.softcap}"] * bool(call.softcap)
    made = "y, w" if call.weights else "y"
    return model_of(
        f"""<ir_version: 10, opset_import: ["" : {opset}, "{canonical.DOMAIN}" : 1]>
call ({", ".join(inputs)}) => ({", ".join(outputs)}) {{
  [site] {made} = {canonical.DOMAIN}.Attention <{", ".join(attributes)}> ({", ".join(names)})
}}"""
    )


def feeds(model: ir.Model, *, seed: int = 0, empty_row: bool = False) -> dict[str, np.ndarray]:
    """Random inputs: B, S, T are 3, 5, 7; booleans keep two of three keys, and the first key of every row."""
    rng = np.random.default_rng(seed)
    sizes = {"B": BATCH, "S": ROWS, "T": COLUMNS}
    made: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
        if value.dtype == ir.DataType.BOOL:
            flags = np.asarray(rng.random(shape) < 0.66)
            if flags.ndim:
                flags[..., 0] = True
            if empty_row:
                flags[0, ..., 0 if flags.shape[-2] == 1 else 1, :] = False
            made[str(value.name)] = flags
        elif value.dtype.is_floating_point():
            made[str(value.name)] = rng.standard_normal(shape).astype(value.dtype.numpy())
        else:
            made[str(value.name)] = (rng.random(shape) < 0.66).astype(value.dtype.numpy())
    return made


def attention(call: Call, given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(output, weights) of a call, one row at a time in float64: written to be obviously right."""
    q, k, v = (given[n].astype(np.float64) for n in "qkv")
    batch, heads, rows, _ = q.shape
    columns, group = k.shape[2], heads // k.shape[1]
    full = (batch, heads, rows, columns)
    keep = np.broadcast_to(given["m"], full) if call.mask else np.ones(full, bool)
    bias = np.broadcast_to(given["b"].astype(np.float64), full) if call.bias else np.zeros(full)
    output, weights = np.zeros((*full[:3], v.shape[3])), np.zeros(full)
    for b, n, i in np.ndindex(batch, heads, rows):
        scores = k[b, n // group] @ q[b, n, i] * call.scale
        if call.softcap:
            scores = call.softcap * np.tanh(scores / call.softcap)
        scores = scores + bias[b, n, i]
        allowed = keep[b, n, i].copy()
        last = i if call.causal == "upper_left" else i + columns - rows
        if call.causal != "none":
            allowed &= np.arange(columns) <= last
        if not allowed.any() and not call.sink:
            weights[b, n, i] = 0.0 if call.empty_rows == "zero" else np.nan
        else:
            powers = np.where(allowed, np.exp(scores), 0.0)
            extra = np.exp(float(given["s"][n])) if call.sink else 0.0
            weights[b, n, i] = powers / (powers.sum() + extra)
        output[b, n, i] = weights[b, n, i] @ v[b, n // group]
    return output, weights


def run(model: ir.Model, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run a model, canonical calls expanded; the model is left as it was."""
    plain = model.clone()
    canonical.expand_all(plain)
    return evaluator().prepare(plain)(given)


def serialized(model: ir.Model) -> bytes:
    """The bytes of a model."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def applied(model: ir.Model, *rules: Rule, target: Target = CPU) -> Journal:
    """Run rules over a model in place and return the journal."""
    journal = Journal()
    Engine(Context(model, target), Prover(model, evaluator()), journal).run("test", rules)
    return journal


def hand_written(
    *,
    mask: str = "",
    bias: str = "",
    fill: str = "-inf",
    scale: float = 0.25,
    size: int = 16,
    opset: int = 20,
    keys: str = "T",
    named: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """ONNX text of one attention in plain operators, with projections, as an exporter writes it.

    ``mask`` is the shape of a boolean input ("B,1,1,T"), ``bias`` that of a float one. ``extra`` replaces parts:
    "outputs" (more graph outputs).
    """
    extra = dict(extra or {})
    inputs = [f"float[B,4,S,{size}] q", f"float[B,4,{keys},{size}] k", f"float[B,4,{keys},{size}] v"]
    inputs += [f"bool[{mask}] m"] * bool(mask) + [f"float[{bias}] b"] * bool(bias)
    lines = ["kt = Transpose <perm = [0, 1, 3, 2]> (k)", "s0 = MatMul (q, kt)", "s1 = Mul (s0, c)"]
    last = "s1"
    if bias:
        lines.append(f"s2 = Add ({last}, b)")
        last = "s2"
    if mask:
        lines.append(f"s3 = Where (m, {last}, f)")
        last = "s3"
    lines += [f"p = Softmax <axis = -1> ({last})", "y = MatMul (p, v)"]
    if named:
        lines = [f"[n{number}] {line}" for number, line in enumerate(lines)]
    outputs = [f"float[B,4,S,{size}] y", *extra.get("outputs", ())]
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
hand ({", ".join(inputs)}) => ({", ".join(outputs)}) <float c = {{{scale}}}, float f = {{{fill}}}> {{
  {chr(10).join("  " + line for line in lines)}
}}"""
