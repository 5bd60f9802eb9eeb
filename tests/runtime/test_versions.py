import importlib.metadata
import re

import pytest

from deployml.runtime.errors import ToolchainError
from deployml.runtime.versions import installed, onnxruntime_version, require


def test_installed_names_what_is_there_and_leaves_out_the_rest():
    found = installed(("numpy", "no-such-package-xyz"))
    assert list(found) == ["python", "numpy"]
    assert found["numpy"] == importlib.metadata.version("numpy")


def test_onnxruntime_version_is_a_tuple_of_numbers():
    assert onnxruntime_version() >= (1, 22)


def test_require_returns_the_version():
    assert require("numpy", "1.0", why="to test") == importlib.metadata.version("numpy")


@pytest.mark.parametrize(("package", "minimum"), [("no-such-package-xyz", None), ("numpy", "999.0")])
def test_require_says_how_to_get_it(package, minimum):
    with pytest.raises(ToolchainError, match="to test") as caught:
        require(package, minimum, why="to test")
    assert re.search(rf"pip install.*{package}", caught.value.hint)
