"""What the compilers say of the GPU kernels: registers, spills and shared memory for each head size.

Nothing runs on a GPU here. ``python benchmarks/gpu_resources.py --write`` compiles the attention kernels with nvcc (one
architecture) and hipcc (one architecture) and writes benchmarks/results/gpu-resources.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deployml.custom_ops.build import compiler

SOURCES = Path(__file__).resolve().parent.parent / "custom_ops"
PAGE = Path(__file__).resolve().parent / "results" / "gpu-resources.md"
HEADS = (32, 64, 96, 128, 192, 256)

#: Prints what a unit needs of shared memory, from the same headers: unit, head size, keys of a tile, stages, bytes.
SIZES = """
#include <cstdio>
#include "../flash_attention/kernel.cuh"
#include "../flash_attention/unit_fma.cuh"
#include "../flash_attention/unit_mfma.cuh"
#include "../flash_attention/unit_mma.cuh"
using namespace deployml;
template <typename Unit>
void show(const char* unit) {
  int warps = 4;
  const int limit = Unit::kStages == 2 ? 99 << 10 : 64 << 10;
  while (warps > 1 && int(shared_bytes<Unit>(warps)) > limit) warps /= 2;
  std::printf("%s %d %d %d %d %zu\\n", unit, Unit::kHeadDim, Unit::kTile, Unit::kStages, warps * Unit::kWarp,
              shared_bytes<Unit>(warps));
}
template <int... kDims>
void show_all() {
  (show<MmaUnit<gpu::Half, kDims>>("MmaUnit"), ...);
  (show<MfmaUnit<gpu::Half, kDims>>("MfmaUnit"), ...);
  (show<FmaUnit<float, kDims, 32>>("FmaUnit"), ...);
}
int main() { show_all<32, 64, 96, 128, 192, 256>(); }
"""


@dataclass(frozen=True, slots=True)
class Used:
    """One kernel as compiled: registers of a thread, bytes spilled to memory and read back."""

    registers: int
    spilled: str


def _compiled(command: list[str], folder: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:2])} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def _attend(compile_with: list[str], element: str, folder: str) -> str:
    source = str(SOURCES / "flash_attention" / "attend.cu")
    flags = [f"-DDEPLOYML_ELEMENT={element}", f"-I{SOURCES / 'include'}", "-O3", "-c", source, "-o", "attend.o"]
    return _compiled([*compile_with, *flags], folder)


def cuda(architecture: str, element: str, folder: str) -> dict[tuple[str, int], Used]:
    """Unit and head size to what ptxas reports."""
    text = _attend([str(compiler("cuda")), "-std=c++17", f"-arch={architecture}", "-Xptxas=-v"], element, folder)
    found = {}
    for entry in text.split("Compiling entry function")[1:]:
        name = re.search(r"6attendI\w*?Unit\w*?Li(\d+)E", entry.splitlines()[0])
        if name is None:
            continue
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        assert spilled is not None and registers is not None
        unit = "MmaUnit" if "MmaUnit" in entry else "FmaUnit"
        found[unit, int(name[1])] = Used(int(registers[1]), f"{spilled[1]} / {spilled[2]}")
    return found


def hip(architecture: str, element: str, folder: str) -> dict[tuple[str, int], Used]:
    """Unit and head size to what clang's resource remarks say."""
    os.environ["HIP_PLATFORM"] = "amd"
    remarks = ["-x", "hip", "-std=c++20", f"--offload-arch={architecture}", "-Rpass-analysis=kernel-resource-usage"]
    text = _attend([str(compiler("hip")), *remarks], element, folder)
    found = {}
    for entry in text.split("Function Name: ")[1:]:
        name = re.match(r"_ZN8deployml6attendINS_\d([A-Za-z]+Unit)I\w*?Li(\d+)E", entry)
        numbers = [re.search(rf"{what}: (\d+)", entry) for what in (" VGPRs", "AGPRs", "VGPRs Spill")]
        if name is None or any(number is None for number in numbers):
            continue
        vector, accumulators, spilled = (int(number[1]) for number in numbers if number is not None)
        found[name[1], int(name[2])] = Used(vector + accumulators, str(4 * spilled))
    return found


def sizes(folder: str) -> dict[tuple[str, int], tuple[int, int, int, int]]:
    """Unit and head size to keys of a tile, stages, threads and bytes of shared memory of a small block."""
    program, source = Path(folder) / "sizes", Path(folder) / "sizes.cc"
    source.write_text(SIZES.replace("../", f"{SOURCES}/"))
    emulator = [str(path) for path in sorted((SOURCES / "emulator").glob("*.cc"))]
    flags = ["-std=c++20", "-w", "-DDEPLOYML_EMULATED", f"-I{SOURCES / 'include'}"]
    _compiled(["g++", *flags, str(source), *emulator, "-o", str(program)], folder)
    lines = [line.split() for line in _compiled([str(program)], folder).splitlines()]
    return {(unit, int(head)): tuple(map(int, rest)) for unit, head, *rest in lines}  # type: ignore[misc]


def page(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines of the result page."""
    with tempfile.TemporaryDirectory() as folder:
        shared = sizes(folder)
        yield "# Resources of the GPU kernels, as compiled"
        yield ""
        yield "Written by `python benchmarks/gpu_resources.py --write`. The kernels were compiled and emulated, not run"
        yield "on a GPU: this page says what they ask of one, not how fast they are. bfloat16 compiles as float16 does."
        for title, unit, used in (
            (f"float16, NVIDIA {arguments.cuda}, nvcc", "MmaUnit", lambda: cuda(arguments.cuda, "Half", folder)),
            (f"float32, NVIDIA {arguments.cuda}, nvcc", "FmaUnit", lambda: cuda(arguments.cuda, "float", folder)),
            (f"float16, AMD {arguments.hip}, hipcc", "MfmaUnit", lambda: hip(arguments.hip, "Half", folder)),
        ):
            yield from _table(title, unit, used(), shared)


def _table(title: str, unit: str, used: dict[tuple[str, int], Used], shared: dict) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield "| head size | keys a tile | stages | threads | shared memory, KiB | registers a thread | spilled, bytes |"
    yield "|---|---|---|---|---|---|---|"
    for head in HEADS:
        tile, stages, threads, memory = shared[unit, head]
        kernel = used[unit, head]
        yield (
            f"| {head} | {tile} | {stages} | {threads} | {memory / 1024:g} | {kernel.registers} | {kernel.spilled} |"
        )


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", default="sm_90a", help="architecture for nvcc")
    parser.add_argument("--hip", default="gfx90a", help="architecture for hipcc")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    if compiler("cuda") is None or compiler("hip") is None:
        raise SystemExit("not run: this page needs nvcc and hipcc")
    text = "\n".join(page(arguments)) + "\n"
    print(text)
    if arguments.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
