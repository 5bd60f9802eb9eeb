"""``deployml.package``: put a model where a server wants it, with its weights and op libraries."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal, get_args

import onnx_ir as ir

from ..passes.graph import dims
from ..runtime.errors import InputError
from ..runtime.files import check_writable
from ..runtime.integrations.triton import Tensor, config_text
from ..runtime.report import to_json
from ..runtime.target import TargetName
from .fusing import libraries_of
from .onnx_file import open_file

__all__ = ["Package", "PackageFormat", "package"]

PackageFormat = Literal["triton"]
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.\-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What was written.

    Attributes:
        format: "triton".
        name: Of the model in the repository.
        folder: Of the model, below the repository.
        files: Below that folder.
        notes: What to see to on the machine that serves.
    """

    format: str
    name: str
    folder: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self, *, indent: int | None = 2) -> str:
        """The same as JSON text."""
        return to_json(self, indent=indent)


def package(
    model: str | Path,
    *,
    output: str | Path,
    format: PackageFormat = "triton",
    name: str | None = None,
    version: int = 1,
    target: TargetName | None = None,
    max_batch: int = 0,
    repository: str = "/models",
) -> Package:
    """Write a model repository: ``OUTPUT/NAME/config.pbtxt`` and ``OUTPUT/NAME/VERSION/model.onnx``.

    Weights in a file of their own and the op libraries that the model calls lie beside ``model.onnx``.

    Args:
        model: The ONNX file.
        output: The repository's folder; made if missing.
        format: "triton".
        name: What the model is called there; None takes the file's name.
        version: Folder of this version, from 1.
        target: What it runs on; None means what it was made for.
        max_batch: Requests that the server may join along the first axis; 0: none.
        repository: Where the serving machine sees the repository: op libraries are named by their full path.

    Raises:
        InputError: if the model cannot be read, that version exists already, or the folder cannot be written.
        UnsupportedError: if an input or output has a type that the server does not have.
    """
    path = Path(model).expanduser()
    graph = open_file(path)
    called = name or path.stem
    _check(called, version, format)
    place = Path(output).expanduser() / called
    _check_free(place, version)
    chosen = target or _made_for(graph)
    libraries = [Path(library) for library in libraries_of(graph, chosen)]
    inside = PurePosixPath(repository) / called / str(version)
    text = config_text(
        called,
        _tensors(graph.graph.inputs, leave_out=graph.graph.initializers),
        _tensors(graph.graph.outputs),
        max_batch=max_batch,
        gpu=chosen in ("cuda", "rocm"),
        libraries=[str(inside / library.name) for library in libraries],
    )
    sources = {"model.onnx": path, **_data_of(graph, path), **{library.name: library for library in libraries}}
    _write(place, version, text, sources)
    notes = (f"the server must see this repository at {repository}",) if libraries else ()
    files = ("config.pbtxt", *sorted(f"{version}/{file}" for file in sources))
    return Package(format=format, name=called, folder=called, files=files, notes=notes)


def _check(name: str, version: int, format: str) -> None:
    if format not in get_args(PackageFormat):
        raise InputError(f"there is no package format '{format}'", hint=f"choose {', '.join(get_args(PackageFormat))}")
    if _NAME.fullmatch(name) is None:
        raise InputError(f"'{name}' is no name for a model", hint="give --name with letters, digits, _, - and .")
    if version < 1:
        raise InputError(f"there is no version {version}", hint="versions count from 1")


def _check_free(place: Path, version: int) -> None:
    if (place / str(version)).exists():
        raise InputError(
            f"version {version} of '{place.name}' is there already",
            hint=f"give --version {version + 1}, another --name, or move {place / str(version)} away",
        )
    check_writable(place / str(version))


def _made_for(model: ir.Model) -> TargetName:
    stamped = model.metadata_props.get("deployml.target")
    return stamped if stamped in get_args(TargetName) else "cpu"  # type: ignore[return-value]


def _tensors(values: Sequence[ir.Value], leave_out: object = ()) -> list[Tensor]:
    found = []
    for value in values:
        if value.name in leave_out:  # type: ignore[operator]
            continue
        shape = dims(value)
        if shape is None or value.dtype is None:
            raise InputError(
                f"'{value.name}' has no known type and rank", hint="run deployml optimize on the model first"
            )
        dtype = "string" if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
        found.append(Tensor(str(value.name), dtype, tuple(d if isinstance(d, int) else -1 for d in shape)))
    return found


def _data_of(model: ir.Model, path: Path) -> dict[str, Path]:
    """Weights files by the names the model calls them."""
    tensors = (v.const_value for graph in model.graphs() for v in graph.initializers.values())
    names = sorted({str(t.location) for t in tensors if isinstance(t, ir.ExternalTensor)})
    return {name: path.parent / name for name in names}


def _write(place: Path, version: int, text: str, sources: dict[str, Path]) -> None:
    """Copy into a hidden folder beside the destination, then rename: a server that polls sees whole versions only."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".deployml-", dir=place) as folder:
            made = Path(folder) / str(version)
            for name, source in sources.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, made / name)
            draft = Path(folder) / "config.pbtxt"
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, place / "config.pbtxt")
            os.rename(made, place / str(version))
    except OSError as error:
        raise InputError(
            f"'{place}' cannot be written: {error.strerror}", hint="free some space or choose another folder with -o"
        ) from error
