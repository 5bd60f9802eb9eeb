"""Groups of options: what a library that reads signatures sees, and what the command gets."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, get_type_hints

from deployml.runtime.arguments import keywords, with_groups


@dataclass(frozen=True, kw_only=True)
class How:
    """A group."""

    fast: Annotated[bool, "an option"] = False
    names: list[str] | None = None


def run(path: str, *, count: int = 2, how: How) -> tuple[str, int, How]:
    """Say what was given."""
    return path, count, how


def test_the_fields_stand_in_the_place_of_the_group():
    seen = inspect.signature(with_groups(run), eval_str=True)
    assert list(seen.parameters) == ["path", "count", "fast", "names"]
    assert seen.parameters["path"].default is inspect.Parameter.empty
    assert seen.parameters["fast"].default is False
    assert seen.parameters["fast"].annotation == Annotated[bool, "an option"]
    assert get_type_hints(with_groups(run))["names"] == list[str] | None


def test_the_command_gets_its_group():
    command = with_groups(run)
    assert command(path="p", count=3, fast=True, names=["a"]) == ("p", 3, How(fast=True, names=["a"]))
    assert command.__name__ == "run" and command.__doc__ == "Say what was given."


def test_keywords_leave_out_what_was_not_given():
    assert keywords(How(), How(fast=True)) == {"fast": True}
    assert keywords(How(names=[])) == {"fast": False, "names": []}
