"""The other commands, the help texts, and the table from exceptions to exit status."""

from __future__ import annotations

import importlib
import json
import subprocess

import pytest

from deployml.custom_ops import library_path
from deployml.runtime.errors import DeploymlBug, InputError
from deployml.runtime.report import Report

COMMANDS = {
    "export": {
        "--fuse-attention", "--output", "--target", "--opset", "--min-onnxruntime", "--input", "--inputs", "--factory",
        "--trust-pickle", "--allow-global", "--require-fused", "--disable-fusion", "--external-data", "--no-validate",
        "--no-bench", "--allow-cpu-fallback", "--json",
    },
    "optimize": {"--output", "--target", "--require-fused", "--no-validate", "--no-bench", "--json"},
    "validate": {"--against", "--target", "--json"},
    "bench": {"--against", "--target", "--seconds", "--max-slowdown", "--json"},
    "explain": {"--json"},
    "doctor": {"--json"},
    "kernels": {"--backend", "--json"},
    "ops-path": {"--backend"},
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_of_the_contract(deployml_command, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ran = deployml_command(command, "--help")
    assert ran.status == 0
    assert [option for option in sorted(COMMANDS[command]) if option not in ran.out] == []


def test_top_level_help_lists_the_commands(deployml_command):
    ran = deployml_command("--help")
    assert ran.status == 0
    assert [command for command in COMMANDS if command not in ran.out] == []
    assert deployml_command("--version").out.startswith("deployml ")


def test_optimize_fuses_a_plain_graph_without_torch(exported, python, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from deployml.cli import main; "
        f"sys.exit(main(['optimize', {str(exported.with_name('encoder.unfused.onnx'))!r}, '-o', "
        f"{str(tmp_path / 'y.onnx')!r}, '--bench-seconds', '0.3', '--require-fused', 'all', '--json']))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [site["status"] for site in report["sites"]] == ["fused", "fused"]
    assert [site["module_path"] for site in report["sites"]] == ["layers.0", "layers.1"]
    assert report["parity"]["verdict"] == "pass"
    assert {c["name"] for c in report["latency"]["contenders"]} == {"unfused", "fused"}


def test_optimize_in_place(deployml_command, exported, tmp_path):
    path = tmp_path / "same.onnx"
    path.write_bytes(exported.with_name("encoder.unfused.onnx").read_bytes())
    ran = deployml_command("optimize", path, "-o", path, "--no-bench")
    assert ran.status == 0, ran.err
    assert "2 of 2 attentions fused" in ran.out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04zip", b"\x00garbage" * 9], ids=["empty", "zip", "garbage"])
def test_optimize_refuses_what_is_no_onnx_file(deployml_command, tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    ran = deployml_command("optimize", tmp_path / "bad.onnx", "-o", tmp_path / "y.onnx")
    assert ran.status == 2 and "bad.onnx" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "y.onnx").exists()


def test_optimize_refuses_a_truncated_file_and_missing_weights(deployml_command, exported, tmp_path):
    whole = exported.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    ran = deployml_command("optimize", tmp_path / "cut.onnx", "-o", tmp_path / "y.onnx")
    assert ran.status == 2 and "cut.onnx" in ran.err
    source = exported.with_name("encoder.unfused.onnx")
    apart = ("optimize", source, "-o", tmp_path / "z.onnx", "--external-data", "always", "--no-bench", "--no-validate")
    assert deployml_command(*apart).status == 0
    (tmp_path / "z.onnx.data").unlink()
    ran = deployml_command("optimize", tmp_path / "z.onnx", "-o", tmp_path / "y.onnx")
    assert ran.status == 2 and "z.onnx.data" in ran.err


def test_validate_against_the_source_and_against_another_graph(deployml_command, encoder, exported):
    ran = deployml_command("validate", exported, "--against", *encoder.options, "--json")
    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["parity"]["verdict"] == "pass"
    sibling = exported.with_name("encoder.unfused.onnx")
    assert deployml_command("validate", exported, "--against", sibling).status == 0


def test_validate_fails_on_another_model(deployml_command, encoder, exported):
    ran = deployml_command("validate", exported, "--against", *encoder.odd_options)
    assert ran.status == 1 and "FAIL" in ran.out


def test_bench_times_the_sibling(deployml_command, exported):
    ran = deployml_command("bench", exported, "--seconds", "0.3", "--threads", "1", "--json")
    assert ran.status == 0, ran.err
    report = json.loads(ran.out)
    assert [c["name"] for c in report["latency"]["contenders"]] == ["unfused", "fused"]
    assert report["latency"]["threads"] == 1


def test_explain_reads_the_report_beside_the_model(deployml_command, exported, tmp_path):
    ran = deployml_command("explain", exported, "--json")
    assert ran.status == 0
    assert ran.out == exported.with_name("encoder.report.json").read_text()
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(exported.with_name("encoder.unfused.onnx").read_bytes())
    ran = deployml_command("explain", alone)
    assert ran.status == 0 and "2 of 2 attentions fused" in ran.out
    assert [p.name for p in tmp_path.iterdir()] == ["alone.onnx"]


def test_explain_a_rule_by_code_or_name(deployml_command):
    by_code, by_name = deployml_command("explain", "att102"), deployml_command("explain", "multi-head-attention")
    assert by_code.status == by_name.status == 0
    assert by_code.out == by_name.out
    assert "When it declines" in by_code.out and "rounding" in by_code.out
    page = json.loads(deployml_command("explain", "ATT102", "--json").out)
    assert page["emits"] == ["com.microsoft::MultiHeadAttention"]
    ran = deployml_command("explain", "nothing-of-the-kind")
    assert ran.status == 2 and "ATT102" in ran.err


def test_doctor_and_kernels(deployml_command):
    found = json.loads(deployml_command("doctor", "--json").out)
    assert found["targets"]["cpu"] == "ready" and "onnx" in found["versions"]
    assert set(json.loads(deployml_command("kernels", "--json").out)["libraries"]) == {"cpu", "cuda", "hip"}


#: The folders of operators, and every how many of their cases a test runs.
OPERATORS = {"flash_attention": 60, "skip_normalization": 10, "mixture_of_experts": 10}


def _title(folder: str) -> str:
    return {"mixture_of_experts": "MixtureOfExperts"}.get(folder, folder.title().replace("_", ""))


def test_kernels_test_runs_every_matrix_or_says_why_not(deployml_command, monkeypatch):
    some = {}
    for name, step in OPERATORS.items():
        matrix = importlib.import_module(f"deployml.custom_ops.{name}.cases")
        found = some[_title(name)] = matrix.cases()[::step]
        monkeypatch.setattr(matrix, "cases", lambda _found=found: _found)
    ran = deployml_command("kernels", "test", "--json")
    found = json.loads(ran.out)
    cpu, hip = found["backends"]["cpu"], found["backends"]["hip"]
    assert hip["verdict"] == "not-run" and hip["reason"]
    if library_path("cpu") is None:
        assert cpu["verdict"] == "not-run" and ran.status == 0
        return
    count = {name: len(cases) for name, cases in some.items()}
    assert (cpu["verdict"], cpu["cases"], cpu["failed"], ran.status) == ("pass", sum(count.values()), [], 0)
    assert cpu["operators"] == count
    assert 0 < cpu["worst"] <= 1


@pytest.mark.skipif(library_path("cpu") is None, reason="not run: the CPU library is not built")
@pytest.mark.parametrize("operator", OPERATORS)
def test_kernels_test_fails_with_any_operator(deployml_command, monkeypatch, operator):
    found = {}
    for name in OPERATORS:
        matrix = importlib.import_module(f"deployml.custom_ops.{name}.cases")
        found[name] = matrix.cases()[:2]
        monkeypatch.setattr(matrix, "cases", lambda _some=found[name]: _some)
    check = importlib.import_module(f"deployml.custom_ops.{operator}.check")
    grant = check.bound
    monkeypatch.setattr(check, "bound", lambda case, inputs: _nothing(grant(case, inputs)))
    ran = deployml_command("kernels", "test", "--backend", "cpu")
    assert ran.status == 1 and "cpu   fail" in ran.out
    told = {name: f"{_title(name)}: {some[-1].name}" in ran.out for name, some in found.items()}
    assert told == {name: name == operator for name in found}


def _nothing(granted):
    return tuple(0.0 for _ in granted) if isinstance(granted, tuple) else 0.0


def test_ops_path_is_one_line_or_an_error(deployml_command):
    ran = deployml_command("ops-path", "--backend", "cpu")
    if library_path("cpu") is None:
        assert ran.status == 2 and "kernels build --backend cpu" in ran.err
        return
    assert ran.out == f"{library_path('cpu')}\n"


def test_verdicts_become_exit_codes(deployml_command, exported, monkeypatch):
    import deployml.exporter.bench as module

    for verdict, status in (("pass", 0), ("fail", 1), ("inconclusive", 3)):
        report = Report(command="bench", verdict=verdict, model="m", source="m", target="cpu", versions={})
        monkeypatch.setattr(module, "bench", lambda *_, _report=report, **__: _report)
        assert deployml_command("bench", exported).status == status


def test_errors_become_exit_codes(deployml_command, exported, monkeypatch, tmp_path):
    import tempfile

    import deployml.exporter.bench as module

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    errors = (InputError("m", hint="h"), 2), (DeploymlBug("broke"), 70), (RuntimeError("broke"), 70), (MemoryError(), 2)
    for error, status in (*errors, (KeyboardInterrupt(), 130)):

        def fail(*_, _error=error, **__):
            raise _error

        monkeypatch.setattr(module, "bench", fail)
        ran = deployml_command("bench", exported)
        assert ran.status == status
        assert ("Traceback" in ran.err) == (status == 70)
        assert ("interrupted; no file was changed" in ran.err) == (status == 130)
    bundles = sorted(tmp_path.glob("deployml-bug-*"))
    assert len(bundles) == 2
    assert "broke" in (bundles[0] / "traceback.txt").read_text()
    assert json.loads((bundles[0] / "environment.json").read_text())["arguments"][0] == "bench"
    ran = deployml_command("bench", exported, "--json")
    assert ran.status == 130 and ran.err == "interrupted; no file was changed\n"
