"""Stand-ins for torch, by which a written module writes its own ONNX graph: thousands of sites a minute.

torch's exporters take seconds for a module; these take milliseconds, and spell the same meaning in many ways.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from .onnx_tape import Dialect, Size, Tape
from .onnx_tensor import TYPES, Tensor, array_of, joined, lift

__all__ = ["written"]


def written(
    sites: Sequence[torch.nn.Module],
    time_first: Sequence[bool],
    source: str,
    given: Mapping[str, torch.Tensor],
    axes: Mapping[str, Sequence[str | None]],
    dialect: Dialect,
) -> ir.Model:
    """The graph of attention modules that read the same inputs, one after the other.

    Args:
        sites: The modules; their weights become constants.
        time_first: Which of them take (S, B, D).
        source: The text their classes, Attention0, Attention1, ..., were made from.
        given: Example inputs by name; their dtypes count.
        axes: Names of the free axes of each input.
        dialect: How to spell it.
    """
    tape = Tape(dialect)
    space = _namespace(tape)
    exec(compile("\n".join(line for line in source.splitlines() if "import " not in line), "<written>", "exec"), space)
    values = {name: _input(name, given[name], axes[name]) for name in given}
    results: list[Tensor] = []
    for number, (site, first) in enumerate(zip(sites, time_first, strict=True)):
        tape.site = f"sites.{number}"
        feed = {name: _tensor(tape, value, given[name].dtype) for name, value in values.items()}
        if first:
            feed |= {name: feed[name].transpose(0, 1) for name in "xy"}
        result = space[f"Attention{number}"].forward(_mirror(tape, site), **feed)
        results.extend(result if isinstance(result, tuple) else (result,))
    graph = ir.Graph(
        list(values.values()),
        [r.value for r in results],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": dialect.opset, "deployml.canonical": 1},
        name="written",
    )
    for result in results:
        result.value.type = ir.TensorType(TYPES[result.dtype])
    return ir.Model(graph, ir_version=10)


def _input(name: str, example: torch.Tensor, axes: Sequence[str | None]) -> ir.Value:
    sizes = itertools.zip_longest(axes, example.shape)
    shape = ir.Shape([size if axis is None else axis for axis, size in sizes])
    return ir.Value(name=name, type=ir.TensorType(TYPES[example.dtype]), shape=shape)


def _tensor(tape: Tape, value: ir.Value, dtype: torch.dtype) -> Tensor:
    dims = [d if isinstance(d, int) else tape.size(value, n, str(d.value)) for n, d in enumerate(value.shape or ())]
    return Tensor(tape, value, dims, dtype)


class _Mirror:
    """A module of the graph: attributes are constants and callables."""

    training = False


def _mirror(tape: Tape, module: torch.nn.Module) -> _Mirror:
    mirror = _Mirror()
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        setattr(mirror, name, lift(tape, tensor, tensor.dtype))
    for name, child in module.named_children():
        setattr(mirror, name, _layer(tape, child))
    return mirror


def _layer(tape: Tape, module: torch.nn.Module) -> Any:
    if isinstance(module, torch.nn.Linear):
        return _linear(tape, module)
    if isinstance(module, torch.nn.Embedding):
        return _embedding(tape, module)
    return lambda x: _convolution(tape, module, x)


def _convolution(tape: Tape, module: Any, x: Tensor) -> Tensor:
    parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
    weights = [lift(tape, p, x.dtype).value for p in parameters]
    value = tape.op(
        "Conv",
        x.value,
        *weights,
        kernel_shape=list(module.kernel_size),
        strides=list(module.stride),
        pads=list(module.padding) * 2,
    )
    same = module.kernel_size[0] == 1
    return x.made(value, (x.dims[0], module.out_channels, *(x.dims[2:] if same else [None] * len(x.dims[2:]))))


def _embedding(tape: Tape, module: torch.nn.Module) -> Any:
    table = lift(tape, module.weight, torch.float32)
    return lambda ids: table._take(0, ids.value, ids.dims)


def _linear(tape: Tape, module: torch.nn.Linear) -> Any:
    spelling, bias = tape.dialect.linear, module.bias

    def call(x: Tensor) -> Tensor:
        dims = (*x.dims[:-1], module.out_features)
        if spelling == "gemm":
            flat = tape.op("Reshape", x.value, tape.ints(-1, module.in_features))
            more = [] if bias is None else [lift(tape, bias, x.dtype).value]
            rows = tape.op("Gemm", flat, lift(tape, module.weight, x.dtype).value, *more, transB=1)
            lead = [x.size_of(n) for n in range(len(dims) - 1)]
            return x.made(rows, (None, module.out_features)).reshape(*lead, dims[-1])
        if spelling == "transposed":
            weight = tape.op("Transpose", lift(tape, module.weight, x.dtype).value, perm=[1, 0])
        else:
            weight = lift(tape, module.weight.T, x.dtype).value
        result = x.made(tape.op("MatMul", x.value, weight), dims)
        return result if bias is None else lift(tape, bias, x.dtype) + result

    return call


def _namespace(tape: Tape) -> dict[str, Any]:
    calls = _Calls(tape)
    torch_like = SimpleNamespace(
        **{name: getattr(torch, name) for name in ("bool", "float32", "float16", "bfloat16", "finfo")},
        **{name: getattr(calls, name) for name in dir(calls) if not name.startswith("_")},
    )
    return {
        "torch": torch_like,
        "F": torch_like,
        "math": math,
        "nn": SimpleNamespace(Module=object),
    }


class _Calls:
    """The functions of torch and torch.nn.functional that the written modules call."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def arange(self, length: Any) -> Tensor:
        tape = self._tape
        if isinstance(length, int):
            return Tensor(tape, tape.const(np.arange(length)), (length,), torch.int64)
        zero, one = (tape.const(np.array(n, np.int64)) for n in (0, 1))
        return Tensor(tape, tape.op("Range", zero, length.scalar(), one), (length,), torch.int64)

    def ones(self, *sizes: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        value = ir.tensor(np.ones(1, bool if dtype == torch.bool else np.float32))
        made = self._tape.op("ConstantOfShape", self._tape.shape(sizes), value=value)
        return _Square(self._tape, made, sizes, dtype)

    def zeros(self, *sizes: Any, dtype: torch.dtype) -> Tensor:
        if all(isinstance(size, int) for size in sizes):
            return lift(self._tape, torch.zeros(*sizes, dtype=dtype), dtype)
        value = ir.tensor(array_of(torch.zeros(1, dtype=dtype)))
        return Tensor(self._tape, self._tape.op("ConstantOfShape", self._tape.shape(sizes), value=value), sizes, dtype)

    def zeros_like(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        shape = self._tape.op("Shape", like.value)
        value = ir.tensor(array_of(torch.zeros(1, dtype=dtype)))
        return Tensor(self._tape, self._tape.op("ConstantOfShape", shape, value=value), like.dims, dtype)

    def full(self, sizes: tuple[()], number: float, dtype: torch.dtype) -> Tensor:
        return lift(self._tape, number, dtype)

    def tensor(self, number: float, dtype: torch.dtype) -> Tensor:
        return lift(self._tape, number, dtype)

    def max(self, a: Tensor, b: Tensor) -> Tensor:
        return a.binary("Max", b)

    def cat(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        first = parts[0]
        dims = list(first.dims)
        known = [p.dims[dim] for p in parts]
        dims[dim] = sum(known) if all(isinstance(k, int) for k in known) else None  # type: ignore[arg-type]
        axis = dim % len(dims)
        return first.made(self._tape.op("Concat", *(p.value for p in parts), axis=axis), dims)

    def stack(self, parts: Sequence[Tensor], dim: int) -> Tensor:
        return self.cat([p.unsqueeze(dim) for p in parts], dim)

    def roll(self, x: Tensor, shift: int, dim: int) -> Tensor:
        """The first ``-shift`` go to the end, the last ``shift`` to the front."""
        end = np.iinfo(np.int64).max
        parts = [x._slice(dim, -shift, end, 1), x._slice(dim, 0, -shift, 1)]
        rolled = self.cat(parts, dim)
        return x.made(rolled.value, x.dims)

    def pad(self, x: Tensor, pads: Sequence[Any], value: float = 0) -> Tensor:
        """Pads of the last axes, last axis first, in front and behind."""
        pairs = [pads[n : n + 2] for n in range(0, len(pads), 2)]
        pairs = [*pairs, *[(0, 0)] * (len(x.dims) - len(pairs))][::-1]
        amounts = self._tape.shape([front for front, _ in pairs] + [back for _, back in pairs])
        fill = lift(self._tape, value, x.dtype).value
        dims = [_grown(d, front, back) for d, (front, back) in zip(x.dims, pairs, strict=True)]
        return x.made(self._tape.op("Pad", x.value, amounts, fill), dims)

    def gather(self, x: Tensor, dim: int, index: Tensor) -> Tensor:
        return x.made(self._tape.op("GatherElements", x.value, index.value, axis=dim % len(x.dims)), index.dims)

    def index_select(self, x: Tensor, dim: int, index: Tensor) -> Tensor:
        return x._take(dim, index.value, index.dims)

    def _pooled(self, x: Tensor, size: int, stride: int, padding: int) -> Tensor:
        axes = len(x.dims) - 2
        value = self._tape.op(
            "AveragePool",
            x.value,
            kernel_shape=[size] * axes,
            strides=[stride] * axes,
            pads=[padding] * 2 * axes,
            count_include_pad=1,
        )
        return x.made(value, (*x.dims[:2], *[None] * axes))

    avg_pool1d = avg_pool2d = _pooled

    def where(self, condition: Tensor, a: Any, b: Any) -> Tensor:
        like = next(t for t in (a, b) if isinstance(t, Tensor))
        left, right = (lift(self._tape, t, like.dtype) for t in (a, b))
        dims = joined(condition.dims, joined(left.dims, right.dims))
        return like.made(self._tape.op("Where", condition.value, left.value, right.value), dims)

    def isnan(self, x: Tensor) -> Tensor:
        return x.made(self._tape.op("IsNaN", x.value), x.dims, torch.bool)

    def nan_to_num(self, x: Tensor, number: float) -> Tensor:
        return self.where(self.isnan(x), number, x)

    def exp(self, x: Tensor) -> Tensor:
        return x.exp()

    def log(self, x: Tensor) -> Tensor:
        return x.op("Log")

    def tanh(self, x: Tensor) -> Tensor:
        return x.op("Tanh")

    def rsqrt(self, x: Tensor) -> Tensor:
        return x.op("Sqrt").op("Reciprocal")

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    bmm = matmul

    def baddbmm(self, start: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> Tensor:
        product = a @ b
        return (product if alpha == 1.0 else product * alpha) + (start if beta == 1.0 else start * beta)

    def einsum(self, equation: str, a: Tensor, b: Tensor) -> Tensor:
        left, right, result = equation.replace("->", ",").split(",")
        sizes = dict(zip(right + left, (*b.dims, *a.dims), strict=True))
        value = self._tape.op("Einsum", a.value, b.value, equation=equation)
        return a.made(value, [sizes[letter] for letter in result])

    def softmax(self, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        wide = x if dtype is None else x.to(dtype)
        return wide.op("Softmax", axis=dim)

    def log_softmax(self, x: Tensor, dim: int) -> Tensor:
        return x.op("LogSoftmax", axis=dim)

    def dropout(self, x: Tensor, share: float, training: bool) -> Tensor:
        return x

    def layer_norm(self, x: Tensor, shape: tuple[int], weight: Tensor, bias: None, epsilon: float) -> Tensor:
        if self._tape.dialect.norm == "op" and self._tape.dialect.opset >= 17:
            return x.op("LayerNormalization", weight.value, axis=-1, epsilon=epsilon)
        centred = x - x.mean(-1, keepdim=True)
        root = (centred.pow(2.0).mean(-1, keepdim=True) + epsilon).op("Sqrt")
        return centred / root * weight

    def normalize(self, x: Tensor, dim: int) -> Tensor:
        norm = x.made(self._tape.reduce("ReduceL2", x.value, -1, since=18), (*x.dims[:-1], 1))
        return x / norm.clamp(min=1e-12 if x.dtype != torch.float16 else 6e-8)

    def scaled_dot_product_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        size = q.dims[-1]
        assert isinstance(size, int)
        factor = size**-0.5 if scale is None else scale
        spelling = self._tape.dialect.attention
        if spelling == "whole":
            return self._canonical(q, k, v, attn_mask, is_causal, factor)
        if spelling == "standard":
            return self._standard(q, k, v, attn_mask, is_causal, factor)
        if enable_gqa:
            k, v = (t.repeat_interleave(q.dims[1] // t.dims[1], 1) for t in (k, v))
        return self._plain(q, k, v, attn_mask, is_causal, factor)

    def _canonical(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        for operand in (q, k, v):
            operand.value.type = ir.TensorType(TYPES[operand.dtype])
            operand.value.shape = ir.Shape([d if isinstance(d, int) else None for d in operand.dims])
        operands: list[ir.Value | None] = [q.value, k.value, v.value]
        if mask is not None:
            operands += [mask.value] if mask.dtype == torch.bool else [None, mask.value]
        value = self._tape.op(
            "deployml.canonical::Attention",
            *operands,
            scale=scale,
            causal="upper_left" if causal else "none",
            origin="sdpa",
        )
        value.type, value.shape = ir.TensorType(TYPES[q.dtype]), None
        return q.made(value, (*q.dims[:3], v.dims[3]))

    def _standard(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        more = []
        if mask is not None:  # onnxruntime wants the last two axes of a mask whole
            more = [self._tape.op("Expand", mask.value, self._tape.shape([q.size_of(2), k.size_of(2)]))]
        value = self._tape.op("Attention", q.value, k.value, v.value, *more, scale=scale, is_causal=int(causal))
        return q.made(value, (*q.dims[:3], v.dims[3]))

    def _plain(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
        """As torch's exporter spells the call: the root of the scale on both sides, masks added."""
        root = math.sqrt(scale)
        if causal:
            mask = self.ones(q.size_of(2), k.size_of(2)).tril().bool()
        scores = (q * root) @ (k.mT * root)
        if mask is None:
            return self.softmax(scores, -1) @ v
        if mask.dtype == torch.bool:
            mask = self.where(mask, lift(self._tape, 0.0, q.dtype), float("-inf"))
        weights = self.softmax(scores + mask, -1)
        return self.where(self.isnan(weights), 0.0, weights) @ v


def _grown(size: Any, front: Any, back: Any) -> Any:
    """A length with padding."""
    fixed = isinstance(size, int) and isinstance(front, int) and isinstance(back, int)
    return size + front + back if fixed else size if (front, back) == (0, 0) else None


class _Square(Tensor):
    """What torch.ones gives: the only tensor whose triangle is asked for."""

    def tril(self, diagonal: int | Size = 0) -> Tensor:
        more: list[ir.Value] = []
        if not (isinstance(diagonal, int) and diagonal == 0):
            more = [lift(self.tape, diagonal, torch.int64).value]
        return self.op("Trilu", *more, upper=0)
