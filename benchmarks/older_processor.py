"""Run a benchmark with the onnxruntime that an older processor would see.

    python benchmarks/older_processor.py avx2 benchmarks/costs.py --only causal
    python benchmarks/older_processor.py portable benchmarks/attention.py --cpu-time

onnxruntime chooses its kernels by what the processor and the operating system offer, and nothing tells it to use less.
So a copy of it is made in a temporary folder in which the question to the operating system, which vector registers it
saves (``xgetbv``), is replaced by the answer of one without AVX-512, or without AVX. The kernels are those that older
processors run; the memory and the clock are this machine's. deployml's own kernels are told by DEPLOYML_CPU_ISA, and
the benchmark that its page must say so by OLDER_PROCESSOR.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import copytree
from typing import Final

import onnxruntime

#: What the operating system saves, in the bits of XCR0: x87 and SSE, and AVX.
SAVED: Final = {"avx2": 0b111, "portable": 0b011}

#: xgetbv; mov eax, eax; shl rdx, 32: how compilers put its two halves together.
QUESTION: Final = bytes.fromhex("0f01d089c048c1e220")


def answer(saved: int) -> bytes:
    """mov eax, saved: as long as xgetbv and the move behind it, which it makes needless."""
    return b"\xb8" + saved.to_bytes(4, "little") + QUESTION[5:]


def older_onnxruntime(isa: str, folder: Path) -> None:
    """Copy the installed onnxruntime into ``folder`` and answer its question there."""
    package = Path(onnxruntime.__file__).parent
    copytree(package, folder / package.name)
    (library,) = (folder / package.name / "capi").glob("onnxruntime_pybind11_state*")
    text = library.read_bytes()
    if QUESTION not in text:
        raise SystemExit("error: this build of onnxruntime asks in other words; nothing was measured")
    library.write_bytes(text.replace(QUESTION, answer(SAVED[isa])))


def main() -> int:
    """Command-line entry. Returns the exit code of what was run."""
    if len(sys.argv) < 3 or sys.argv[1] not in SAVED:
        print(__doc__)
        return 2
    isa, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        older_onnxruntime(isa, Path(folder))
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "DEPLOYML_CPU_ISA": isa, "OLDER_PROCESSOR": isa}
        return subprocess.run([sys.executable, *command], env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
