"""CUDA versions of wheels and driver, read without importing anything: all there, some absent, and those that clash."""

import sys

import pytest

from deployml.runtime import cuda
from deployml.runtime.cuda import ABSENT, UNKNOWN, clashes, cuda_versions, major

GPU = "package_name = 'onnxruntime-gpu'\n__version__ = '1.31.0'\ncuda_version = '12.8'\n"
TORCH = (
    "from typing import Optional\n__version__ = '2.13.0+{0}'\ncuda: Optional[str] = {1}\nhip: Optional[str] = '7.0'\n"
)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A function that puts files of made-up packages where the real ones would be found."""

    def make(files: dict[str, str], driver: str = ABSENT):
        for name, text in files.items():
            place = tmp_path / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        monkeypatch.setattr(cuda, "_folder", lambda module: tmp_path / module if (tmp_path / module).exists() else None)
        monkeypatch.setattr(cuda, "_driver", lambda: driver)
        return cuda_versions()

    return make


INFO, VERSION = "onnxruntime/capi/build_and_package_info.py", "torch/version.py"


@pytest.mark.parametrize(
    ("files", "onnxruntime", "torch"),
    [
        ({INFO: GPU, VERSION: TORCH.format("cu128", "'12.8'")}, "12.8", "12.8"),
        ({INFO: GPU, VERSION: TORCH.format("cpu", "None")}, "12.8", ABSENT),
        ({INFO: "package_name = 'onnxruntime'\n", VERSION: "cuda = '13.0'\n"}, ABSENT, "13.0"),
        ({INFO: "", "onnxruntime/capi/libonnxruntime_providers_cuda.so": ""}, UNKNOWN, ABSENT),
        ({VERSION: TORCH.format("cu130", "'13.0'")}, ABSENT, "13.0"),
        ({"torch/other.py": ""}, ABSENT, ABSENT),
        ({}, ABSENT, ABSENT),
    ],
)
def test_what_wheels_were_built_for(packages, files, onnxruntime, torch):
    assert packages(files) == {"onnxruntime": onnxruntime, "torch": torch, "driver": ABSENT}


@pytest.mark.parametrize(
    ("onnxruntime", "torch", "driver", "said"),
    [
        ("12.8", "12.8", "12.9", []),
        ("12.8", "12.8", "13.0", []),  # drivers run what was built for older ones
        ("12.8", ABSENT, "13.0", []),
        (ABSENT, "13.0", "13.0", []),
        (ABSENT, ABSENT, "12.4", []),
        (UNKNOWN, "13.0", "13.0", []),
        ("13.0", "12.8", ABSENT, []),  # no driver, so nothing of CUDA runs and nothing is wrong
        ("13.0", ABSENT, "12.4", ["the driver runs CUDA up to 12.4"]),
        (ABSENT, "13.0", "12.4", ["torch was built for CUDA 13.0"]),
        ("12.8", "13.0", "13.0", ["onnxruntime was built for CUDA 12.8 and torch for CUDA 13.0"]),
        ("13.0", "12.8", "12.8", ["onnxruntime was built for CUDA 13.0, the driver", "torch for CUDA 12.8"]),
    ],
)
def test_what_cannot_work_together(onnxruntime, torch, driver, said):
    versions = {"onnxruntime": onnxruntime, "torch": torch, "driver": driver}
    assert clashes(versions, works=True) == []
    found = clashes(versions)
    assert len(found) == len(said)
    assert all(words in what and hint for words, (what, hint) in zip(said, found, strict=True))


def test_a_major_is_a_number_or_none():
    assert [major(v) for v in ("12.8", "13", ABSENT, UNKNOWN, "")] == [12, 13, None, None, None]


def test_this_environment_is_read_without_torch(python):
    import subprocess

    code = "import sys; from deployml.runtime.cuda import cuda_versions; print(sorted(cuda_versions())); "
    code += "print([m for m in ('torch', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["['driver', 'onnxruntime', 'torch']", "[]"]


def test_the_real_torch_is_found():
    torch = pytest.importorskip("torch", reason="not run: torch is not installed")
    assert cuda_versions()["torch"] == (torch.version.cuda or ABSENT)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not run: loads a Linux library")
def test_a_driver_is_asked_for_its_version(monkeypatch):
    class Library:
        def cuDriverGetVersion(self, place):
            place._obj.value = 12090
            return 0

    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Library())
    assert cuda._driver() == "12.9"
