"""``capture``: from a loaded model to a program with named inputs, outputs and axes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram

from ..loaded import Loaded
from .assume import Decision, constant_answers, looked_for, trace_assuming
from .captured import Captured
from .chance import refuse_chance
from .complex_layout import open_complex_layout
from .flex import open_flex_attention
from .inputs import Axis, Examples, examples_of
from .limits import trace_beyond_limits
from .lost_axes import lost_axes, lost_axes_error, merged_axes
from .ones import trace_beyond_ones
from .outputs import Outputs
from .promotion import cast_promoted_integers
from .quiet import quiet
from .refusals import is_data_dependent, refusal
from .regions import open_idle_regions
from .saved import capture_saved
from .shortcuts import LongWay, trace_without_shortcuts
from .sizes import size_variants
from .surgery import drop_empty_concatenations, keep_attention_whole
from .torchscript import as_module
from .trace import fixed_size, quiet_run, trace, user_tensors
from .trimming import count_trims_from_the_front
from .whole_numbers import numbers_of_sizes

__all__ = ["capture"]


def capture(loaded: Loaded, *, keep_attention: bool = True) -> Captured:
    """Trace a model with ``torch.export``, every attention call kept as one node.

    Args:
        loaded: The model with its example inputs and dynamic axes. A saved program is taken as it is, a
            TorchScript module is converted first.
        keep_attention: Replace scaled-dot-product attention by ``deployml::attention``; without it torch
            decomposes the calls.

    Returns:
        The program with the names of its inputs, outputs and axes.

    Raises:
        InputError: the example inputs do not fit the model.
        UnsupportedError: torch cannot trace the model, its result is drawn at random, or a declared dynamic axis was
            lost.
    """
    with quiet():
        if loaded.kind == "program":
            captured = capture_saved(loaded)
        else:
            captured = _capture_module(loaded)
        open_idle_regions(captured.program)
        open_flex_attention(captured.program)
        drop_empty_concatenations(captured.program)
        count_trims_from_the_front(captured.program)
        cast_promoted_integers(captured.program)
        open_complex_layout(captured.program)
        calls = keep_attention_whole(captured.program) if keep_attention else 0
    return captured.finished(calls)


def _capture_module(loaded: Loaded) -> Captured:
    module = as_module(loaded) if loaded.kind == "torchscript" else loaded.module
    examples = examples_of(loaded)
    outputs = Outputs()
    program, assumed = _trace_at_best_sizes(module, examples, outputs, loaded.name)
    refuse_chance(program, examples, loaded.name)
    if len(outputs.names) != len(program.graph_signature.user_outputs):
        # torch calls no hooks on a graph that was converted from TorchScript: name what the module returns.
        outputs(module, (), quiet_run(loaded.module, examples))
    names, axes = name_axes(program, examples)
    return Captured(
        program=program,
        input_names=tuple(leaf.name for leaf in examples.tensors),
        output_names=outputs.names,
        dynamic_axes=axes,
        axis_names=names,
        notes=(
            *outputs.dropped,
            *(decision.note() for decision in assumed),
            *_merge_notes(program, examples),
            *_fixed_notes(program, examples),
            *_limit_notes(program, examples, names),
        ),
    )


def _trace_at_best_sizes(
    module: torch.nn.Module, examples: Examples, outputs: Outputs, name: str
) -> tuple[ExportedProgram, tuple[Decision | LongWay, ...]]:
    """Trace at the first sizes that keep every declared axis apart from the others and from constants."""
    second_best: ExportedProgram | None = None
    failure: Exception | None = None
    for variant in size_variants(examples):
        try:
            with numbers_of_sizes() as numbers:
                program = trace(module, variant, outputs)
        except Exception as error:  # torch has no common base for what it raises here
            failure = failure or error
            if is_data_dependent(error):
                break
            continue
        if not merged_axes(program, variant) and not _lost(program, variant):
            in_sizes = _keeping(module, variant, outputs, whole=True) if numbers else None
            whole, program = in_sizes is not None, in_sizes or program
            program = trace_beyond_ones(module, program, examples, outputs, whole=whole) or program
            return trace_beyond_limits(module, program, examples, outputs, whole=whole) or program, ()
        second_best = second_best or program
    if second_best is not None and not _lost(second_best, examples):
        return second_best, ()
    found = _otherwise(module, examples, outputs, failure)
    if found is not None:
        return found
    error = lost_axes_error(module, examples, name)
    if error is None:
        assert failure is not None
        error = refusal(failure, module, examples, name)
    raise error from failure


def _otherwise(
    module: torch.nn.Module, examples: Examples, outputs: Outputs, failure: Exception | None
) -> tuple[ExportedProgram, tuple[Decision | LongWay, ...]] | None:
    """The ways that remain after the usual trace failed or lost an axis."""
    if failure is not None and is_data_dependent(failure):
        return _by_values(module, examples, outputs)
    if failure is None:
        return None
    program = _broadcasting(module, examples, outputs) or _in_sizes(module, examples, outputs)
    program = program or _strictly(module, examples, outputs)
    return None if program is None else (program, ())


def _by_values(
    module: torch.nn.Module, examples: Examples, outputs: Outputs
) -> tuple[ExportedProgram, tuple[Decision | LongWay, ...]] | None:
    """Round branches on values: with the numbers that the model looks for among its ids, else as if there were none."""
    numbers = looked_for(module, examples)
    for tried in (numbers, ()) if numbers else ((),):
        found = trace_assuming(module, examples, outputs, tried)
        found = found or trace_without_shortcuts(module, examples, outputs, tried)
        if found is not None:
            program, assumed = found
            return program, assumed if tried else _told_apart(assumed, module, examples, numbers)
    return None


def _told_apart(
    assumed: tuple[Decision | LongWay, ...], module: torch.nn.Module, examples: Examples, numbers: tuple[int, ...]
) -> tuple[Decision | LongWay, ...]:
    """What was assumed, with the numbers for which an answer is known to be another."""
    found = {number: constant_answers(module, examples, (number,)) for number in numbers}
    steady = {number: answers for number, answers in found.items() if answers is not None}

    def told(decision: Decision | LongWay) -> Decision | LongWay:
        if not isinstance(decision, Decision):
            return decision
        others = tuple(number for number, answers in steady.items() if decision.frame not in answers)
        return dataclasses.replace(decision, differs_for=others)

    return tuple(told(decision) for decision in assumed)


def _broadcasting(module: torch.nn.Module, examples: Examples, outputs: Outputs) -> ExportedProgram | None:
    """Let a computed size that is 1 in the examples be 1: the batch of one input by that of another, say."""
    for variant in size_variants(examples):
        if min(variant.sizes().values(), default=2) < 2:
            continue  # an axis that is 1 in the examples would stay 1
        program = _keeping(module, variant, outputs, broadcast_at_one=True)
        if program is not None:
            return program
    return None


def _in_sizes(module: torch.nn.Module, examples: Examples, outputs: Outputs) -> ExportedProgram | None:
    """Let ``int`` of a size and ``len`` of a tensor be sizes."""
    programs = (_keeping(module, variant, outputs, whole=True) for variant in size_variants(examples))
    return next((program for program in programs if program is not None), None)


def _keeping(module: torch.nn.Module, examples: Examples, outputs: Outputs, **how: bool) -> ExportedProgram | None:
    """A trace in which every axis stays, and stays apart."""
    try:
        program = trace(module, examples, outputs, **how)
    except Exception:  # the first failure is the clearer one to report
        return None
    return None if merged_axes(program, examples) or _lost(program, examples) else program


def _strictly(module: torch.nn.Module, examples: Examples, outputs: Outputs) -> ExportedProgram | None:
    """Let torch read the bytecode instead of running it, which follows NumPy and ``int(x.shape[1])``.

    Returns None when that fails too: the first failure is the clearer one to report.
    """
    try:
        program = trace(module, examples, strict=True)
        outputs(module, (), quiet_run(module, examples))  # names as of a real call
    except Exception:  # the first failure is the clearer one to report
        return None
    complete = len(program.graph_signature.user_outputs) == len(outputs.names)
    return program if complete and not _hollow(program) and not _lost(program, examples) else None


def _hollow(program: ExportedProgram) -> bool:
    """Whether the program keeps tensors without values: what the trace made and lost sight of."""
    return any(isinstance(value, FakeTensor) for value in program.constants.values())


def _lost(program: ExportedProgram, examples: Examples) -> bool:
    return any(not lost.axis.automatic for lost in lost_axes(program, examples))


def _merge_notes(program: ExportedProgram, examples: Examples) -> tuple[str, ...]:
    return tuple(
        f"The model needs axes '{first}' and '{second}' to be equal; both are named '{first}'."
        for first, second in merged_axes(program, examples)
    )


def _fixed_notes(program: ExportedProgram, examples: Examples) -> tuple[str, ...]:
    return tuple(f"Note that {lost}." for lost in lost_axes(program, examples) if lost.axis.automatic)


def _limit_notes(program: ExportedProgram, examples: Examples, names: dict[str, str]) -> tuple[str, ...]:
    """Upper bounds that nobody declared: beyond them the model's code takes a branch the trace did not see."""
    declared = {axis.name: axis.high for _, _, axis in examples.dynamic() if axis.high and not axis.derived}
    notes = []
    for symbol, bounds in program.range_constraints.items():
        name = names.get(str(symbol))
        if name is None or not bounds.upper.is_Integer or declared.get(name) == int(bounds.upper):
            continue
        notes.append(
            f"The graph takes axis '{name}' up to {int(bounds.upper)}: beyond it the model's code goes another way "
            "(a branch or a loop on the size), which the trace did not see."
        )
    return tuple(notes)


