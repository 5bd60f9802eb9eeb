"""The target a graph is made for: provider, onnxruntime version, opset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from .errors import InputError

__all__ = ["PROVIDERS", "Target", "TargetName", "parse_version"]

TargetName = Literal["cpu", "cuda", "rocm", "portable"]

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
    """

    name: TargetName
    onnxruntime: tuple[int, ...]
    opset: int

    def __post_init__(self) -> None:
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
