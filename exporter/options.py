"""The options that every command shares, checked once, and the target they add up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

from ..runtime.errors import InputError
from ..runtime.files import check_writable
from ..runtime.isa import CpuIsa
from ..runtime.providers import check_usable, providers_for
from ..runtime.target import Fusion, Target, TargetName, parse_version
from ..runtime.versions import onnxruntime_version

__all__ = [
    "MIN_OPSET",
    "ExternalData",
    "Options",
    "SourceOptions",
    "check_list",
    "output_path",
    "picked",
    "require_count",
]

_Chosen = TypeVar("_Chosen", "Options", "SourceOptions")

ExternalData = Literal["auto", "always", "never"]

#: Opsets the passes are written for, and the newest one that torch translates to.
MIN_OPSET: Final = 20
_MAX_OPSET: Final = 23
#: Oldest onnxruntime that models are made for.
_MIN_ONNXRUNTIME: Final = (1, 22)

#: The opset of a target when none is asked for: 21 loads everywhere, the standard Attention came with 23.
_DEFAULT_OPSET: Final[dict[TargetName, int]] = {"cpu": 21, "cuda": 21, "rocm": 21, "portable": 23}
#: The oldest onnxruntime that loads an opset (measured: docs/compatibility.md). Where a target's default is newer than
#: what the oldest onnxruntime asked for loads, the default is the one that loads everywhere.
_OPSET_SINCE: Final[dict[int, tuple[int, ...]]] = {23: (1, 23)}
_ANYWHERE: Final = 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user may choose about the produced graph and the checks.

    Attributes:
        target: "cpu", "cuda", "rocm" or "portable" (standard ONNX operators only).
        opset: ai.onnx opset; None picks the target's default.
        min_onnxruntime: Oldest onnxruntime the graph must load on ("1.22"); None means the installed one.
        fuse_attention: Fuse attention and its neighbours.
        fusion: "auto" takes the operator that was measured fastest at a site's shapes, "always" the best kernel class.
        cpu_isa: The processor the graph is for: "avx512", "avx2" or "portable"; None means this one.
        require_fused: "all", a least number of fused attentions, or None.
        disable_fusion: Codes or names of rules that must not run.
        external_data: Weights in a file of their own: above a size ("auto"), "always" or "never".
        validate: Compare the result with its source.
        bench: Time the result against its source.
        html: Write the report as a page too.
        allow_cpu_fallback: Accept a session on the CPU where the target's provider does not come up.
        raise_on_failure: Raise :class:`deployml.VerdictError` on a failed verdict, once the files are written.
    """

    target: TargetName = "cpu"
    opset: int | None = None
    min_onnxruntime: str | None = None
    fuse_attention: bool = True
    fusion: Fusion = "auto"
    cpu_isa: CpuIsa | None = None
    require_fused: str | int | None = None
    disable_fusion: Sequence[str] = ()
    external_data: ExternalData = "auto"
    validate: bool = True
    bench: bool = False
    html: bool = True
    allow_cpu_fallback: bool = False
    raise_on_failure: bool = False

    def __post_init__(self) -> None:
        require_count(self.require_fused)
        if self.require_fused is not None and not self.fuse_attention:
            raise InputError(
                "--require-fused asks for fused attention and --no-fuse-attention forbids it",
                hint="leave one of the two out",
            )
        if self.opset is not None and (isinstance(self.opset, bool) or not isinstance(self.opset, int)):
            raise InputError(f"'{self.opset}' is no opset", hint=f"give a number from {MIN_OPSET} to {_MAX_OPSET}")
        check_list("disable_fusion", self.disable_fusion, "rules")
        if self.external_data not in get_args(ExternalData):
            raise InputError(
                f"there is no way '{self.external_data}' to store weights",
                hint=f"choose one of {', '.join(get_args(ExternalData))}",
            )

    def resolve(self, *, opset: int | None = None) -> Target:
        """The target these options add up to.

        Args:
            opset: Opset that the graph has already; it wins over the target's default.

        Raises:
            InputError: if the target, opset or version is unknown, or they do not go together.
        """
        version = onnxruntime_version() if self.min_onnxruntime is None else parse_version(self.min_onnxruntime)
        if version < _MIN_ONNXRUNTIME:
            raise InputError(
                f"models are made for onnxruntime {_text(_MIN_ONNXRUNTIME)} or newer, not {_text(version)}",
                hint=f"give --min-onnxruntime {_text(_MIN_ONNXRUNTIME)} or newer",
            )
        default = _DEFAULT_OPSET.get(self.target, MIN_OPSET)
        if version < _OPSET_SINCE.get(default, version):
            default = _ANYWHERE
        chosen = self.opset or opset or default
        if self.opset is not None and not MIN_OPSET <= self.opset <= _MAX_OPSET:
            raise InputError(f"opset {self.opset} is not supported", hint=f"choose --opset {MIN_OPSET} to {_MAX_OPSET}")
        if version < _OPSET_SINCE.get(chosen, version):
            raise InputError(
                f"onnxruntime {_text(version)} does not load opset {chosen}", hint="choose a lower --opset"
            )
        return Target(name=self.target, onnxruntime=version, opset=chosen, fusion=self.fusion, cpu_isa=self.cpu_isa)

    def check_available(self, target: Target) -> None:
        """Refuse checks that would have no provider to run on, before anything slow begins.

        Raises:
            ToolchainError: naming the provider that this environment lacks, or that does not come up in it.
        """
        if (self.validate or self.bench) and not self.allow_cpu_fallback:
            check_usable(providers_for(target)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How a torch source is opened.

    Attributes:
        inputs: Inputs as text, ``NAME:DTYPE[batch,seq,64]``: names are dynamic axes, numbers are fixed.
        inputs_file: An ``.npz`` or ``.pt`` file of example inputs.
        factory: ``pkg.mod:build``, ``FILE.py:FN`` or a callable that builds the module a state_dict belongs to.
        trust_pickle: Run whatever a pickled file asks for.
        allow_globals: Dotted names a pickled file may use.
        with_past: Make the key-value cache of a decoder inputs and outputs of the graph.
    """

    inputs: Sequence[str] = ()
    inputs_file: str | Path | None = None
    factory: str | Callable[[], Any] | None = None
    trust_pickle: bool = False
    allow_globals: Sequence[str] = ()
    with_past: bool = False

    def __post_init__(self) -> None:
        check_list("inputs", self.inputs, "inputs")
        check_list("allow_globals", self.allow_globals, "names")

    def keywords(self) -> dict[str, Any]:
        """The same as keyword arguments of :func:`deployml.exporter.load.load`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def picked(kind: type[_Chosen], arguments: Mapping[str, Any]) -> _Chosen:
    """The options among the arguments of a public function, ``locals()`` at its start."""
    return kind(**{field.name: arguments[field.name] for field in fields(kind) if field.name in arguments})


def check_list(name: str, given: Any, of: str) -> None:
    """Refuse a text where a list is wanted: Python would take it letter by letter.

    Raises:
        InputError: saying how to write it.
    """
    if isinstance(given, str | Path):
        raise InputError(f"{name} is the text '{given}' and not a list of {of}", hint=f'give {name}=["{given}"]')


def require_count(required: Any) -> int | None:
    """The least number of fused attentions; None for no requirement, -1 for "all".

    Raises:
        InputError: if it is neither "all" nor a whole number of at least 1.
    """
    if required is None:
        return None
    if isinstance(required, str) and required.strip().lower() == "all":
        return -1
    text = str(required).strip()
    if isinstance(required, bool) or not text.isdecimal() or int(text) < 1:
        raise InputError(f"'{required}' is no number of attentions", hint="give --require-fused all, or a number")
    return int(text)


def output_path(output: str | Path) -> Path:
    """The path a model is to be written to.

    Raises:
        InputError: if its name does not end in .onnx, or nothing can be written there.
    """
    path = Path(output).expanduser()
    if path.suffix.lower() != ".onnx" or not path.stem:
        raise InputError(
            f"'{path}' is no name for an ONNX file",
            hint=f"let it end in .onnx: -o {path.with_name(path.name + '.onnx') if path.name else 'model.onnx'}",
        )
    check_writable(path)
    return path


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
