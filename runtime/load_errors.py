"""What onnxruntime says when a model does not load, in words a user can act on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .errors import DeploymlError, InputError, ToolchainError, UnsupportedError

__all__ = ["explain_load_error"]

_OWN_DOMAIN: Final = "deployml"
_RUNTIME_DOMAINS: Final = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml")
_UPDATE: Final = "pip install -U onnxruntime-gpu (or onnxruntime)"


def explain_load_error(error: Exception, *, where: str, libraries: tuple[str, ...] = ()) -> DeploymlError:
    """Turn an exception of ``InferenceSession(...)`` into the error to show.

    Args:
        error: What onnxruntime raised.
        where: The model, as the user named it.
        libraries: Names of the op libraries that were registered.
    """
    text = str(error)
    for rule in _RULES:
        match = re.search(rule.pattern, text, re.DOTALL)
        if match is not None:
            return rule.explain(match, where, libraries)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return _no_memory(where)
    return UnsupportedError(
        f"onnxruntime cannot load '{where}': {_first_sentence(text)}",
        hint="check the model with onnx.checker; if deployml made it, report this as a bug",
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: str
    explain: Callable[[re.Match[str], str, tuple[str, ...]], DeploymlError]


def _broken_file(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del match, libraries
    return InputError(
        f"'{where}' is not a whole ONNX model: it is truncated or of another format",
        hint="copy or export it again",
    )


def _data_missing(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del libraries
    name = _base_name(match["path"])
    return InputError(
        f"'{where}' keeps its weights in '{name}', which is not beside it",
        hint=f"copy '{name}' into the model's folder: the two files belong together",
    )


def _data_short(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del libraries
    return InputError(
        f"the weights file of '{where}' is truncated: initializer '{match['name']}' ends after byte "
        f"{int(match['offset']) + int(match['size'])}, the file has {match['length']}",
        hint="copy or export the model and its .data file again",
    )


def _data_escapes(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del libraries
    return InputError(
        f"the weights file '{_base_name(match['path'])}' of '{where}' lies outside the model's folder",
        hint="put the real file beside the model (cp -L follows a symbolic link); onnxruntime refuses other places",
    )


def _no_operator(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    domain, op = (match["domain"] or "").strip('"'), match["op"]
    name = f"{domain}::{op}" if domain else op
    if domain == _OWN_DOMAIN:
        known = f" (registered: {', '.join(libraries)})" if libraries else ""
        return ToolchainError(
            f"'{where}' uses {name}, an operator of deployml's own library, which is not registered{known}",
            hint="open the model with deployml.session(path), which registers it, or build it: deployml kernels build",
        )
    if domain in _RUNTIME_DOMAINS:
        return ToolchainError(
            f"'{where}' uses {name}, which the installed onnxruntime does not know",
            hint=f"{_UPDATE}, or export with --min-onnxruntime set to the version that will run it",
        )
    return UnsupportedError(
        f"'{where}' uses {name}, an operator of domain '{domain}' that no library has registered",
        hint=f"pass the library that implements domain '{domain}'",
    )


def _no_schema(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del libraries
    return ToolchainError(
        f"'{where}' uses {match['op']} of opset {match['version']}, which the installed onnxruntime does not know",
        hint=f"{_UPDATE}, or export with a lower --opset",
    )


def _no_kernel(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del libraries
    node = f" (node '{match['node']}')" if match["node"] else ""
    return UnsupportedError(
        f"onnxruntime has no kernel for {match['op']}{node} of '{where}' with these types on this provider",
        hint="export in float32, or choose another --target",
    )


def _opset_too_new(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del libraries
    return ToolchainError(
        f"'{where}' has opset {match['opset']}, newer than the installed onnxruntime loads",
        hint=f"{_UPDATE}, or export with a lower --opset",
    )


def _ir_too_new(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del libraries
    return ToolchainError(
        f"'{where}' has IR version {match['ir']}; the installed onnxruntime loads up to {match['most']}",
        hint=f"{_UPDATE}, or export with --min-onnxruntime set to the version that will run it",
    )


def _no_library(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del where, libraries
    return ToolchainError(
        f"the op library '{_base_name(match['path'])}' does not load: {match['why'].strip()}",
        hint="build it for this machine: deployml kernels build",
    )


def _too_big(match: re.Match[str], where: str, libraries: tuple[str, ...]) -> DeploymlError:
    del match, libraries
    return _no_memory(where)


def _no_memory(where: str) -> DeploymlError:
    return ToolchainError(
        f"there is not enough memory to load '{where}'",
        hint="close other programs, use a machine with more memory, or check the model's dimensions",
    )


_RULES: Final = (
    _Rule(r"Failed to load library (?P<path>\S.*?) with error: (?P<why>.*)", _no_library),
    _Rule(r"External data path does not exist: \"(?P<path>[^\"]*)\"", _data_missing),
    _Rule(r"(?:No such file|cannot open file|open file) .*?\"(?P<path>[^\"]*\.data)\"", _data_missing),
    _Rule(r"External data path: \"(?P<path>[^\"]*)\".*?(?:allowed directory|escapes)", _data_escapes),
    _Rule(r"data path[^\"]*escapes[^\"]*\"(?P<path>[^\"]*)\"", _data_escapes),
    _Rule(
        r"External initializer: (?P<name>\S+)\s*offset: (?P<offset>\d+) size to read: (?P<size>\d+)"
        r" given file_length: (?P<length>\d+)",
        _data_short,
    ),
    _Rule(r"Protobuf parsing failed|No graph was found|INVALID_PROTOBUF", _broken_file),
    _Rule(r"(?P<domain>[\w.\-]*):(?P<op>\w+)\(-?\d+\) is not a registered function/op", _no_operator),
    _Rule(r"No Op registered for (?P<op>\w+) with domain_version of (?P<version>\d+)", _no_schema),
    _Rule(r"Could not find an implementation for (?P<op>\S+) node with name '(?P<node>[^']*)'", _no_kernel),
    _Rule(r"Opset (?P<opset>\d+) is under development", _opset_too_new),
    _Rule(r"Unsupported model IR version: (?P<ir>\d+), max supported IR version: (?P<most>\d+)", _ir_too_new),
    _Rule(r"bad_alloc|Failed to allocate memory|BFCArena.*requested bytes", _too_big),
)


def _base_name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _first_sentence(text: str, limit: int = 300) -> str:
    """Drop onnxruntime's prefix, source places and C++ signatures; keep what is for people."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text.strip())
    text = re.sub(r"\S*/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])", "", text)
    text = re.sub(r"^Load model from .*? failed:\s*", "", " ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"
