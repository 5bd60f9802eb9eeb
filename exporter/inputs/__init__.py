"""Example inputs and dynamic axes: the caller's, a file's, a text's, or what the model says of itself."""

from __future__ import annotations

from .choose import choose_inputs
from .given import Chosen, Given
from .spec import InputSpec, parse_specs

__all__ = ["Chosen", "Given", "InputSpec", "choose_inputs", "parse_specs"]
