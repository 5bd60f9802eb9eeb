"""``deployml::MixtureOfExperts``: see :mod:`.op` for what it computes and :mod:`.body` for its ONNX form."""

from __future__ import annotations

from .body import add_function, function_body, make_node
from .op import ACTIVATIONS, ATTRIBUTES, NAME, Attributes, Signature, naive, reference, signatures

__all__ = [
    "ACTIVATIONS",
    "ATTRIBUTES",
    "NAME",
    "Attributes",
    "Signature",
    "add_function",
    "function_body",
    "make_node",
    "naive",
    "reference",
    "signatures",
]
