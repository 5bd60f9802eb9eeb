"""Running a loaded torch model on named arrays: the reference of parity and a contender of latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..runtime.target import TargetName
from .capture.inputs import ExampleInput, Examples, examples_of
from .capture.outputs import flatten_outputs
from .capture.trace import slow_paths
from .loaded import Loaded
from .measuring import MakeContender

__all__ = ["Eager", "eager_contender"]


class Eager:
    """A loaded model as a function of named arrays.

    Args:
        loaded: The model and its example inputs.
        widen: Compute in float32 where the model is half precision.
    """

    def __init__(self, loaded: Loaded, *, widen: bool = False) -> None:
        module = loaded.module.module() if loaded.kind == "program" else loaded.module
        self._examples = _examples_of_program(loaded) if loaded.kind == "program" else examples_of(loaded)
        self._widened = widen and _is_half(module)
        self._module = copy.deepcopy(module).float() if self._widened else module

    @property
    def dtype_name(self) -> str:
        """What the reference is called: "eager float32"."""
        dtypes = [p.dtype for p in self._module.parameters() if p.dtype.is_floating_point]
        return f"eager {str(dtypes[0]).removeprefix('torch.') if dtypes else 'torch'}"

    @property
    def widened(self) -> bool:
        """Whether the reference computes in a wider float than the model."""
        return self._widened

    def examples(self) -> dict[str, np.ndarray]:
        """The example inputs by name."""
        return {leaf.name: _to_numpy(leaf.value) for leaf in self._examples.tensors}

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Outputs in the order of the graph's."""
        args, kwargs = self._call(feeds)
        with torch.no_grad(), slow_paths():
            result = self._module(*args, **kwargs)
        return [_to_numpy(value) for value in flatten_outputs(result)[0].values()]

    def bound(
        self,
        feeds: Mapping[str, np.ndarray],
        stack: ExitStack,
        *,
        threads: int,
        device: str = "cpu",
        compiled: bool = False,
    ) -> Callable[[], None]:
        """A callable that runs the model once, to the end, on fixed inputs.

        Args:
            feeds: The inputs.
            stack: When it is closed, torch's number of threads is what it was.
            threads: Threads of torch on the CPU.
            device: "cpu", or "cuda" for a copy of the model on the GPU.
            compiled: Run it under ``torch.compile``, which compiles at the first run.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        stack.callback(torch.set_num_threads, before)
        on_gpu = device != "cpu"
        module = copy.deepcopy(self._module).to(device) if on_gpu else self._module
        if compiled:
            module = torch.compile(module)
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), self._call(feeds))

        def run() -> None:
            with torch.inference_mode():
                module(*args, **kwargs)
            if on_gpu:
                torch.cuda.synchronize()

        return run

    def _call(self, feeds: Mapping[str, np.ndarray]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        leaves = tuple(
            type(leaf)(leaf.name, self._tensor(feeds[leaf.name]), leaf.axes) if leaf.is_tensor else leaf
            for leaf in self._examples.leaves
        )
        return Examples(leaves, self._examples.structure).call()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = _to_torch(array)
        return tensor.float() if self._widened and tensor.is_floating_point() else tensor


def eager_contender(loaded: Loaded, target: TargetName, *, compiled: bool = False) -> tuple[MakeContender, str]:
    """Eager torch for a latency run, on the device of ``target`` where torch has it, and the provider to report.

    Args:
        loaded: The model.
        target: What the graph it is compared with runs on.
        compiled: Under ``torch.compile``; what that needs (a C++ compiler) is missed in the run, and said there.
    """
    on_gpu = target in ("cuda", "rocm") and torch.cuda.is_available() and loaded.kind == "module"
    device = "cuda" if on_gpu else "cpu"  # torch calls AMD's devices so too

    def make(feeds: Mapping[str, np.ndarray], stack: ExitStack, threads: int) -> Callable[[], None]:
        return Eager(loaded).bound(feeds, stack, threads=threads, device=device, compiled=compiled)

    return make, f"torch-{device}" + (" compiled" if compiled else "")


def _examples_of_program(loaded: Loaded) -> Examples:
    """The leaves of a saved program's inputs, under the names its graph gives them."""
    values, structure = pytree.tree_flatten((tuple(loaded.args), dict(loaded.kwargs)))
    names = [str(name) for name in loaded.module.graph_signature.user_inputs]
    return Examples(tuple(ExampleInput(n, v) for n, v in zip(names, values, strict=True)), structure)


def _is_half(module: torch.nn.Module) -> bool:
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters())


def _to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array.view(np.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))  # a copy of its own: models may write into their inputs


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes  # comes with onnx

        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.resolve_conj().resolve_neg().numpy()
