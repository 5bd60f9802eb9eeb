"""``deployml kernels``: the project's own op libraries on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .. import custom_ops
from ..runtime.report import to_json

__all__ = ["Kernels", "kernels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The op libraries.

    Attributes:
        domain: Domain of the project's operators.
        libraries: Backend to the library's path, or None where it is not built.
    """

    domain: str
    libraries: Mapping[str, str | None]

    def to_json(self, *, indent: int | None = 2) -> str:
        """The list as JSON text."""
        return to_json(self, indent=indent)


def kernels() -> Kernels:
    """Look which libraries are built; none is loaded."""
    backends: tuple[custom_ops.Backend, ...] = ("cpu", "cuda", "hip")
    paths = {backend: custom_ops.library_path(backend) for backend in backends}
    return Kernels(
        domain=custom_ops.DOMAIN,
        libraries={backend: None if path is None else str(path) for backend, path in paths.items()},
    )
