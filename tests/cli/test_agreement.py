"""The command line and the Python API offer the same options with the same defaults."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

import deployml
from deployml import cli
from deployml.exporter.options import Options, SourceOptions
from deployml.runtime.arguments import with_groups

#: Parameter -> why only one side has it.
ONLY_IN_PYTHON = {"args", "kwargs", "dynamic_shapes", "raise_on_failure"}
ONLY_ON_THE_COMMAND_LINE = {"json", "junit", "github"}
SAME = ("export", "optimize", "validate", "bench", "lock", "check", "package", "explain")


def parameters(function):
    return inspect.signature(function, eval_str=True).parameters


@pytest.mark.parametrize("name", SAME)
def test_both_sides_have_the_same_parameters(name):
    api, command = parameters(getattr(deployml, name)), parameters(with_groups(getattr(cli, name)))
    objects = {"module_or_path": "source", "path_or_model": "source"}
    offered = {objects.get(p, p) for p in api} - ONLY_IN_PYTHON - {"progress"}
    assert offered == set(command) - ONLY_ON_THE_COMMAND_LINE


@pytest.mark.parametrize("name", SAME)
def test_both_sides_have_the_same_defaults(name):
    api, command = parameters(getattr(deployml, name)), parameters(with_groups(getattr(cli, name)))
    of_its_own = {("export", "output"), ("export", "bench"), ("optimize", "bench")}  # timing is on at a terminal
    shared = [p for p in api if p in command and (name, p) not in of_its_own]
    given = {p: command[p].default for p in shared}
    # None on the command line leaves the choice to the library.
    assert {p: d for p, d in given.items() if d is not None and d != api[p].default} == {}


@pytest.mark.parametrize(("name", "kind"), [("export", Options), ("optimize", Options)])
def test_public_functions_take_every_option(name, kind):
    taken = parameters(getattr(deployml, name))
    assert {f.name: f.default for f in fields(kind)} == {f.name: taken[f.name].default for f in fields(kind)}


@pytest.mark.parametrize("name", ["export", "validate", "bench", "check"])
def test_whatever_opens_a_torch_source_takes_every_option_of_it(name):
    taken = parameters(getattr(deployml, name))
    assert {f.name: f.default for f in fields(SourceOptions)} == {
        f.name: taken[f.name].default for f in fields(SourceOptions)
    }


@pytest.mark.parametrize("name", ["export", "optimize", "bench", "check"])
def test_help_shows_what_stands_in_brackets(name, deployml_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = deployml_command(name, "--help").out
    assert "[default:" in said
    assert name == "optimize" or "ids:int64[batch,seq]" in said
