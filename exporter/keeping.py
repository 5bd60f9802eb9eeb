"""What is read must not be written over: the files that a command reads, held against those it will write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..runtime.files import check_apart, same_place
from .artifact import FileNames
from .onnx_file import open_file

__all__ = ["check_output", "check_products", "data_files"]


def data_files(model: ir.Model) -> tuple[Path, ...]:
    """The files, other than its own, that a model's tensors are read from; sorted."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    found = {
        Path(tensor.path) for tensor in (*tensors, *_in_attributes(model)) if isinstance(tensor, ir.ExternalTensor)
    }
    return tuple(sorted(found))


def check_products(output: Path, source: Any, read: Iterable[Path] = ()) -> None:
    """Refuse an export whose files would take the place of what it is made from; in place of its source it may stand.

    Args:
        output: Where the model goes; the files named after it are written, or taken away, beside it.
        source: What it is made from; a path, or an object in memory, which nothing overwrites.
        read: Further files that the source consists of.

    Raises:
        InputError: naming the file that would be lost.
    """
    inputs = list(read)
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if same_place(output, path):
            return
        inputs.append(path)
    names = FileNames(output.name)
    for name in (names.model, *names.others):
        check_apart(output.parent / name, inputs, hint="choose another name with -o")


def check_output(output: str | Path, model: str | Path, read: Iterable[str | Path | None], *, option: str) -> None:
    """Refuse to write a page, a lock or a result over a model, its weights, what lies beside it, or another input.

    Args:
        output: The file to be written.
        model: The model that the command is about.
        read: The other inputs; None and what is no path is passed over.
        option: The option that names the output, for the hint.

    Raises:
        InputError: naming the file that would be lost.
    """
    place = Path(output).expanduser()
    if not place.exists():
        return
    path, names = Path(model).expanduser(), FileNames(Path(model).name)
    inputs = [path, *(path.parent / name for name in (names.data, names.unfused, names.report))]
    inputs += [Path(one).expanduser() for one in read if isinstance(one, str | Path)]
    inputs += [data for one in inputs if one.suffix.lower() == ".onnx" and one.is_file() for data in _data_of(one)]
    check_apart(place, inputs, hint=f"choose another name with {option}")


def _data_of(path: Path) -> tuple[Path, ...]:
    return data_files(open_file(path))


def _in_attributes(model: ir.Model) -> Iterator[Any]:
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.value
