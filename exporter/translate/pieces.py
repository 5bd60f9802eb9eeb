"""Pieces of one computed size, ``chunk`` along a dynamic axis: slices instead of an ONNX sequence."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

__all__ = ["slice_pieces"]


def slice_pieces(node: ir.Node) -> bool:
    """Write the pieces of ``SplitToSequence`` with one computed size as ``Slice`` nodes, in place.

    onnxscript's folding ends with an error on such a node, and no other pass looks into a sequence.

    Returns:
        Whether it was done: not for another operator, for a list of sizes, nor where the sequence is read other than
        piece by piece.
    """
    if node.op_type != "SplitToSequence" or node.graph is None or len(node.inputs) < 2:
        return False
    whole, size = node.inputs
    users = [use.node for use in node.outputs[0].uses()]
    places = [_place(user) for user in users]
    if whole is None or size is None or size.shape is None or len(size.shape) or None in places:
        return False
    tape = Tape()
    wide = tape.op("Cast", [size], {"to": ir.DataType.INT64})
    step = tape.op("Reshape", [wide, _vector(tape, 1)])
    axes = _vector(tape, node.attributes["axis"].as_int() if "axis" in node.attributes else 0)
    for user, place in zip(users, places, strict=True):
        assert place is not None
        bounds = [tape.op("Mul", [step, _vector(tape, number)]) for number in (place, place + 1)]
        piece = tape.op("Slice", [whole, *bounds, axes])
        piece.type, piece.shape = user.outputs[0].type, user.outputs[0].shape
        piece.metadata_props.update(user.outputs[0].metadata_props)
        ir.convenience.replace_all_uses_with(user.outputs[0], piece, replace_graph_outputs=True)
    for made in tape.nodes:
        made.metadata_props.update(node.metadata_props)
    node.graph.insert_before(node, tape.nodes)
    for user in users:
        assert user.graph is not None
        user.graph.remove(user, safe=True)
    node.graph.remove(node, safe=True)
    return True


def _vector(tape: Tape, number: int) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": [number]})


def _place(user: ir.Node) -> int | None:
    """Which piece a node takes of a sequence; None for any other use."""
    if user.op_type != "SequenceAt" or len(user.inputs) != 2 or user.inputs[1] is None:
        return None
    number = ir.convenience.get_const_tensor(user.inputs[1])
    return None if number is None or int(number.numpy()) < 0 else int(number.numpy())
