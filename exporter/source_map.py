"""Where in the user's code a graph value comes from: module path, module class, file and line."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Final

import onnx_ir as ir

__all__ = ["CLASS_KEY", "MODULE_KEY", "SOURCE_KEY", "Frame", "Origin", "SourceMap", "frames", "relative_source"]

#: Metadata keys of a node: dotted module path, class name of that module, "file.py:line".
MODULE_KEY: Final = "deployml.module"
CLASS_KEY: Final = "deployml.class"
SOURCE_KEY: Final = "deployml.source"

_FRAME: Final = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
_INSTALLED: Final = ("site-packages", "dist-packages")
#: The exporter's own functions may stand between the model's line and torch's.
_OURS: Final = str(Path(__file__).parent) + os.sep


@dataclass(frozen=True)
class Origin:
    """The place in the user's model that produced a value.

    Attributes:
        module: Dotted path of the module, as in ``named_modules()``; "" for the model itself.
        kind: Class name of that module.
        source: "package/file.py:line", relative; "" when torch kept no line.
    """

    module: str = ""
    kind: str = ""
    source: str = ""

    def metadata(self) -> dict[str, str]:
        """The node metadata that holds this origin; empty fields are left out."""
        pairs = ((MODULE_KEY, self.module), (CLASS_KEY, self.kind), (SOURCE_KEY, self.source))
        return {key: text for key, text in pairs if text}


@dataclass(frozen=True)
class SourceMap:
    """Value name -> origin, for every value that a node of the graph produces."""

    origins: Mapping[str, Origin] = field(default_factory=dict)

    def lookup(self, value: str) -> Origin | None:
        """The origin of a value, or None when it is an input, a weight or unknown."""
        return self.origins.get(value)

    @classmethod
    def of(cls, model: ir.Model) -> SourceMap:
        """Read the map back from the node metadata of a model (also after passes renamed values)."""
        origins: dict[str, Origin] = {}
        for node in model.graph.all_nodes():
            origin = _origin_of(node)
            if origin is None:
                continue
            origins.update({output.name: origin for output in node.outputs if output.name})
        return cls(origins)


def _origin_of(node: ir.Node) -> Origin | None:
    props = node.metadata_props
    origin = Origin(props.get(MODULE_KEY, ""), props.get(CLASS_KEY, ""), props.get(SOURCE_KEY, ""))
    return None if origin == Origin() else origin


@dataclass(frozen=True)
class Frame:
    """One entry of a Python stack: absolute file, line, function."""

    file: str
    line: int
    function: str = ""

    @property
    def is_library(self) -> bool:
        """Whether the frame is torch's (or the standard library's, or ours) and not a model's."""
        if self.file.startswith(_OURS):
            return True
        parts = PurePath(self.file).parts
        return self.file.startswith("<") or "torch" in parts or not any(_is_model_part(parts))

    @property
    def where(self) -> str:
        """ "package/file.py:line", relative as in :func:`relative_source`."""
        return f"{relative_source(self.file)}:{self.line}"

    @property
    def code(self) -> str:
        """The stripped text of the line, or ""."""
        return linecache.getline(self.file, self.line).strip()


def _is_model_part(parts: tuple[str, ...]) -> list[bool]:
    in_library = any(re.fullmatch(r"python3\.\d+t?", part) for part in parts)
    return [not in_library or any(name in parts for name in _INSTALLED)]


def frames(stack: str) -> list[Frame]:
    """The frames of a formatted Python stack, outermost first."""
    return [Frame(m["file"], int(m["line"]), m["function"]) for m in _FRAME.finditer(stack)]


def relative_source(path: str) -> str:
    """A file path that does not depend on where the file lies.

    Relative to site-packages when the file is installed, else to the parent of its outermost package, else to
    the current directory, else the bare file name.
    """
    file = Path(path)
    for name in _INSTALLED:
        if name in file.parts:
            last = len(file.parts) - 1 - file.parts[::-1].index(name)
            return "/".join(file.parts[last + 1 :])
    root = file.parent
    while (root / "__init__.py").is_file() and root != root.parent:  # "." and "/" are their own parents
        root = root.parent
    if root != file.parent:
        return file.relative_to(root).as_posix()
    here = Path.cwd()
    return file.relative_to(here).as_posix() if file.is_relative_to(here) else file.name
