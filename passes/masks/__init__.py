"""Attention masks as typed facts: causal, window, key padding, bias, proven from the graph by index algebra."""

from .facts import (
    Always,
    Causal,
    Conjunct,
    KeyLengths,
    KeyPadding,
    MaskFacts,
    Window,
    describe,
    entails_causal,
    is_only_causal,
    key_padding_only,
    window_of,
)
from .recognise import analyse
from .tensor import Memo

__all__ = [
    "Always",
    "Causal",
    "Conjunct",
    "KeyLengths",
    "KeyPadding",
    "MaskFacts",
    "Memo",
    "Window",
    "analyse",
    "describe",
    "entails_causal",
    "is_only_causal",
    "key_padding_only",
    "window_of",
]
