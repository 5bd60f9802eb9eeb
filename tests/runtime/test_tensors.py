import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from deployml.runtime.errors import InputError
from deployml.runtime.feeds import InputSpec, grid
from deployml.runtime.latency import bound_runner
from deployml.runtime.parity import validate
from deployml.runtime.session import open_session
from deployml.runtime.tensors import from_ort, session_runner, to_ort


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (2, 3), (0, 3)])
def test_round_trip(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    back = from_ort(to_ort(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_a_bfloat16_graph_goes_through_parity():
    text = '<ir_version: 10, opset_import: ["": 20]> g (bfloat16[b,4] x) => (bfloat16[b,4] y) { y = Identity(x) }'
    session = open_session(parser.parse_model(text).SerializeToString())
    cases = grid([InputSpec(name="x", dtype="bfloat16", shape=("b", 4))])
    report = validate(session_runner(session), lambda feeds: [feeds["x"]], cases, output_names=("y",))
    assert report.verdict == "pass"
    assert report.worst.needed == 0.0
    bound_runner(session, cases[0].feeds)()


def test_a_runner_checks_its_inputs(relu_model):
    run = session_runner(open_session(relu_model))
    assert run({"x": np.ones((1, 4), np.float32)})[0].tolist() == [[-1.0] * 4]
    with pytest.raises(InputError, match="float64"):
        run({"x": np.ones((1, 4))})
