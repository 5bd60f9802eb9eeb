import subprocess
import sys
from pathlib import Path

import deployml.runtime

HEAVY = ("torch", "transformers", "onnxscript", "onnx_ir")


def test_the_runtime_needs_no_torch():
    names = sorted(p.stem for p in Path(deployml.runtime.__file__).parent.glob("*.py") if p.stem != "__init__")
    assert "session" in names
    imports = "; ".join(f"import deployml.runtime.{name}" for name in names)
    code = f"{imports}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
