"""``deployml.export`` and ``optimize`` as functions: what they return, raise and leave behind."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import deployml
from deployml.exporter import measuring
from deployml.runtime.providers import check_usable


class Attention(nn.Module):
    """Self-attention over floats by torch's own call."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.qkv = nn.Linear(32, 96)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.15, generator=generator)
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, 32) to the same."""
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.fixture(scope="module")
def module() -> Attention:
    return Attention().eval()


DYNAMIC = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")},)


def test_a_module_with_dynamic_shapes(module, tmp_path):
    example = torch.randn(2, 5, 32)
    artifact = deployml.export(
        module, (example,), output=tmp_path / "a.onnx", dynamic_shapes=DYNAMIC, bench_seconds=0.3
    )
    assert artifact.path == tmp_path / "a.onnx" and artifact.unfused == tmp_path / "a.unfused.onnx"
    (site,) = artifact.report.sites
    assert site.status == "fused" and site.source.endswith(".py:" + site.source.rsplit(":", 1)[1])
    assert artifact.report.parity.verdict == artifact.report.verdict == "pass"
    assert artifact.report.latency is None and artifact.report.not_run["bench"]
    session = deployml.session(artifact.path)
    x = np.random.default_rng(0).standard_normal((3, 11, 32)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_without_dynamic_shapes_every_axis_is_fixed(module, tmp_path):
    artifact = deployml.export(module, (torch.randn(2, 5, 32),), output=tmp_path / "a.onnx")
    model = onnx.load(artifact.path)
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [2, 5, 32]
    assert artifact.report.parity.verdict == "pass"


def test_the_model_is_signed_without_places_and_times(module, tmp_path):
    artifact = deployml.export(module, (torch.randn(2, 5, 32),), output=tmp_path / "a.onnx", validate=False)
    model = onnx.load(artifact.path)
    signed = {entry.key: entry.value for entry in model.metadata_props}
    assert signed["deployml.version"] == deployml.__version__ and signed["deployml.target"] == "cpu"
    assert signed["deployml.with.torch"] == torch.__version__
    assert model.ir_version == 10 and {o.domain: o.version for o in model.opset_import}[""] == 21


def test_a_module_is_left_as_it_was(tmp_path):
    module = Attention().train()
    artifact = deployml.export(module, (torch.randn(2, 5, 32),), output=tmp_path / "a.onnx", validate=False)
    assert module.training
    assert any("eval" in warning for warning in artifact.report.warnings)


def test_a_failed_verdict_is_in_the_report_or_raised_on_request(module, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "TOLERANCE", 1e-12)
    x = (torch.randn(2, 5, 32),)
    artifact = deployml.export(module, x, output=tmp_path / "a.onnx")
    assert artifact.report.verdict == artifact.report.parity.verdict == "fail"
    assert artifact.path.is_file()
    with pytest.raises(deployml.VerdictError) as raised:
        deployml.export(module, x, output=tmp_path / "b.onnx", raise_on_failure=True)
    assert raised.value.report.parity.verdict == "fail"
    assert (tmp_path / "b.onnx").is_file(), "a graph that is valid is written, whatever the verdict"


def test_disabled_rules_do_not_run(module, tmp_path):
    x = (torch.randn(2, 5, 32),)
    artifact = deployml.export(
        module,
        x,
        output=tmp_path / "a.onnx",
        validate=False,
        disable_fusion=["ATT101", "multi-head-attention", "ATT103", "ATT104"],
    )
    (site,) = artifact.report.sites
    assert (site.status, site.reason) == ("declined", "disabled")
    assert re.fullmatch(r"switched off \(--disable-fusion ATT\d+\)", site.detail)


def test_portable_emits_standard_operators_only(module, tmp_path):
    artifact = deployml.export(module, (torch.randn(2, 5, 32),), output=tmp_path / "a.onnx", target="portable")
    assert {node.domain for node in onnx.load(artifact.path).graph.node} == {""}
    assert artifact.report.parity.verdict == "pass"
    assert [site.op for site in artifact.report.sites] == ["Attention"]


def test_half_precision_is_held_against_float32(tmp_path):
    module = Attention(torch.float16).eval()
    x = torch.randn(2, 5, 32, dtype=torch.float16)
    artifact = deployml.export(module, (x,), output=tmp_path / "a.onnx", dynamic_shapes=DYNAMIC)
    assert artifact.report.parity.reference == "eager float32"
    assert artifact.report.parity.verdict == "pass", artifact.report.parity


def test_a_target_that_is_not_here_is_refused_early_or_only_written(module, tmp_path):
    import onnxruntime

    if "ROCMExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("not run: this onnxruntime has the provider that must be absent")
    x = (torch.randn(2, 5, 32),)
    with pytest.raises(deployml.ToolchainError):
        deployml.export(module, x, output=tmp_path / "a.onnx", target="rocm")
    artifact = deployml.export(module, x, output=tmp_path / "a.onnx", target="rocm", validate=False)
    assert "rocm" in artifact.report.not_run["load"]


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_listed_provider_that_does_not_come_up_is_as_good_as_none(dtype, tmp_path, monkeypatch):
    """The GPU wheel on a machine without a GPU, where bfloat16 does not even load on the CPU."""
    import onnxruntime

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    module, x = Attention(dtype).eval(), (torch.randn(2, 5, 32, dtype=dtype),)
    try:
        check_usable("CUDAExecutionProvider")
    except deployml.ToolchainError:
        pass
    else:
        pytest.skip("not run: there is a GPU")
    artifact = deployml.export(module, x, output=tmp_path / "a.onnx", target="cuda", validate=False)
    assert "asked for CUDAExecutionProvider, got only CPU" in artifact.report.not_run["load"]
    with pytest.raises(deployml.ToolchainError, match="asked for CUDAExecutionProvider, got only CPU"):
        deployml.export(module, x, output=tmp_path / "b.onnx", target="cuda")
    assert not (tmp_path / "b.onnx").exists()
    with pytest.raises(deployml.ToolchainError, match="asked for CUDAExecutionProvider, got only CPU"):
        deployml.session(artifact.path, target="cuda")


def test_optimize_takes_a_model_in_memory(module, tmp_path):
    made = deployml.export(module, (torch.randn(2, 5, 32),), output=tmp_path / "a.onnx", validate=False)
    for number, model in enumerate((onnx.load(made.unfused), ir.load(made.unfused))):
        artifact = deployml.optimize(model, output=tmp_path / f"b{number}.onnx")
        assert [site.status for site in artifact.report.sites] == ["fused"]
        assert artifact.report.parity.verdict == "pass"
    with pytest.raises(deployml.InputError):
        deployml.optimize(module, output=tmp_path / "c.onnx")


def test_optimize_lifts_an_old_opset(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["": 13]>
    old (float[b, s, 8] q, float[b, s, 8] k, float[b, s, 8] v) => (float[b, s, 8] y)
    <float scale = {0.35355338}> {
      kt = Transpose<perm = [0, 2, 1]>(k)
      scores = MatMul(q, kt)
      scaled = Mul(scores, scale)
      weights = Softmax<axis = -1>(scaled)
      y = MatMul(weights, v)
    }
    """
    artifact = deployml.optimize(onnx.parser.parse_model(text), output=tmp_path / "a.onnx")
    assert any("opset 13 to 20" in warning for warning in artifact.report.warnings)
    assert artifact.report.parity.verdict == "pass"


def test_the_report_reads_back(module, tmp_path):
    from deployml.runtime.report import Report, from_json

    artifact = deployml.export(module, (torch.randn(2, 5, 32),), output=tmp_path / "a.onnx", validate=False)
    text = (tmp_path / "a.report.json").read_text()
    assert from_json(text, Report).to_json() == artifact.report.to_json() == text.rstrip("\n")
    assert json.loads(text)["files"]["model"] == "a.onnx"
