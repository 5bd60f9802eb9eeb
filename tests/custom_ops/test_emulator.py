"""The emulator the GPU kernels are tested in: does it see every fault, and does it convert as the hardware does?"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import deployml.custom_ops

SOURCES = Path(next(p for p in deployml.custom_ops.__path__ if (Path(p) / "emulator").is_dir()))
HERE = Path(__file__).parent / "emulator"

#: What is said to each kernel of faults.cc; "none" for those without a fault.
SAID = {
    "read in bounds": "none",
    "read past the end": "thread 63: reads 4 bytes of global memory outside every tensor",
    "write past the end": "thread 63: writes 4 bytes of global memory outside every tensor",
    "write to an input": "writes to an input",
    "write twice": "of an output again",
    "read of an unwritten output": "of an output that nobody wrote",
    "read of the launch's own output": "of an output that this launch wrote",
    "unaligned read": "accesses global memory off its alignment of 16",
    "exchange": "none",
    "exchange without a barrier": "reads shared byte",
    "overwriting what others read": "without a barrier between",
    "exchange in a warp": "none",
    "exchange across warps with a warp barrier": "without a barrier between",
    "two writers": "without a barrier between",
    "read of unwritten shared memory": "which nobody wrote",
    "shared memory out of bounds": "the block has 1024",
    "unaligned shared access": "with alignment 16",
    "copy": "none",
    "copy read by its own thread": "none",
    "copy without waiting": "while a copy into it is under way",
    "copy without committing": "while a copy into it is under way",
    "copy left behind": "leaves without waiting for its copies",
    "copy waited for, without a barrier": "reads shared byte",
    "shuffle": "none",
    "shuffle in half a warp": "32 waits at a warp operation; 32 has left",
    "lanes at different operations": "is at warp operation",
    "shuffle from beyond the warp": "shuffles from lane",
    "barrier some do not reach": "63 waits at a block barrier; 1 has left",
    "operation of another warp size": "an operation for warps of 64 on a device of 32",
}


def run(name: str, folder: Path) -> str:
    if shutil.which("g++") is None:
        pytest.skip("not run: no g++ here")
    emulator = [str(SOURCES / "emulator" / f"{part}.cc") for part in ("emulator", "memory", "collectives")]
    program = folder / name
    flags = ["-std=c++20", "-O0", "-DDEPLOYML_EMULATED", f"-I{SOURCES / 'include'}"]
    subprocess.run(["g++", *flags, str(HERE / f"{name}.cc"), *emulator, "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout


def test_every_fault_is_seen_and_named(tmp_path):
    found = dict(line.split(": ", 1) for line in run("faults", tmp_path).splitlines())
    assert found.keys() == SAID.keys()
    wrong = {name: found[name] for name, said in SAID.items() if said not in found[name]}
    assert not wrong


def test_conversions_agree_with_the_compilers(tmp_path):
    assert run("conversions", tmp_path) == "0 wrong\n"
