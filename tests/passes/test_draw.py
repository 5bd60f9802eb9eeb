"""The cases of a proof: sizes at which there is something to compare."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deployml.passes.draw import can_be, dims_of, plans


def test_no_case_leaves_frames_empty_that_a_convolution_makes() -> None:
    """A wave shorter than the kernel gives a negative number of frames: some operators run there, some do not."""
    frames = ir.SymbolicDim("floor(samples/5 - 2) + 1")
    wave = ir.val("wave", ir.DataType.FLOAT, ir.Shape(["batch", "samples"]))
    heard = ir.val("heard", ir.DataType.FLOAT, ir.Shape(["batch", frames, 8]))
    window = ir.val("window", const_value=ir.tensor(np.array(3, np.int64)))
    dims = dims_of([wave, heard])
    assert not can_be({"batch": 2, "samples": 4}, dims)
    cases = plans([wave, heard], [], [window])
    assert len(cases) > 4
    assert [plan.sizes for plan in cases if not can_be(plan.sizes, dims)] == []
