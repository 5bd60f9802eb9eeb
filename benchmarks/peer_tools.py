"""One peer on one ONNX file, in whatever environment it lives: ``python peer_tools.py TOOL IN OUT FACTS``.

FACTS is JSON: heads, width, the kind of model by onnxruntime's name, and the folder of its transformers config or null.
What the tool made is written to OUT; the seconds it took, imports aside, are printed as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["TOOLS", "main"]

#: Reads nothing of the package that does the work; returns the call that does it.
Tool = Callable[[Path, Path, dict[str, Any]], Callable[[], None]]


def _onnxscript(source: Path, target: Path, facts: dict[str, Any]) -> Callable[[], None]:
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    def run() -> None:
        model = ir.load(source)
        optimize_for_ort(model)
        ir.save(model, target)

    return run


def _ort_transformers(source: Path, target: Path, facts: dict[str, Any]) -> Callable[[], None]:
    from onnxruntime.transformers import optimizer

    def run() -> None:
        found = optimizer.optimize_model(
            str(source), facts["kind"], num_heads=facts["heads"], hidden_size=facts["width"], opt_level=0
        )
        found.save_model_to_file(str(target))

    return run


def _onnxslim(source: Path, target: Path, facts: dict[str, Any]) -> Callable[[], None]:
    import onnx
    import onnxslim

    return lambda: onnx.save(onnxslim.slim(str(source)), target)


def _optimum(source: Path, target: Path, facts: dict[str, Any]) -> Callable[[], None]:
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import OptimizationConfig
    from transformers import AutoConfig

    if facts["config"] is None:
        raise ValueError("it takes transformers models only")
    tool = ORTOptimizer([source], AutoConfig.from_pretrained(facts["config"]))

    def run() -> None:
        tool.optimize(OptimizationConfig(optimization_level=2), target.parent, file_suffix="optimum")
        target.parent.joinpath(f"{source.stem}_optimum.onnx").rename(target)

    return run


TOOLS: dict[str, Tool] = {
    "optimize_for_ort": _onnxscript,
    "onnxruntime.transformers": _ort_transformers,
    "onnxslim": _onnxslim,
    "optimum": _optimum,
}


def main() -> None:
    """Run the tool that the command line names."""
    tool, source, target, facts = sys.argv[1:]
    run = TOOLS[tool](Path(source), Path(target), json.loads(facts))
    start = time.perf_counter()
    run()
    print(json.dumps({"took": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
