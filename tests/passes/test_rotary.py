"""Rotary rules: tables by row of the batch, shifted and shuffled positions, partial and interleaved kinds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes import layout, rotary
from deployml.passes.cleanup import deduplicate
from deployml.passes.graph import attribute, census

from .rewriting import declined, outputs, parsed, rewrite

ROTARY = "com.microsoft::RotaryEmbedding"
ENDS = (
    "int64[1] zero = {0}, int64[1] half = {4}, int64[1] last = {3}, int64[1] far = {9223372036854775807}, "
    "int64[1] one = {1}, float[4] rates = {1, 0.5, 0.1, 0.01}"
)
TABLES = (
    "pf = Cast <to = 1> (p) pu = Unsqueeze (pf, end) f = Mul (pu, rates) f2 = Concat <axis = -1> (f, f) "
    "cos = Cos (f2) sin = Sin (f2) c = Unsqueeze (cos, one) s = Unsqueeze (sin, one) "
)


def turned(x: str, out: str) -> str:
    return (
        f"{x}l = Slice ({x}, zero, half, last) {x}h = Slice ({x}, half, far, last) {x}n = Neg ({x}h) "
        f"{x}r = Concat <axis = -1> ({x}n, {x}l) {x}a = Mul ({x}, c) {x}b = Mul ({x}r, s) {out} = Add ({x}a, {x}b) "
    )


def model_with_positions(shape: str) -> ir.Model:
    return parsed(
        f"float[B,4,S,8] q, float[B,2,S,8] k, int64[{shape}] p",
        "float[B,4,S,8] y, float[B,2,S,8] z",
        TABLES + turned("q", "y") + turned("k", "z"),
        constants=ENDS + ", int64[1] end = {-1}",
    )


@pytest.mark.parametrize("shape", ["B,S", "1,S"])
@pytest.mark.parametrize("kind", ["shifted", "shuffled", "by row"])
def test_positions_of_any_kind_mean_the_same(shape: str, kind: str) -> None:
    plain, model = model_with_positions(shape), model_with_positions(shape)
    rewrite(model, rotary.RULES)
    assert census(model)[ROTARY] == 2 and "Neg" not in census(model)
    rng = np.random.default_rng(11)
    batch, length = 3, 7
    rows = batch if shape[0] == "B" else 1
    positions = np.tile(np.arange(length), (rows, 1)) + 5
    if kind == "shuffled":
        positions = positions[:, ::-1].copy()
    if kind == "by row":
        positions += 13 * np.arange(rows)[:, None]
    feeds = {
        "q": rng.standard_normal((batch, 4, length, 8)).astype(np.float32),
        "k": rng.standard_normal((batch, 2, length, 8)).astype(np.float32),
        "p": positions.astype(np.int64),
    }
    for old, new in zip(outputs(plain, feeds), outputs(model, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-5)


def test_query_and_key_share_their_tables() -> None:
    model = model_with_positions("B,S")
    rewrite(model, rotary.RULES)
    deduplicate(model)
    counts = census(model)
    assert (counts["Cos"], counts["Sin"], counts["Range"], counts[ROTARY]) == (1, 1, 1, 2)


def test_tables_with_unequal_halves_are_left_alone() -> None:
    model = parsed(
        "float[B,4,S,8] q, float[1,S,4] f, float[1,S,4] g",
        "float[B,4,S,8] y",
        "f2 = Concat <axis = -1> (f, g) cos = Cos (f2) sin = Sin (f2) c = Unsqueeze (cos, one) "
        "s = Unsqueeze (sin, one) " + turned("q", "y"),
        constants=ENDS,
    )
    journal = rewrite(model, rotary.RULES)
    assert declined(journal) == ["table-not-doubled"]
    assert ROTARY not in census(model)


def test_a_scaled_table_keeps_its_scale() -> None:
    body = (
        "f2 = Concat <axis = -1> (f, f) cos = Cos (f2) sin = Sin (f2) cm = Mul (cos, scale) sm = Mul (sin, scale) "
        "c = Unsqueeze (cm, one) s = Unsqueeze (sm, one) " + turned("q", "y")
    )
    arguments = ("float[B,4,S,8] q, float[1,S,4] f", "float[B,4,S,8] y", body)
    constants = ENDS + ", float scale = {1.25}"
    plain, model = parsed(*arguments, constants=constants), parsed(*arguments, constants=constants)
    rewrite(model, rotary.RULES)
    assert census(model)[ROTARY] == 1
    rng = np.random.default_rng(5)
    feeds = {
        "q": rng.standard_normal((2, 4, 5, 8)).astype(np.float32),
        "f": rng.standard_normal((1, 5, 4)).astype(np.float32),
    }
    np.testing.assert_allclose(outputs(model, feeds)[0], outputs(plain, feeds)[0], rtol=0, atol=1e-5)


def test_the_two_halves_written_apart_are_seen() -> None:
    model = parsed(
        "float[B,2,S,8] x, float[1,1,S,4] c, float[1,1,S,4] s",
        "float[B,2,S,8] y",
        "a, b = Split <axis = -1, num_outputs = 2> (x) ac = Mul (a, c) bs = Mul (b, s) bc = Mul (c, b) "
        "sa = Mul (s, a) l = Sub (ac, bs) r = Add (bc, sa) y = Concat <axis = -1> (l, r)",
    )
    rewrite(model, rotary.RULES)
    assert census(model)[ROTARY] == 1 and "Split" not in census(model)


def test_a_wrong_sign_is_no_rotation() -> None:
    model = parsed(
        "float[B,2,S,8] x, float[1,1,S,4] c, float[1,1,S,4] s",
        "float[B,2,S,8] y",
        "a, b = Split <axis = -1, num_outputs = 2> (x) ac = Mul (a, c) bs = Mul (b, s) bc = Mul (c, b) "
        "sa = Mul (s, a) l = Add (ac, bs) r = Sub (bc, sa) y = Concat <axis = -1> (l, r)",
    )
    rewrite(model, rotary.RULES)
    assert ROTARY not in census(model)


def test_the_head_split_moves_behind_the_rotation_and_meets_its_undoing() -> None:
    model = parsed(
        "float[B,S,32] x, float[1,S,4] f",
        "float[B,S,32] y",
        "h = Reshape (x, split) q = Transpose <perm = [0, 2, 1, 3]> (h) f2 = Concat <axis = -1> (f, f) "
        "cos = Cos (f2) sin = Sin (f2) c = Unsqueeze (cos, one) s = Unsqueeze (sin, one) "
        + turned("q", "o")
        + "t = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (t, merged)",
        constants=ENDS + ", int64[4] split = {0, 0, 4, 8}, int64[3] merged = {0, 0, 32}",
    )
    rewrite(model, [*rotary.RULES, *layout.RULES])
    counts = census(model)
    assert counts[ROTARY] == 1 and "Transpose" not in counts
    node = next(n for n in model.graph if n.op_type == "RotaryEmbedding")
    assert attribute(node, "num_heads") == 4 and attribute(node, "interleaved") == 0


PARTS = {
    "slices": (
        "a = Slice (x, zero, one, end) b = Slice (x, one, two, end) cu = Unsqueeze (c, end) su = Unsqueeze (s, end)",
        "y = Concat <axis = -1> (re, im)",
    ),
    "picked": (
        "a = Gather <axis = -1> (x, first) b = Gather <axis = -1> (x, second) cu = Identity (c) su = Identity (s)",
        "ru = Unsqueeze (re, end) iu = Unsqueeze (im, end) y = Concat <axis = -1> (ru, iu)",
    ),
    "unbound": (
        "a1, b1 = Split <axis = -1, num_outputs = 2> (x) a = Squeeze (a1, end) b = Squeeze (b1, end) "
        "cu = Identity (c) su = Identity (s)",
        "ru = Unsqueeze (re, end) iu = Unsqueeze (im, end) y = Concat <axis = 4> (ru, iu)",
    ),
}


@pytest.mark.parametrize("batch", ["1", "B"])
@pytest.mark.parametrize("heads", ["S,2", "2,S"])
@pytest.mark.parametrize("parts", PARTS)
def test_complex_numbers_are_a_rotation(parts: str, heads: str, batch: str) -> None:
    before, after = PARTS[parts]
    table = "S,1" if heads == "S,2" else "1,S"
    arguments = (
        f"float[B,{heads},4,2] x, float[{batch},{table},4] c, float[{batch},{table},4] s",
        f"float[B,{heads},4,2] y",
        f"{before} ac = Mul (a, cu) bs = Mul (b, su) as = Mul (su, a) bc = Mul (b, cu) re = Sub (ac, bs) "
        f"im = Add (bc, as) {after}",
    )
    constants = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] end = {-1}, int64 first = {0}, "
    constants += "int64 second = {1}"
    plain, model = (parsed(*arguments, constants=constants) for _ in range(2))
    rewrite(model, rotary.RULES)
    assert census(model)[ROTARY] == 1 and "Sub" not in census(model)
    rng = np.random.default_rng(3)
    sizes = {"B": 3, "S": 5, "1": 1, "2": 2}
    shapes = {"x": [3, *(sizes[d] for d in heads.split(",")), 4, 2]}
    shapes |= {name: [sizes[batch], *(sizes[d] for d in table.split(",")), 4] for name in "cs"}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    np.testing.assert_allclose(outputs(model, feeds)[0], outputs(plain, feeds)[0], rtol=0, atol=1e-5)


def test_exchanged_parts_are_no_rotation() -> None:
    model = parsed(
        "float[B,S,2,4,2] x, float[1,S,1,4,1] c, float[1,S,1,4,1] s",
        "float[B,S,2,4,2] y",
        "a = Slice (x, zero, one, end) b = Slice (x, one, two, end) ac = Mul (a, c) bs = Mul (b, s) as = Mul (a, s) "
        "bc = Mul (b, c) re = Sub (bc, as) im = Add (ac, bs) y = Concat <axis = -1> (re, im)",
        constants="int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] end = {-1}",
    )
    rewrite(model, rotary.RULES)
    assert ROTARY not in census(model)


def test_a_constant_table_is_halved() -> None:
    angles = np.outer(np.arange(3), [1, 0.5, 0.1, 0.01])
    tables = ", ".join(
        f"float[3,8] {name} = {{{','.join(f'{x:.4f}' for x in np.tile(function(angles), 2).reshape(-1))}}}"
        for name, function in (("c", np.cos), ("s", np.sin))
    )
    model = parsed("float[B,4,3,8] q", "float[B,4,3,8] y", turned("q", "y"), constants=f"{ENDS}, {tables}")
    rewrite(model, rotary.RULES)
    assert census(model)[ROTARY] == 1
