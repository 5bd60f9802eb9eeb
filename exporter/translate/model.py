"""``translate``: from a captured program to an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from ..capture.attention_op import ATTENTION
from ..capture.captured import Captured
from ..capture.quiet import quiet
from ..source_map import SourceMap
from .attention import translate_attention
from .names import name_axes, name_inputs, name_outputs
from .origins import replace_metadata

__all__ = ["Translated", "translate"]


@dataclass(frozen=True)
class Translated:
    """An ONNX graph in which each captured attention is one canonical node.

    Attributes:
        model: The graph; weights share memory with the torch module.
        source_map: Value name -> module path and source line.
        notes: Sentences to show to the user.
    """

    model: ir.Model
    source_map: SourceMap
    notes: tuple[str, ...] = ()


def translate(captured: Captured, *, opset: int) -> Translated:
    """Translate a captured program to ONNX.

    Args:
        captured: The program and the names of its inputs, outputs and axes.
        opset: Version of the default ONNX operator set to use, 18 or newer.

    Returns:
        The graph with every attention one ``deployml.canonical::Attention`` node, named inputs, outputs and
        axes, and no path of this machine in it.

    Raises:
        UnsupportedError: operators of the program have no ONNX translation; all of them are listed.
    """
    with quiet():
        model = _convert(captured, opset)
    replace_metadata(model)
    name_inputs(model, captured.input_names)
    name_outputs(model, captured.output_names)
    name_axes(model, captured.axis_names)
    return Translated(model, SourceMap.of(model), captured.notes)


def _convert(captured: Captured, opset: int) -> ir.Model:
    table: dict[Any, Any] = {ATTENTION: translate_attention}
    converted = torch.onnx.export(
        captured.program,
        dynamo=True,
        optimize=False,
        verbose=False,
        opset_version=opset,
        custom_translation_table=table,
    )
    assert converted is not None
    return converted.model
