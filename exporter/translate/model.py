"""``translate``: from a captured program to an ONNX graph."""

from __future__ import annotations

import re
from collections import ChainMap
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass

from ...runtime.errors import DeploymlError, UnsupportedError
from ..capture.attention_op import ATTENTION
from ..capture.captured import Captured
from ..capture.quiet import quiet
from ..capture.recurrence_op import LINEAR_ATTENTION
from ..source_map import SourceMap
from .attention import translate_attention
from .bfloat16 import widen_bfloat16
from .convolution import convolution_table
from .filled import filled_under_masks
from .foreign_ops import open_custom_ops, untranslated_error
from .grouped_matmul import grouped_matmul_table
from .names import name_apart, name_axes, name_inputs, name_outputs
from .origins import replace_metadata
from .overwrite import overwrite_table
from .recurrence import translate_linear_attention
from .special import special_table
from .split import finish_splits, split_table
from .strided import storage_ordered

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
    finish_splits(model)
    replace_metadata(model)
    name_apart(model)
    name_inputs(model, captured.input_names)
    name_outputs(model, captured.output_names)
    name_axes(model, captured.axis_names)
    ShapeInferencePass(data_prop=True)(model)
    widen_bfloat16(model)
    return Translated(model, SourceMap.of(model), captured.notes)


def _convert(captured: Captured, opset: int) -> ir.Model:
    attention = {ATTENTION: translate_attention, LINEAR_ATTENTION: translate_linear_attention}
    tables = (grouped_matmul_table(), split_table(), special_table(), overwrite_table(), convolution_table())
    table = dict(ChainMap(attention, *tables))
    program = filled_under_masks(storage_ordered(open_custom_ops(captured.program, table)))
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=opset,
            custom_translation_table=table,
        )
    except Exception as error:  # torch has no common base for what goes wrong here
        raise _explained(error, program, table, opset) from error
    assert converted is not None
    return converted.model


def _explained(error: Exception, program: Any, table: dict[Any, Any], opset: int) -> Exception:
    """The error to raise for a failed conversion: ours if we caused or can explain it, else a plain message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DeploymlError):
            return cause
        last, cause = cause, cause.__cause__
    listed = untranslated_error(program, table, opset)
    if listed is not None:
        return listed
    constant = re.search(r"Constant (\S+) is mutated", str(last))
    if constant is not None:
        return UnsupportedError(
            f"The model writes into '{constant[1]}' when it is called: a tensor attribute that is no buffer.",
            hint=f"Make it a buffer (self.register_buffer('{constant[1]}', ...)), or do not write in place.",
        )
    lines = [line.strip() for line in str(last).splitlines() if line.strip()]
    return UnsupportedError(
        f"torch could not write the model as ONNX: {(lines or [type(last).__name__])[0][:300]}",
        hint="Run with --debug to see torch's own message, and change the operation it names.",
    )
