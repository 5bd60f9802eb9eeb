"""Build an operator library into a checkout: ``python -m deployml.custom_ops.build [--backend cuda|hip]``.

``pip install`` builds the CPU library with the same CMake project; this entry is for a checkout that is used in place,
and for the GPU libraries. The CPU one needs CMake and a C++20 compiler (g++ 10 or newer, clang 12 or newer), the CUDA
one also nvcc 12.8 or newer, the HIP one hipcc.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

from ..runtime.errors import DeploymlError, ToolchainError, UnsupportedError
from .libraries import library_path

__all__ = ["Heads", "Kind", "build", "compiler", "main"]

#: What can be built: the backends, and the GPU kernels for the host emulator that the tests run them in.
Kind = Literal["cpu", "cuda", "hip", "emulated"]

#: Head sizes the GPU kernels are compiled for: all that pay (32 to 256), or 64 and 256 alone for a quick build.
Heads = Literal["full", "reduced"]

_COMPILERS: Final[Mapping[Kind, tuple[str, tuple[str, ...], str]]] = {
    "cuda": ("nvcc", ("/usr/local/cuda/bin",), "install the CUDA toolkit 12.8 or newer and put nvcc on the PATH"),
    "hip": ("hipcc", ("/opt/rocm/bin",), "install ROCm, or on Debian: apt-get install hipcc"),
}


def compiler(backend: Kind) -> Path | None:
    """The GPU compiler a backend needs, where it is installed; None also for those that need none."""
    if backend not in _COMPILERS:
        return None
    name, folders, _ = _COMPILERS[backend]
    found = shutil.which(name) or next((p for f in folders if (p := shutil.which(name, path=f))), None)
    return Path(found) if found is not None else None


def build(
    *,
    backend: Kind = "cpu",
    heads: Heads = "full",
    architectures: Sequence[str] = (),
    sanitize: str = "",
    output: Path | None = None,
) -> Path:
    """Compile a library and put it where :func:`library_path` finds it.

    Args:
        backend: "cpu" (seconds), "cuda" or "hip" (minutes), or "emulated": the GPU kernels on the host, for tests.
        heads: Head sizes of the GPU kernels.
        architectures: Devices to compile for, as CMake's CUDA_ARCHITECTURES ("90a-real") or hipcc's --offload-arch
            ("gfx942") names them; empty for 80, 90a, 100 and PTX, or gfx1030, gfx90a and gfx940.
        sanitize: Comma list for ``-fsanitize=`` ("address,undefined", "thread") of the CPU library; empty for none.
        output: Folder to put the library in, ``custom_ops/lib`` by default.

    Returns:
        Path of the library. A GPU library that was built has been compiled, not run.

    Raises:
        ToolchainError: if CMake or a compiler is missing or fails.
        UnsupportedError: for sanitizers on another backend than the CPU.
    """
    source = Path(__file__).resolve().parent
    target = output or source / "lib"
    _check_tools(source, backend)
    if sanitize and backend != "cpu":
        raise UnsupportedError(
            f"--sanitize does not go with --backend {backend}",
            hint="the emulated kernels check every access by themselves: --backend emulated",
        )
    options = [f"-DDEPLOYML_SANITIZE={sanitize}", f"-DDEPLOYML_HEADS={heads}"]
    if backend != "cpu":
        options.append(f"-DDEPLOYML_{backend.upper()}=ON")
    if found := compiler(backend):
        options.append(f"-DCMAKE_CUDA_COMPILER={found}" if backend == "cuda" else f"-DHIPCC={found}")
    if architectures:
        options.append(f"-DDEPLOYML_{backend.upper()}_ARCHITECTURES={';'.join(architectures)}")
    with tempfile.TemporaryDirectory(prefix="deployml-build-") as folder:
        _run(["cmake", "-S", str(source), "-B", folder, *options])
        _run(["cmake", "--build", folder, "--parallel", "--target", f"deployml_ops_{backend}"])
        target.mkdir(parents=True, exist_ok=True)
        built = Path(folder) / f"libdeployml_ops_{backend}.so"
        # A new file under a new inode: a process that has the old one mapped keeps running.
        (target / built.name).unlink(missing_ok=True)
        shutil.copy2(built, target / built.name)
    return target / built.name


def _check_tools(source: Path, backend: Kind) -> None:
    if not (source / "CMakeLists.txt").is_file():
        raise ToolchainError(
            "an installed package has no sources to build from",
            hint="run this in a checkout, or reinstall: pip install --no-binary deployml deployml",
        )
    if shutil.which("cmake") is None:
        raise ToolchainError("cmake is not installed", hint="install it: pip install cmake")
    if backend in _COMPILERS and compiler(backend) is None:
        name, _, hint = _COMPILERS[backend]
        raise ToolchainError(f"{name}, the compiler of the {backend} backend, is not installed", hint=hint)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
    raise ToolchainError(
        f"'{' '.join(command[:2])}' failed:\n{tail}", hint="install a C++20 compiler (g++ 10 or newer) and retry"
    )


def main() -> int:
    """Command-line entry. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deployml.custom_ops.build", description=__doc__)
    parser.add_argument("--backend", choices=get_args(Kind), default="cpu", help="which library")
    parser.add_argument("--heads", choices=get_args(Heads), default="full", help="head sizes of the GPU kernels")
    parser.add_argument("--arch", action="append", default=[], help="device to compile for, e.g. 90a-real or gfx942")
    parser.add_argument("--sanitize", default="", help="comma list for -fsanitize=, e.g. address,undefined")
    parser.add_argument("--output", type=Path, default=None, help="folder for the library")
    arguments = parser.parse_args()
    try:
        path = build(
            backend=arguments.backend,
            heads=arguments.heads,
            architectures=arguments.arch,
            sanitize=arguments.sanitize,
            output=arguments.output,
        )
    except DeploymlError as error:
        print(f"error: {error}")
        return error.exit_code
    installed = arguments.backend != "emulated" and library_path(arguments.backend) == path
    note = " (compiled, not run)" if arguments.backend in _COMPILERS else ""
    print(f"built {path.name}{note}" + ("" if installed else f" in {path.parent}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
