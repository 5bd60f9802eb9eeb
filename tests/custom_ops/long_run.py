"""What the long checks run in a process of its own: random calls, or one call over and over.

    python -m tests.custom_ops.long_run fuzz LIBRARY FIRST COUNT    random cases FIRST .. FIRST + COUNT
    python -m tests.custom_ops.long_run leak LIBRARY RUNS           one session, then sessions; resident memory

Prints findings and, while it runs, how far it is; the exit status is 1 when a case failed or memory grew.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime

from deployml.custom_ops.flash_attention.cases import Case, bound, make_inputs, random_case
from deployml.custom_ops.flash_attention.check import one_node_model, run_case
from deployml.custom_ops.flash_attention.op import reference


def options(library: str) -> onnxruntime.SessionOptions:
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = 2
    made.log_severity_level = 4
    made.register_custom_ops_library(library)
    return made


def limit(library: str, name: str) -> None:
    """Register one name alone: the schemas of all would take most of the time."""
    import ctypes

    ctypes.CDLL(library).deployml_register_only(name.encode())


def fuzz(library: str, first: int, count: int) -> int:
    """Run random cases. Returns how many failed."""
    failed, worst = 0, 0.0
    for seed in range(first, first + count):
        case = random_case(seed, largest=40 if seed % 25 else 500)  # the large ones cross tiles and blocks of rows
        limit(library, case.signature.op_type)
        inputs = make_inputs(case)
        exact = reference(case.signature, case.attributes, inputs)
        found = run_case(case, options(library), inputs, body=False)
        error = max(float(np.max(np.abs(x - y), initial=0.0)) for x, y in zip(found, exact, strict=True))
        share = error / bound(case, inputs) if error else 0.0
        worst = max(worst, share)
        if not share <= 1.0:
            failed += 1
            print(f"{case.name}: {share:.3g} of the bound")
        if (seed + 1) % 1000 == 0:
            print(f"{seed + 1 - first} of {count} done", flush=True)
    print(f"{count} cases from {first}: {failed} failed, the worst took {worst:.2f} of its bound")
    return failed


def resident() -> int:
    """Resident memory of this process in KiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def leak(library: str, runs: int) -> int:
    """One call ``runs`` times and ``runs / 100`` sessions. Returns 1 when memory grew after the first tenth."""
    case = Case(name="leak", queries=50, keys=90, mask="bk", past=4, sink=True)
    limit(library, case.signature.op_type)
    inputs = make_inputs(case)
    model = one_node_model(case.signature, case.attributes, inputs)
    onnx.load_from_string(model)
    session = onnxruntime.InferenceSession(model, options(library))
    steps = []
    for _ in range(10):
        for _ in range(runs // 10):
            session.run(None, inputs)
        for _ in range(runs // 1000):
            onnxruntime.InferenceSession(model, options(library)).run(None, inputs)
        steps.append(resident())
    grown = steps[-1] - steps[0]
    print(f"{runs} runs, {runs // 100} sessions: {steps[0]} KiB after the first tenth, {grown:+d} KiB at the end")
    return int(grown > 2048)


if __name__ == "__main__":
    what, library, *numbers = sys.argv[1:]
    work = {"fuzz": fuzz, "leak": leak}[what]
    sys.exit(1 if work(library, *map(int, numbers)) else 0)
