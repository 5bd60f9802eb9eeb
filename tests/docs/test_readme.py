"""Every code block of the README runs, in its order, in one folder. ``text`` blocks are for the eye."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps_of(text: str) -> list[tuple[str, str]]:
    """(kind, content): "file:NAME", "python" or "bash"."""
    found = []
    for kind, content in BLOCK.findall(text):
        first = content.splitlines()[0]
        if kind == "python" and re.fullmatch(r"# \w+\.py", first):
            found.append((f"file:{first[2:]}", content))
        elif kind == "yaml":
            found += [("bash", line) for line in re.findall(r"^\s*-? *run: (.+)$", content, re.MULTILINE)]
        elif kind in ("python", "bash"):
            found.append((kind, content))
        else:
            assert kind == "text", f"nothing runs a block of kind {kind}"
    return found


def test_every_code_block_runs(tmp_path):
    shim = tmp_path / "bin"
    shim.mkdir()
    (shim / "deployml").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deployml.cli "$@"\n')
    (shim / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for script in shim.iterdir():
        script.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PATH": f"{shim}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(work)}
    steps = steps_of(README.read_text(encoding="utf-8"))
    assert [kind for kind, _ in steps].count("bash") >= 3 and [kind for kind, _ in steps].count("python") >= 2
    for kind, content in steps:
        if kind.startswith("file:"):
            (work / kind.removeprefix("file:")).write_text(content, encoding="utf-8")
            continue
        command = ["bash", "-euo", "pipefail", "-c", content] if kind == "bash" else [sys.executable, "-c", content]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{content}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert (work / "encoder.onnx").is_file() and (work / "again.onnx").is_file()
    assert (work / "report.json").read_text().startswith("{")
