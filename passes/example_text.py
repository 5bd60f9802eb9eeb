"""Writes the ONNX text of small graphs, for the examples that rules carry."""

from __future__ import annotations

from .rule import Example

__all__ = ["declines", "fires", "graph_text"]


def graph_text(inputs: str, outputs: str, body: str, *, constants: str = "", opset: int = 20) -> str:
    """A model in ONNX's textual form.

    Args:
        inputs: Such as "float[B,S,8] x".
        outputs: Such as "float[B,S,8] y".
        body: Node statements.
        constants: Initializers, such as "float two = {2}, float[2] w = {1, 3}".
        opset: Version of ai.onnx.
    """
    held = f"<{constants}>" if constants else ""
    imports = f'"": {opset}, "com.microsoft": 1'
    return f"<ir_version: 9, opset_import: [{imports}]>\nexample ({inputs}) => ({outputs}) {held} {{ {body} }}"


def fires(
    inputs: str,
    outputs: str,
    body: str,
    *,
    emits: dict[str, int],
    constants: str = "",
    opset: int = 20,
    times: int = 1,
    onnxruntime: tuple[int, ...] = (1, 31),
) -> Example:
    """An example on which a rule applies ``times`` times and leaves the operators named in ``emits``."""
    text = graph_text(inputs, outputs, body, constants=constants, opset=opset)
    return Example(text=text, fires=times, emits=emits, onnxruntime=onnxruntime)


def declines(
    inputs: str,
    outputs: str,
    body: str,
    *,
    because: str,
    constants: str = "",
    opset: int = 20,
    onnxruntime: tuple[int, ...] = (1, 31),
) -> Example:
    """An example that a rule refuses with this reason."""
    text = graph_text(inputs, outputs, body, constants=constants, opset=opset)
    return Example(text=text, because=because, onnxruntime=onnxruntime)
