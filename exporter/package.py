"""``deployml.package``: put a model where a server wants it, with its weights and op libraries."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import ndiff
from filecmp import cmp
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, get_args

import onnx_ir as ir

from .. import custom_ops
from ..passes.graph import dims
from ..runtime import crumbs
from ..runtime.errors import InputError
from ..runtime.files import check_writable
from ..runtime.integrations.triton import Tensor, config_text
from ..runtime.report import to_json
from ..runtime.target import TargetName
from .fusing import libraries_of
from .onnx_file import open_file

__all__ = ["Config", "Package", "PackageFormat", "package"]

PackageFormat = Literal["triton"]
Config = Literal["keep", "replace"]
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.\-]*", re.ASCII)
#: Differing lines of a configuration that a message shows.
_LISTED: Final = 12


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
    config: Config | None = None,
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
        config: What becomes of a config.pbtxt that other versions have and that says other things: "keep" or "replace".

    Raises:
        InputError: if the model cannot be read, that version exists already, the folder cannot be written, or there is
            another config.pbtxt and ``config`` does not say what to do about it.
        UnsupportedError: if an input or output has a type that the server does not have.
    """
    path = Path(model).expanduser()
    graph = open_file(path)
    called = name or path.stem
    _check(called, version, format, repository, config)
    place = Path(output).expanduser() / called
    _check_free(place, version)
    chosen = target or _made_for(graph)
    libraries = [Path(library) for library in libraries_of(graph, chosen)]
    tensors = (_tensors(graph.graph.inputs, leave_out=graph.graph.initializers), _tensors(graph.graph.outputs))

    def text(of: int) -> str:
        inside = PurePosixPath(repository) / called / str(of)
        named = [str(inside / library.name) for library in libraries]
        return config_text(called, *tensors, max_batch=max_batch, gpu=chosen in ("cuda", "rocm"), libraries=named)

    kept = _kept(place, libraries, text, version, config)
    sources = {"model.onnx": path, **_data_of(graph, path), **{library.name: library for library in libraries}}
    _write(place, version, None if kept is not None else text(version), sources)
    notes = [f"the server must see this repository at {repository}"] if libraries else []
    notes += [kept] if kept else []
    notes += _gpu_note(libraries, chosen)
    files = (*(("config.pbtxt",) if kept is None else ()), *sorted(f"{version}/{file}" for file in sources))
    return Package(format=format, name=called, folder=called, files=files, notes=tuple(notes))


def _check(name: str, version: Any, format: str, repository: str, config: Any) -> None:
    if format not in get_args(PackageFormat):
        raise InputError(f"there is no package format '{format}'", hint=f"choose {', '.join(get_args(PackageFormat))}")
    if _NAME.fullmatch(name) is None:
        raise InputError(f"'{name}' is no name for a model", hint="give --name with Latin letters, digits, _, - and .")
    if isinstance(version, bool) or not isinstance(version, int):
        raise InputError(f"'{version}' is no version", hint="versions are whole numbers: version=2")
    if not PurePosixPath(repository).is_absolute():
        raise InputError(
            f"'{repository}' is no absolute path", hint="give --repository as the server sees it, /models for instance"
        )
    if config is not None and config not in get_args(Config):
        raise InputError(f"there is no way '{config}' to treat a configuration", hint="choose keep or replace")
    if version < 1:
        raise InputError(f"there is no version {version}", hint="versions count from 1")


def _check_free(place: Path, version: int) -> None:
    if (place / str(version)).exists():
        raise InputError(
            f"version {version} of '{place.name}' is there already",
            hint=f"give --version {version + 1}, another --name, or move {place / str(version)} away",
        )
    check_writable(place / str(version))


def _kept(
    place: Path, libraries: Sequence[Path], text: Callable[[int], str], version: int, config: Config | None
) -> str | None:
    """Whether the config.pbtxt that is there serves this version too: a note, empty where there is nothing to say.

    None where the new one is to be written. One configuration serves all versions of a model.
    """
    there = place / "config.pbtxt"
    if not there.is_file() or config == "replace":
        return None
    before = there.read_text(encoding="utf-8", errors="replace")
    if before == text(version):
        return ""
    if config == "keep":
        return "config.pbtxt was left as it was; it must name the op library where the model needs one"
    for other in sorted(p for p in place.iterdir() if p.name.isdecimal() and p.name.isascii()):
        same = all((other / one.name).is_file() and cmp(other / one.name, one, shallow=False) for one in libraries)
        if libraries and same and before == text(int(other.name)):
            return f"config.pbtxt names the same op library in version {other.name}: keep that version's folder"
    parted = [line for line in ndiff(before.splitlines(), text(version).splitlines()) if line[0] in "+-"]
    listed = "".join(f"\n  {line}" for line in parted[:_LISTED]) + ("\n  ..." if len(parted) > _LISTED else "")
    raise InputError(
        f"'{place.name}' has a config.pbtxt already, which serves every version, and this one differs (- there, + new):"
        + listed,
        hint="give --config keep to leave it, --config replace to write the new one, or another --name",
    )


def _gpu_note(libraries: Sequence[Path], target: TargetName) -> list[str]:
    """A word where a model for a GPU gets a library without kernels for it."""
    if not libraries or custom_ops.built_for(target):
        return []
    backend = "cuda" if target == "cuda" else "hip"
    build = f"deployml kernels build --backend {backend}"
    return [f"the op library has no {target} kernels: its nodes run on the CPU between those of the GPU ({build})"]


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


def _write(place: Path, version: int, text: str | None, sources: dict[str, Path]) -> None:
    """Copy into a hidden folder beside the destination, then rename: a server that polls sees whole versions only."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=crumbs.SCRATCH, dir=place) as folder, crumbs.leave("scratch", folder):
            made = Path(folder) / str(version)
            for name, source in sources.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, made / name)
            if text is not None:
                draft = Path(folder) / "config.pbtxt"
                draft.write_text(text, encoding="utf-8")
                os.replace(draft, place / "config.pbtxt")
            os.rename(made, place / str(version))
    except OSError as error:
        raise InputError(
            f"'{place}' cannot be written: {error.strerror}", hint="free some space or choose another folder with -o"
        ) from error
