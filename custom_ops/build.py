"""Build the CPU operator library into a checkout: ``python -m deployml.custom_ops.build``.

``pip install`` runs the same CMake project; this entry is for a checkout that is used in place. It needs a C++20
compiler (g++ 10 or newer, clang 12 or newer) and CMake.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..runtime.errors import DeploymlError, ToolchainError
from .libraries import library_path

__all__ = ["build", "main"]


def build(*, sanitize: str = "", output: Path | None = None) -> Path:
    """Compile the CPU library and put it where :func:`library_path` finds it.

    Args:
        sanitize: Comma list for ``-fsanitize=`` ("address,undefined", "thread"); empty for a release build.
        output: Folder to put the library in, ``custom_ops/lib`` by default.

    Returns:
        Path of the library.

    Raises:
        ToolchainError: if CMake or the compiler is missing or fails.
    """
    source = Path(__file__).resolve().parent
    target = output or source / "lib"
    if not (source / "CMakeLists.txt").is_file():
        raise ToolchainError(
            "an installed package has no sources to build from",
            hint="run this in a checkout, or reinstall: pip install --no-binary deployml deployml",
        )
    if shutil.which("cmake") is None:
        raise ToolchainError("cmake is not installed", hint="install it: pip install cmake")
    with tempfile.TemporaryDirectory(prefix="deployml-build-") as folder:
        _run(["cmake", "-S", str(source), "-B", folder, f"-DDEPLOYML_SANITIZE={sanitize}"])
        _run(["cmake", "--build", folder, "--parallel"])
        target.mkdir(parents=True, exist_ok=True)
        built = Path(folder) / "libdeployml_ops_cpu.so"
        # A new file under a new inode: a process that has the old one mapped keeps running.
        (target / built.name).unlink(missing_ok=True)
        shutil.copy2(built, target / built.name)
    return target / built.name


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
    parser.add_argument("--sanitize", default="", help="comma list for -fsanitize=, e.g. address,undefined")
    parser.add_argument("--output", type=Path, default=None, help="folder for the library")
    arguments = parser.parse_args()
    try:
        path = build(sanitize=arguments.sanitize, output=arguments.output)
    except DeploymlError as error:
        print(f"error: {error}")
        return error.exit_code
    default = library_path() == path
    print(f"built {path.name}" + ("" if default else f" in {path.parent}"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
