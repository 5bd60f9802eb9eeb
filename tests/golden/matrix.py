"""Compatibility as measured: the golden models under other versions of onnxruntime, onnx and onnxscript.

``python -m tests.golden.matrix`` makes a throw-away environment for each row on top of the one it runs in, installs
nothing there but the packages of the row, exports every golden model and compares it with eager and with its lock, and
writes ``docs/compatibility.md``. It needs the network, and minutes a row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["ROWS", "main", "page", "tried"]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "compatibility.md"

#: What is installed over the environment, one row each; the empty one is the environment as it is.
ROWS: tuple[tuple[str, ...], ...] = (
    (),
    ("onnxruntime==1.30.0",),
    ("onnxruntime==1.27.0",),
    ("onnxruntime==1.24.4",),
    ("onnxruntime==1.23.2",),
    ("onnxruntime==1.22.1",),
    ("onnx==1.22.0",),
    ("onnxscript==0.7.0",),
    ("onnxscript==0.6.2",),
)

Row = dict[str, Any]


def tried(packages: Sequence[str]) -> Row:
    """One row: its packages in an environment of their own, and what became of each model there."""
    with tempfile.TemporaryDirectory(prefix="deployml-matrix-") as folder:
        python = _environment(Path(folder), packages)
        if isinstance(python, str):
            return {"packages": list(packages), "failed": python}
        done = subprocess.run(
            [str(python), "-m", "tests.golden.row"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    try:
        return {"packages": list(packages), **json.loads(done.stdout)}
    except ValueError:
        last = (done.stderr.strip() or "it ended without a word").splitlines()[-1]
        return {"packages": list(packages), "failed": f"exit status {done.returncode}: {last[:200]}"}


def _environment(folder: Path, packages: Sequence[str]) -> Path | str:
    """The Python of a new environment that sees this one's packages behind its own; or why there is none."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    behind = sysconfig.get_paths()["purelib"]
    (site / "behind.pth").write_text(f"import site; site.addsitedir({behind!r})\n")
    if not packages:
        return python
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), *packages]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"pip: {done.stderr.strip().splitlines()[-1][:200]}"
    return python


def page(rows: Sequence[Row]) -> str:
    """The table and what it means, as Markdown."""
    base = next((r["versions"] for r in rows if not r["packages"] and "versions" in r), {})
    lines = [
        "# Compatibility",
        "",
        "Measured by `make matrix`, which writes this page: each golden model (`golden_models/`, two layers, random",
        "weights) is exported and fused under the versions of the row and compared with eager PyTorch over the parity",
        "grid, and its graph is compared with the locked one. Rows change one package; all others are "
        + ", ".join(f"{n} {v}" for n, v in base.items())
        + ".",
        "Rows below what `pyproject.toml` asks for show how far the code reaches and why a bound stands where it does.",
        "",
        "- same: the graph is the locked one, operator for operator, and the results agree",
        "- other graph: fused to something else, as older versions lack operators; the results agree",
        "- fails: no graph, or other results",
        "- not run: not measured when this page was last written",
        "",
        "| versions | same | other graph | fails |",
        "|---|---|---|---|",
        *(_line(r, base) for r in rows),
    ]
    for title, outcome in (("What is another graph", "other"), ("What fails", "fails")):
        said = [line for r in rows for line in _told(r, base, outcome)]
        if said:
            lines += ["", f"## {title}", "", *said]
    return "\n".join(lines) + "\n"


def _name(row: Row, base: dict[str, str]) -> str:
    if row["packages"]:
        return ", ".join(p.replace("==", " ") for p in row["packages"])
    return f"onnxruntime {base.get('onnxruntime', '?')} (this project's own)"


def _line(row: Row, base: dict[str, str]) -> str:
    if "models" not in row and "failed" not in row:
        return f"| {_name(row, base)} | not run | | |"
    if "failed" in row:
        return f"| {_name(row, base)} | - | - | all: {_escaped(row['failed'])} |"
    counts = Counter(found["outcome"] for found in row["models"].values())
    fails = ", ".join(n for n, f in row["models"].items() if f["outcome"] == "fails") or "0"
    return f"| {_name(row, base)} | {counts['same']} of {len(row['models'])} | {counts['other']} | {fails} |"


def _told(row: Row, base: dict[str, str], outcome: str) -> list[str]:
    """Models with this outcome; those of which the same is said share a line."""
    by_words: dict[str, list[str]] = {}
    for name, found in row.get("models", {}).items():
        if found["outcome"] == outcome:
            by_words.setdefault(found["said"], []).append(name)
    return [f"- {_name(row, base)}: {', '.join(names)}: {said}" for said, names in by_words.items()]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows and write the page. Returns 1 where a row of onnxruntime could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="part of a row's packages, such as onnxruntime==1.22")
    parser.add_argument("--raw", type=Path, help="JSON file of the rows; those it holds are not measured again")
    given = parser.parse_args(arguments)
    kept = json.loads(given.raw.read_text()) if given.raw is not None and given.raw.exists() else []
    rows = {tuple(r["packages"]): r for r in kept}
    for packages in ROWS:
        wanted = given.only is None or any(part in " ".join(packages) for part in given.only)
        if packages in rows or not wanted:
            continue
        print(f"measuring {' '.join(packages) or 'the environment as it is'}", file=sys.stderr, flush=True)
        rows[packages] = tried(packages)
        if given.raw is not None:
            given.raw.write_text(json.dumps(list(rows.values()), indent=1) + os.linesep)
    found = [rows.get(p, {"packages": list(p)}) for p in ROWS]
    PAGE.write_text(page(found), encoding="utf-8")
    return int(any("failed" in r for r in found))


if __name__ == "__main__":
    sys.exit(main())
