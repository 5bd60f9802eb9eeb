"""Which vector instructions of this processor the CPU kernels use."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final, Literal

__all__ = ["CPU_ISAS", "CpuIsa", "machine_isa"]

CpuIsa = Literal["avx512", "avx2", "portable"]

#: Best first, with the flags of /proc/cpuinfo each needs: those that custom_ops/flash_attention/cpu.cc asks for.
CPU_ISAS: Final[dict[CpuIsa, frozenset[str]]] = {
    "avx512": frozenset({"avx512f", "avx512dq", "avx512bw", "avx512vl"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "portable": frozenset(),
}


@functools.cache
def machine_isa() -> CpuIsa:
    """The best of them that this machine has; "portable" where that cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "portable"
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()}
    return next(name for name, needed in CPU_ISAS.items() if needed <= flags)
