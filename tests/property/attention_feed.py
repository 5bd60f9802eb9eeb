"""Random inputs of the attention modules, and which rows their masks leave any key."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from .attention_spec import WIDTH, AttentionSpec
from .attention_tokens import COLUMNS, MEMORY

__all__ = ["AXES", "inputs", "padded", "part_of_batch", "rows_with_keys"]

#: Names of the free axes of each input.
AXES = {
    "x": ("b", "s", None), "y": ("b", "t", None), "tokens": ("b", "s"), "keys": ("b", "t"), "lengths": ("b",),
    "segments": ("b", "s"), "add_s": ("b", None, "s", "s"), "add_t": ("b", None, "s", "t"),
    "keep_s": ("b", None, "s", "s"), "keep_t": ("b", None, "s", "t"),
}  # fmt: skip


def inputs(size: tuple[int, int, int], seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random inputs by name for a batch, a query length and a key length."""
    batch, rows, columns = size
    g = torch.Generator().manual_seed(seed)

    def flags(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=g) > 0.3

    given = {
        "x": torch.randn(batch, rows, WIDTH, generator=g),
        "y": torch.randn(batch, columns, WIDTH, generator=g),
        "tokens": flags(batch, rows).long(),
        "keys": flags(batch, columns).long(),
        "lengths": torch.randint(0, rows + 1, (batch,), generator=g),
        "segments": torch.randint(0, 3, (batch, rows), generator=g),
        "add_s": torch.randn(batch, 1, rows, rows, generator=g),
        "add_t": torch.randn(batch, 1, rows, columns, generator=g),
        "keep_s": flags(batch, 1, rows, rows),
        "keep_t": flags(batch, 1, rows, columns),
    }
    return {name: v.to(dtype) if v.is_floating_point() else v for name, v in given.items()}


def padded(given: Mapping[str, torch.Tensor], more: int, seed: int) -> dict[str, torch.Tensor]:
    """The same inputs with ``more`` positions of padding after the queries and after the keys."""
    batch, rows = given["x"].shape[:2]
    wide = inputs((batch, rows + more, given["y"].shape[1] + more), seed, given["x"].dtype)
    for name, tensor in given.items():
        free = [axis for axis in AXES[name] if axis is not None]
        wide[name][tuple(slice(n) for n in tensor.shape)] = tensor
        if name in ("tokens", "keys"):
            wide[name][:, tensor.shape[1] :] = 0
        if free == ["b"]:
            wide[name] = tensor
    return wide


def part_of_batch(given: Mapping[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row of a batch, as a batch of one."""
    return {name: tensor[row : row + 1] for name, tensor in given.items()}


def rows_with_keys(spec: AttentionSpec, given: Mapping[str, torch.Tensor]) -> np.ndarray:
    """(B, S) flags: whether the masks leave a row any key. Written apart from the modules, in numpy."""
    batch, rows = given["x"].shape[:2]
    if spec.tokens in ("windows", "shifted"):
        return np.ones((batch, rows), bool)  # as many keys as queries, and no mask forbids a token itself
    wide = COLUMNS.get(spec.tokens, 1)
    columns = given["y"].shape[1] if spec.cross else rows
    rows, columns = rows * wide, _keys(spec, columns, given["y"].shape[1])
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    tokens = _of_keys(spec, given["keys"], given["tokens"]) != 0
    lengths, segments = given["lengths"].numpy(), given["segments"].numpy()
    full = _of_keys(spec, given["keep_t"], given["keep_s"])
    full = full[:, 0]
    meaning: dict[str, Callable[[], np.ndarray]] = {
        "causal": lambda: j <= i,
        "lower_right": lambda: j <= i + columns - rows,
        "padding": lambda: tokens[:, None, :],
        "lengths": lambda: (j < lengths[:, None])[:, None, :],
        "left": lambda: (j >= lengths[:, None])[:, None, :],
        "input": lambda: full,
        "window": lambda: (j <= i) & (i - j < spec.window),
        "band": lambda: np.abs(i - j) < spec.window,
        "prefix": lambda: (j <= i) | (j < spec.window),
        "block": lambda: i // spec.window == j // spec.window,
        "segments": lambda: segments[:, :, None] == segments[:, None, :],
        "queries": lambda: tokens[:, :, None] & tokens[:, None, :],
    }
    keep = np.ones((batch, rows, columns), bool)
    for name in spec.masks:
        keep = keep & meaning[name]()
    return keep.any(-1).reshape(batch, -1, wide).all(-1)


def _keys(spec: AttentionSpec, positions: int, others: int) -> int:
    """How many keys there are."""
    wide = COLUMNS.get(spec.tokens, 1)
    if spec.reduce:
        positions, wide = -(-positions // 2), -(-wide // 2)
    more = {"learned": MEMORY, "zeros": 1, "sequence": others}.get(spec.memory, 0)
    return positions * wide + more


def _of_keys(spec: AttentionSpec, other: torch.Tensor, own: torch.Tensor) -> np.ndarray:
    """Flags of keys, on the last axis, as the keys stand; those of a memory are kept."""
    flags = (other if spec.cross else own).numpy()
    if spec.memory == "sequence":
        return np.concatenate((other.numpy(), flags), axis=-1)
    flags = flags[..., ::2] if spec.reduce else flags
    front, back = {"learned": (MEMORY, 0), "zeros": (0, 1)}.get(spec.memory, (0, 0))
    pads = [(0, 0)] * (flags.ndim - 1) + [(front, back)]
    return np.pad(flags, pads, constant_values=1)
