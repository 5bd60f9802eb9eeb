"""One row of the compatibility table: every golden model exported, compared and held against its lock, here.

``python -m tests.golden.row`` prints the versions of this environment and what became of each model, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

__all__ = ["main", "row"]

LOCKS = Path(__file__).parents[2] / "golden_models"
PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")


def row() -> dict[str, Any]:
    """Versions, and for each golden model its outcome.

    "same": the fused form is the locked one and the results agree with eager. "other": the form is another one, with
    the first difference in words, and the results agree. "fails": the results differ, or nothing was produced.
    """
    from deployml.runtime.versions import installed

    from .models import MODELS

    with tempfile.TemporaryDirectory() as folder:
        found = {golden.name: _outcome(golden, Path(folder)) for golden in MODELS}
    import onnxruntime

    return {"versions": {"onnxruntime": onnxruntime.__version__, **installed(PACKAGES)}, "models": found}


def _outcome(golden: Any, folder: Path) -> dict[str, str]:
    import deployml
    from deployml.exporter.onnx_file import open_file
    from deployml.exporter.standing import lock_of
    from deployml.runtime.drift import differences
    from deployml.runtime.lock import read_lock

    path = folder / f"{golden.name}.onnx"
    try:
        options = {"inputs": golden.inputs, "target": golden.target, "cpu_isa": "avx512"}  # as the locks were made
        report = deployml.export(golden.module(), output=path, html=False, **options).report
    except Exception as error:  # whatever another version of a library raises is the finding
        return {"outcome": "fails", "said": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    worst = report.parity.worst if report.parity is not None else None
    if report.verdict != "pass":
        said = "results differ" if worst is None else f"{worst.output} at {worst.case}: {worst.note or worst.needed}"
        return {"outcome": "fails", "said": said}
    now = replace(lock_of(path, open_file(path), weights=False), versions={}, wiring=None)  # the form is what counts
    parted = [f.text for f in differences(read_lock(LOCKS / f"{golden.name}.lock.json"), now) if f.verdict == "fail"]
    fused = f"{len(report.fused)} of {len(report.sites)} fused"
    return {"outcome": "other", "said": f"{fused}; {parted[0]}"} if parted else {"outcome": "same", "said": fused}


def main() -> int:
    """Print the row as one JSON object; whatever libraries print goes to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = row()
    with os.fdopen(out, "w") as stdout:
        json.dump(found, stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
