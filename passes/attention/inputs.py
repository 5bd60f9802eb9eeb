"""Layouts and mask inputs that several lowerings share."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..graph import Builder
from ..masks import KeyPadding
from ..rule import Declined
from ..symbols import broadcast, length, same_dim
from .site import Site

__all__ = ["additive_mask", "fold_heads", "keep_flags", "key_padding", "repeat_heads", "split_heads"]


def fold_heads(g: Builder, value: ir.Value) -> ir.Value:
    """(B, N, S, H) to (B, S, N * H). Written in full; layout rules cancel it against what made the value."""
    shape = value.shape
    assert shape is not None
    batch, heads, rows, size = shape
    assert isinstance(heads, int) and isinstance(size, int)
    moved = g.op("Transpose", value, perm=[0, 2, 1, 3], shape=[batch, rows, heads, size])
    return g.op("Reshape", moved, g.const(np.array([0, 0, heads * size], np.int64)), shape=[batch, rows, heads * size])


def split_heads(g: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    """(B, S, N * H) back to (B, N, S, H), the shape of ``like``."""
    assert like.shape is not None
    batch, heads, rows, size = like.shape
    split = g.op("Reshape", value, g.const(np.array([0, 0, heads, size], np.int64)), shape=[batch, rows, heads, size])
    return g.op("Transpose", split, perm=[0, 2, 1, 3], shape=like.shape, dtype=like.dtype)


def repeat_heads(g: Builder, value: ir.Value, heads: int) -> ir.Value:
    """Repeat key/value heads so that there are ``heads`` of them: (B, Nkv, T, H) to (B, N, T, H)."""
    assert value.shape is not None
    batch, kv_heads, rows, size = value.shape
    assert isinstance(kv_heads, int)
    if kv_heads == heads:
        return value
    wide = g.op("Unsqueeze", value, g.const(np.array([2], np.int64)))
    wide = g.op("Expand", wide, g.const(np.array([1, 1, heads // kv_heads, 1, 1], np.int64)))
    return g.op("Reshape", wide, g.const(np.array([0, heads, -1, size], np.int64)), shape=[batch, heads, rows, size])


def key_padding(g: Builder, site: Site) -> ir.Value:
    """The (B, T) int32 keep flags of a site whose mask is key padding alone."""
    assert site.padding is not None
    flags = keep_flags(g, site, site.padding)
    flags = g.op("Cast", flags, to=ir.DataType.INT32, dtype=ir.DataType.INT32, shape=flags.shape)
    query, key = site.node.query, site.node.key
    batch, keys = query.shape[0], key.shape[2]  # type: ignore[index]
    if same_dim(flags.shape[0], batch):  # type: ignore[index]
        return flags
    full = g.op("Concat", length(g, query, 0), length(g, key, 2), axis=0, dtype=ir.DataType.INT64, shape=[2])
    return g.op("Expand", flags, full, dtype=ir.DataType.INT32, shape=[batch, keys])


def keep_flags(g: Builder, site: Site, fact: KeyPadding) -> ir.Value:
    """The (B, T) or (1, T) boolean keep flags that a padding fact of a site speaks of."""
    assert fact.value.shape is not None
    flags = fact.value
    if flags.dtype != ir.DataType.BOOL:
        flags = g.op("Cast", flags, to=ir.DataType.BOOL, dtype=ir.DataType.BOOL, shape=flags.shape)
    if fact.how == "zero":
        flags = g.op("Not", flags, dtype=ir.DataType.BOOL, shape=flags.shape)
    if (fact.batch_axis, fact.key_axis, len(fact.value.shape)) == (0, 1, 2):
        return flags
    if fact.batch_axis is not None and fact.batch_axis > fact.key_axis:
        raise Declined("mask-layout", "the key axis of the padding flags stands before the batch", at=fact.value)
    rows = 1 if fact.batch_axis is None else fact.value.shape[fact.batch_axis]
    keys = site.node.key.shape[2]  # type: ignore[index]
    lead = g.const(np.array([-1], np.int64))
    flat = g.op("Concat", lead, length(g, site.node.key, 2), axis=0, dtype=ir.DataType.INT64, shape=[2])
    return g.op("Reshape", flags, flat, dtype=ir.DataType.BOOL, shape=[rows, keys])


def additive_mask(g: Builder, site: Site, *, include_causal: bool = False, clamp: bool = False) -> ir.Value | None:
    """Mask and bias of a site as one float (1|B, 1|N, S, T) tensor, None when there is neither.

    Forbidden places hold the lowest finite number: every kernel of onnxruntime takes it for "no key", and a row
    of nothing but forbidden keys stays finite. ``clamp`` raises minus infinities of the bias to it, for kernels
    that make NaN of a row of them; NaN would spread to good rows through the keys of the next layer.
    """
    node = site.node
    dtype = node.query.dtype or ir.DataType.FLOAT
    lowest = g.const(np.asarray(ml_dtypes.finfo(dtype.numpy()).min, dtype.numpy()))
    bias = node.bias
    keep = node.mask
    if include_causal and node.causal != "none":
        causal = _lower_triangle(g, site)
        keep = (
            causal if keep is None else g.op("And", keep, causal, dtype=ir.DataType.BOOL, shape=broadcast(keep, causal))
        )
    if keep is not None:
        base = bias if bias is not None else g.const(np.zeros((), dtype.numpy()))
        bias = g.op("Where", keep, base, lowest, dtype=dtype, shape=broadcast(keep, base))
    if bias is None:
        return None
    if clamp and site.infinite:
        bias = g.op("Max", bias, lowest, dtype=dtype, shape=bias.shape)
    return _full_rows(g, bias, site)


def _full_rows(g: Builder, bias: ir.Value, site: Site) -> ir.Value:
    """Bring a bias to rank 4 with full query and key axes; batch and head axes may stay 1."""
    query, key = site.node.query, site.node.key
    assert query.shape is not None and key.shape is not None
    shape = bias.shape
    if (
        shape is not None
        and len(shape) == 4
        and same_dim(shape[2], query.shape[2])
        and same_dim(shape[3], key.shape[2])
    ):
        return bias
    if shape is not None and len(shape) < 4:
        axes = g.const(np.arange(4 - len(shape), dtype=np.int64))
        bias = g.op("Unsqueeze", bias, axes, shape=[1] * (4 - len(shape)) + list(shape))
    ones = g.const(np.array([1, 1], np.int64))
    full = g.op("Concat", ones, length(g, query, 2), length(g, key, 2), axis=0, dtype=ir.DataType.INT64, shape=[4])
    head = list(bias.shape[:2]) if bias.shape is not None and len(bias.shape) == 4 else [None, None]
    return g.op("Expand", bias, full, shape=[*head, query.shape[2], key.shape[2]])


def _lower_triangle(g: Builder, site: Site) -> ir.Value:
    rows, columns = length(g, site.node.query, 2), length(g, site.node.key, 2)
    full = g.op("Concat", rows, columns, axis=0, dtype=ir.DataType.INT64, shape=[2])
    ones = g.op("ConstantOfShape", full, value=ir.tensor(np.array([1], np.int64)), dtype=ir.DataType.INT64)
    if site.node.causal == "lower_right":
        offset = g.op("Squeeze", g.op("Sub", columns, rows), g.const(np.array([0], np.int64)))
        lower = g.op("Trilu", ones, offset, upper=0)
    else:
        lower = g.op("Trilu", ones, upper=0)
    shape = [site.node.query.shape[2], site.node.key.shape[2]]  # type: ignore[index]
    return g.op("Cast", lower, to=ir.DataType.BOOL, dtype=ir.DataType.BOOL, shape=shape)
