"""Applies rules to ONNX text and compares with what the text computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deployml import custom_ops
from deployml.passes.cleanup import infer_shapes
from deployml.passes.engine import Engine
from deployml.passes.evaluate import Evaluator
from deployml.passes.example_text import graph_text
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.passes.rule import Context, Rule
from deployml.runtime.target import Target, TargetName

__all__ = ["declined", "outputs", "parsed", "rewrite"]


def parsed(inputs: str, results: str, body: str, *, constants: str = "", opset: int = 20) -> ir.Model:
    """A model from text, with its shapes inferred."""
    model = ir.from_onnx_text(graph_text(inputs, results, body, constants=constants, opset=opset))
    infer_shapes(model)
    return model


def rewrite(
    model: ir.Model,
    rules: Sequence[Rule],
    target: TargetName = "cpu",
    *,
    onnxruntime: tuple[int, ...] = (1, 31),
    disabled: Sequence[str] = (),
) -> Journal:
    """Run rules to their fixed point, in place, every rewrite proven."""
    journal = Journal()
    context = Context(model, Target(name=target, onnxruntime=onnxruntime, opset=model.graph.opset_imports[""]))
    prover = Prover(model, Evaluator(custom_ops.register))
    Engine(context, prover, journal, disabled=tuple(disabled)).run("test", rules)
    assert not [d for d in journal.declines if d.rolled_back]
    return journal


def declined(journal: Journal) -> list[str]:
    """Reasons of refusals, in order."""
    return [d.reason for d in journal.declines]


def outputs(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What a model computes, nothing optimised."""
    return Evaluator(custom_ops.register).prepare(model)(feeds)
