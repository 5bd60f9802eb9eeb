"""Operators that onnxruntime lacks: schema, reference and compiled kernels, one folder an operator."""

from __future__ import annotations

from .libraries import DOMAIN, Backend, available, built_for, library_for, library_path, register, registering

__all__ = ["DOMAIN", "Backend", "available", "built_for", "library_for", "library_path", "register", "registering"]
