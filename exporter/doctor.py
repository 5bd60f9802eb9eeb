"""``deployml doctor``: versions, providers that really load, op libraries, pairs that are known not to work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .. import custom_ops
from ..runtime.cuda import clashes, cuda_versions
from ..runtime.errors import DeploymlError
from ..runtime.load_crash import optimizers_to_avoid
from ..runtime.memory import available_memory, free_disk, human_bytes
from ..runtime.providers import check_usable, providers_for
from ..runtime.report import Verdict, to_json
from ..runtime.session import nodes_per_provider
from ..runtime.summary import in_words
from ..runtime.target import PROVIDERS, TargetName, parse_version
from ..runtime.versions import ONNXRUNTIME_PACKAGES, installed
from .fusing import libraries_of
from .measuring import Graph
from .onnx_file import open_file
from .writing import weight_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

    from .probe import Probed

__all__ = ["Diagnosis", "Finding", "doctor"]


#: Said of a target whose provider comes up.
_READY: Final = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that stands in the way, and what to do about it."""

    what: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What ``deployml doctor`` found.

    Attributes:
        verdict: "fail" when a problem was found.
        versions: Package to version.
        targets: Target name to "ready" or why it is not.
        cuda: CUDA versions of onnxruntime's and torch's wheels and of the driver; "none" where there is none.
        libraries: Backend to "built" or "not built".
        problems: Known-bad pairs and the like.
        remarks: With a model: what deployml gets round when it opens it, and others have to get round by themselves.
        room: With a model: what it needs of disk and memory, and what there is.
        nodes: With a model: on each target that is ready here, how many nodes each provider runs, or why none.
        probed: With a probe: each feature of each attention operator, next to the shipped table.
    """

    verdict: Verdict
    versions: Mapping[str, str]
    targets: Mapping[str, str]
    libraries: Mapping[str, str]
    cuda: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Finding, ...] = ()
    remarks: tuple[Finding, ...] = ()
    room: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)
    probed: tuple[Probed, ...] = ()

    def to_json(self, *, indent: int | None = 2) -> str:
        """The diagnosis as JSON text, keys in field order."""
        return to_json(self, indent=indent)


def doctor(*, model: str | Path | None = None, probe: bool = False) -> Diagnosis:
    """Look at the environment; nothing is changed.

    Args:
        model: An ONNX file to find room for, on the disk it lies on and in memory, and to open on every target that
            is ready, to see which provider runs its nodes.
        probe: Try every feature of onnxruntime's attention operators on the CPU, and compare with the shipped table.

    Raises:
        InputError: if the model cannot be read.
    """
    versions, cuda = installed(), cuda_versions()
    targets = {name: _target_state(name) for name in PROVIDERS}
    room, cramped = ({}, ()) if model is None else _room(Path(model).expanduser())
    probed = _probed() if probe else ()
    known = (finding for check in _CHECKS if (finding := check(versions)) is not None)
    nodes = {} if model is None or cramped else _nodes(Path(model).expanduser(), targets)
    unlike = (Finding(what=what, hint=hint) for what, hint in clashes(cuda, works=targets["cuda"] == _READY))
    problems = (*known, *unlike, *cramped, *_lacking(probed))
    return Diagnosis(
        verdict="fail" if problems else "pass",
        versions=versions,
        targets=targets,
        cuda=cuda,
        libraries={
            backend: "built" if backend in custom_ops.available() else "not built" for backend in ("cpu", "cuda", "hip")
        },
        problems=problems,
        remarks=() if model is None else _remarks(Path(model).expanduser()),
        room=room,
        nodes=nodes,
        probed=probed,
    )


def _probed() -> tuple[Probed, ...]:
    from .probe import probe

    return probe()


def _lacking(probed: Sequence[Probed]) -> list[Finding]:
    """What the table counts on and the installed onnxruntime does not do."""
    return [
        Finding(
            what=f"{one.op} does not do {one.feature} here, which deployml counts on: {one.detail}",
            hint="pip install another onnxruntime, or leave that operator out with --disable-fusion",
        )
        for one in probed
        if one.outcome == "worse than the table"
    ]


def _room(path: Path) -> tuple[dict[str, str], tuple[Finding, ...]]:
    """What an export of this size takes at most: both graphs on disk, four times the weights in memory."""
    weights = weight_bytes(open_file(path))
    disk, memory = free_disk(path), available_memory()
    needs_disk, needs_memory = 2 * weights, 4 * weights
    room = {
        "weights": human_bytes(weights),
        "disk": f"{human_bytes(disk)} free, an export writes up to {human_bytes(needs_disk)}",
        "memory": f"{'unknown' if memory is None else human_bytes(memory)} free, an export takes up to "
        f"{human_bytes(needs_memory)} above what torch takes",
    }
    short = []
    if disk < needs_disk:
        short.append(Finding(what="the disk has no room for an export of this model", hint="write to another with -o"))
    if memory is not None and memory < needs_memory:
        hint = "use a machine with more memory, or leave the checks out with --no-validate --no-bench"
        short.append(Finding(what="memory may not do for an export of this model", hint=hint))
    return room, tuple(short)


def _remarks(path: Path) -> tuple[Finding, ...]:
    """Optimizers of onnxruntime that end the process on this model, which every session of deployml leaves out."""
    return tuple(
        Finding(
            what=f"{name} of onnxruntime may end the process when it loads this model; deployml leaves it out",
            hint=f'without deployml: onnxruntime.InferenceSession(path, disabled_optimizers=["{name}"])',
        )
        for name in optimizers_to_avoid(path)
    )


def _target_state(name: TargetName) -> str:
    try:
        check_usable(providers_for(name)[0])
    except DeploymlError as error:
        return error.message
    return _READY


def _nodes(path: Path, targets: Mapping[str, str]) -> dict[str, str]:
    """Where the nodes of a model run, on each target that works here."""
    model = open_file(path)
    return {name: _placed(path, model, name) for name, state in targets.items() if state == _READY}


def _placed(path: Path, model: ir.Model, name: Any) -> str:
    try:
        session = Graph(path=path, target=name, libraries=libraries_of(model, name)).open()
    except DeploymlError as error:
        return error.message
    counts = nodes_per_provider(session)
    return in_words(counts) if counts else "this onnxruntime does not tell (1.24 and newer do)"


def _two_onnxruntimes(versions: Mapping[str, str]) -> Finding | None:
    found = [name for name in ONNXRUNTIME_PACKAGES if name in versions]
    if len(found) < 2:
        return None
    return Finding(
        what=f"{' and '.join(found)} are both installed and overwrite each other's files",
        hint=f"pip uninstall -y {' '.join(found)} && pip install {found[0]}",
    )


def _no_onnxruntime(versions: Mapping[str, str]) -> Finding | None:
    if any(name in versions for name in ONNXRUNTIME_PACKAGES):
        return None
    return Finding(what="onnxruntime is not installed", hint="pip install onnxruntime-gpu (or onnxruntime)")


def _old_onnxscript(versions: Mapping[str, str]) -> Finding | None:
    return _older(
        versions, "onnxscript", "0.7.2", "it makes a loop of as_strided (Swin) that onnxruntime does not load"
    )


def _old_torch(versions: Mapping[str, str]) -> Finding | None:
    return _older(versions, "torch", "2.10", "loading untrusted weights is not safe in it (CVE-2026-24747)")


def _old_onnxruntime(versions: Mapping[str, str]) -> Finding | None:
    name = next((n for n in ONNXRUNTIME_PACKAGES if n in versions), "onnxruntime")
    return _older(versions, name, "1.22", "the produced models use operators that it lacks")


def _older(versions: Mapping[str, str], package: str, least: str, why: str) -> Finding | None:
    have = versions.get(package)
    if have is None or parse_version(have) >= parse_version(least):
        return None
    return Finding(what=f"{package} {have}: {why}", hint=f"pip install -U '{package}>={least}'")


_CHECKS: Final[tuple[Callable[[Mapping[str, str]], Finding | None], ...]] = (
    _no_onnxruntime,
    _two_onnxruntimes,
    _old_onnxruntime,
    _old_onnxscript,
    _old_torch,
)