def name_axes(program: ExportedProgram, examples: Examples) -> tuple[dict[str, str], dict[str, dict[int, str]]]:
    """Name the symbols of a program after the declared axes, and sums of them after their parts.

    Returns:
        torch's symbol -> name, and input -> axis -> name.
    """
    sizes = [
        (leaf, at, size.node.expr)
        for leaf, value in zip(examples.tensors, user_tensors(program), strict=True)
        for at, size in enumerate(value.shape)
        if fixed_size(size) is None
    ]
    names: dict[str, str] = {}
    for leaf, at, found in sorted(sizes, key=lambda each: not each[2].is_Symbol):  # parts before sums
        if str(found) not in names:
            declared = leaf.axes.get(at)
            text = None if declared is not None and (declared.derived or declared.summed) else _in_names(found, names)
            names[str(found)] = text or _axis_name(declared, leaf.name, at, names.values())
    axes: dict[str, dict[int, str]] = {}
    for leaf, at, found in sizes:
        axes.setdefault(leaf.name, {})[at] = names[str(found)]
    return names, axes


def _in_names(size: sympy.Expr, names: Mapping[str, str]) -> str | None:
    """A size that is a sum or a product of named ones, as text of their names: "past + sequence"."""
    symbols = size.free_symbols
    if size.is_Symbol or not symbols or not size.is_polynomial(*symbols) or any(str(s) not in names for s in symbols):
        return None
    parts = {s: sympy.Symbol(names[str(s)]) for s in symbols}
    return str(size.xreplace(parts)) if all(part.name.isidentifier() for part in parts.values()) else None


def _axis_name(declared: Axis | None, leaf: str, at: int, taken: Collection[str]) -> str:
    """The declared name, else one made of the input's, with which sizes can be computed ("batch.x" has a dot)."""
    if declared is not None and declared.name:
        return declared.name
    name = f"{re.sub(r'[^0-9A-Za-z_]', '_', leaf)}_{at}"
    return name if name not in taken else f"{name}_{len(taken)}"
