"""The target a graph is made for: provider, onnxruntime version, opset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from .errors import InputError
from .isa import CPU_ISAS, CpuIsa

__all__ = ["PROVIDERS", "Fusion", "Target", "TargetName", "parse_version"]

TargetName = Literal["cpu", "cuda", "rocm", "portable"]

#: "auto" takes the operator that was measured fastest at a site's shapes, "always" the best class of kernel there is.
Fusion = Literal["auto", "always"]

#: Target name to the execution provider that must carry it. "portable" is proven on the CPU provider.
PROVIDERS: Final[dict[str, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "portable": "CPUExecutionProvider",
}


def parse_version(text: str) -> tuple[int, ...]:
    """Turn "1.31.1" into (1, 31, 1); a suffix that is not numeric ends the tuple.

    Raises:
        InputError: if the text does not begin with a number.
    """
    parts: list[int] = []
    for piece in text.strip().split("."):
        digits = "".join(c for c in piece if c.isdigit())
        if not digits or not piece[0].isdigit():
            break
        parts.append(int(digits))
    if not parts:
        raise InputError(f"'{text}' is not a version", hint="write it as numbers with dots, such as 1.22")
    return tuple(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the produced graph must run on.

    Attributes:
        name: "cpu", "cuda", "rocm" or "portable" (standard ONNX operators only).
        onnxruntime: Oldest onnxruntime version the graph must load on.
        opset: ai.onnx opset of the graph.
        fusion: Whether measured costs decide between operators ("auto") or the class of the kernel ("always").
        cpu_isa: Instruction set of the processor the graph is for; None stands for this machine's.
    """

    name: TargetName
    onnxruntime: tuple[int, ...]
    opset: int
    fusion: Fusion = "auto"
    cpu_isa: CpuIsa | None = None

    def __post_init__(self) -> None:
        if self.fusion not in get_args(Fusion):
            raise InputError(f"there is no fusion '{self.fusion}'", hint=f"choose one of {', '.join(get_args(Fusion))}")
        if self.cpu_isa is not None and self.cpu_isa not in CPU_ISAS:
            raise InputError(
                f"there is no instruction set '{self.cpu_isa}'", hint=f"choose one of {', '.join(CPU_ISAS)}"
            )
        if self.name not in get_args(TargetName):
            raise InputError(
                f"there is no target '{self.name}'", hint=f"choose one of {', '.join(get_args(TargetName))}"
            )

    @property
    def provider(self) -> str:
        """Name of the execution provider that carries the graph."""
        return PROVIDERS[self.name]

    @property
    def portable(self) -> bool:
        """Whether only standard operators may be emitted."""
        return self.name == "portable"
