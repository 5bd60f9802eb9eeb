"""What the attention operators of the installed onnxruntime really do, next to what the shipped table says of them.

Each feature is a model of one node that is loaded, run and compared with attention written out in numpy: a kernel that
takes an attribute and ignores it has not got the feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime

from ..passes.capability import Capability, capability
from ..runtime.session import open_session
from ..runtime.versions import onnxruntime_version

__all__ = ["Probed", "probe"]

Outcome = Literal["as the table says", "better than the table", "worse than the table"]

_BATCH, _HEADS, _LENGTH, _WIDTH = 2, 4, 16, 16
_SOFTCAP: Final = 2.0
_GQA, _MHA, _STANDARD = "com.microsoft::GroupQueryAttention", "com.microsoft::MultiHeadAttention", "Attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """One feature of one operator on the CPU.

    Attributes:
        op: Qualified operator name.
        feature: "float32", "grouped heads", "bias", ...
        claimed: Whether the table says that the installed version has it.
        works: Whether it computed what it should.
        detail: Why not: the first line of the error, or the size of the difference.
    """

    op: str
    feature: str
    claimed: bool
    works: bool
    detail: str = ""

    @property
    def outcome(self) -> Outcome:
        """How what was found stands to the table."""
        if self.claimed == self.works:
            return "as the table says"
        return "better than the table" if self.works else "worse than the table"


@dataclass(frozen=True, slots=True)
class _Ask:
    """A call: what is special about it."""

    dtype: Any = np.float32
    kv_heads: int = _HEADS
    value_width: int = _WIDTH
    bias: bool = False
    softcap: float = 0.0
    padding: bool = False


#: Feature -> the call that needs it, and what the table says of it.
_FEATURES: Final[Mapping[str, tuple[_Ask, Callable[[Capability], bool]]]] = {
    "float32": (_Ask(), lambda row: ir.DataType.FLOAT in row.dtypes),
    "float16": (_Ask(dtype=np.float16), lambda row: ir.DataType.FLOAT16 in row.dtypes),
    "grouped heads": (_Ask(kv_heads=2), lambda row: row.grouped),
    "value of another size": (_Ask(value_width=24), lambda row: row.unequal_value),
    "bias": (_Ask(bias=True), lambda row: row.bias),
    "padding mask": (_Ask(padding=True), lambda row: row.padding_mask),
    "softcap": (_Ask(softcap=_SOFTCAP), lambda row: row.softcap is not None and onnxruntime_version() >= row.softcap),
}


def probe() -> tuple[Probed, ...]:
    """Try every feature of every operator of onnxruntime on the CPU; takes a second."""
    found = []
    for op in (_GQA, _MHA, _STANDARD):
        row = capability(op, "cpu", onnxruntime_version())
        for feature, (ask, claims) in _FEATURES.items():
            if ask.padding and op != _MHA:  # the others have no such input
                continue
            works, detail = _try(op, ask)
            claimed = row is not None and claims(row)
            found.append(Probed(op=op, feature=feature, claimed=claimed, works=works, detail=detail))
    return tuple(found)


def _try(op: str, ask: _Ask) -> tuple[bool, str]:
    arrays = _arrays(ask)
    try:
        session = open_session(_model(op, ask).SerializeToString(), threads=1)
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = 4  # a refusal is an answer, no news
        output = session.run(None, _feeds(op, ask, arrays), quiet)[0]
    except Exception as error:  # whatever it says is the answer
        return False, " ".join(str(error).split())[:120]
    expected = _expected(ask, arrays, causal=op == _GQA)
    if op == _STANDARD:
        output = output.transpose(0, 2, 1, 3)
    difference = float(np.abs(np.asarray(output, np.float64).reshape(expected.shape) - expected).max())
    granted = 1e-2 if ask.dtype == np.float16 else 1e-4
    return difference <= granted, "" if difference <= granted else f"off by {difference:.1e}"


def _arrays(ask: _Ask) -> dict[str, np.ndarray]:
    """Query, key and value as (B, S, N, H), a bias and a mask of kept keys; seeded."""
    rng = np.random.default_rng(5)
    heads = {"query": (_HEADS, _WIDTH), "key": (ask.kv_heads, _WIDTH), "value": (ask.kv_heads, ask.value_width)}
    found = {n: rng.standard_normal((_BATCH, _LENGTH, *shape)).astype(ask.dtype) for n, shape in heads.items()}
    found["bias"] = rng.standard_normal((1, _HEADS, _LENGTH, _LENGTH)).astype(ask.dtype)
    found["kept"] = np.arange(_LENGTH)[None] < np.array([[_LENGTH], [5]])
    return found


def _expected(ask: _Ask, arrays: Mapping[str, np.ndarray], *, causal: bool) -> np.ndarray:
    """Attention in float64, (B, S, N, Hv)."""
    times = _HEADS // ask.kv_heads
    query, key, value = (arrays[n].astype(np.float64) for n in ("query", "key", "value"))
    key, value = (np.repeat(x, times, axis=2) for x in (key, value))
    scores = np.einsum("bsnh,btnh->bnst", query, key) / np.sqrt(_WIDTH)
    scores = ask.softcap * np.tanh(scores / ask.softcap) if ask.softcap else scores
    scores = scores + arrays["bias"] if ask.bias else scores
    scores = np.where(np.tri(_LENGTH, dtype=bool), scores, -np.inf) if causal else scores
    scores = np.where(arrays["kept"][:, None, None], scores, -np.inf) if ask.padding else scores
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnst,btnh->bsnh", weights / weights.sum(-1, keepdims=True), value)


def _feeds(op: str, ask: _Ask, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = ("query", "key", "value")
    if op == _STANDARD:
        found = {n: np.ascontiguousarray(arrays[n].transpose(0, 2, 1, 3)) for n in names}
    else:
        found = {n: arrays[n].reshape(_BATCH, _LENGTH, -1) for n in names}
    if op == _GQA:
        found |= {"seqlens": np.full(_BATCH, _LENGTH - 1, np.int32), "total": np.array(_LENGTH, np.int32)}
    if ask.bias:
        found["bias"] = arrays["bias"]
    if ask.padding:
        found["kept"] = arrays["kept"].astype(np.int32)
    return found


def _model(op: str, ask: _Ask) -> Any:
    """The model of one node."""
    values = {n: _value(n, array) for n, array in _feeds(op, ask, _arrays(ask)).items()}
    get = values.get
    head = [get("query"), get("key"), get("value")]
    inputs = {
        _GQA: [*head, None, None, get("seqlens"), get("total"), None, None, None, get("bias")],
        _MHA: [*head, None, get("kept"), get("bias")],
        _STANDARD: [*head, get("bias")],
    }[op]
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {} if op == _STANDARD else {"num_heads": _HEADS}
    attributes |= {"kv_num_heads": ask.kv_heads} if op == _GQA else {}
    attributes |= {"softcap": ask.softcap} if ask.softcap else {}
    domain, _, op_type = op.rpartition("::")
    node = ir.node(op_type, inputs, attributes=attributes, domain=domain, name="probe")
    output = node.outputs[0]
    output.name, output.type = "output", head[0].type if head[0] is not None else None
    opsets = {"": 23 if op == _STANDARD else 20, "com.microsoft": 1}
    graph = ir.Graph(list(values.values()), [output], nodes=[node], opset_imports=opsets, name="probe")
    return ir.serde.serialize_model(ir.Model(graph, ir_version=10))


def _value(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape))
