"""The pre-commit hook: ``deployml check`` on every model among the files that are committed and that has a lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["main", "models_of"]

_ENDINGS = (".lock.json", ".onnx.data", ".onnx")


def models_of(files: Iterable[str]) -> list[Path]:
    """The locked models that these files belong to: X.onnx for X.onnx, X.onnx.data and X.lock.json, each once."""
    found: dict[Path, None] = {}
    for file in files:
        ending = next((e for e in _ENDINGS if file.endswith(e)), None)
        if ending is None:
            continue
        stem = file.removesuffix(ending)
        if Path(f"{stem}.lock.json").is_file():
            found[Path(f"{stem}.onnx")] = None
    return list(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the models of the files given. Exit status: the worst of ``deployml check``; an inconclusive one passes."""
    worst = 0
    for model in models_of(sys.argv[1:] if arguments is None else arguments):
        ran = subprocess.run([sys.executable, "-m", "deployml.cli", "check", str(model)], check=False)
        worst = max(worst, 0 if ran.returncode == 3 else ran.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
