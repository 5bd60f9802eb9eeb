"""Mutated files against the loaders: ``python -m tests.faults.fuzz --seconds 600 --seed 1``.

Whatever bytes a file holds, a loader returns a model or raises a DeploymlError with a hint. Anything else, and anything
that takes longer than a few seconds, is a find: its bytes are written out. Nothing is run but the loaders.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .corpus import BROKEN, UNRUNNABLE, good

__all__ = ["Counts", "fuzz", "main", "mutated"]

#: Seconds that one file may take.
SLOW = 5.0
#: Bytes that mean something to the formats: ends of varints, sizes, tags, pickle and zip marks.
LOUD = (
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\xff" * 8,
    b"PK\x03\x04",
    b"\x80\x04",
    b"c",
    b"R",
    b".",
)


@dataclass
class Counts:
    """What a run counted: files tried, outcomes by format, and finds (format, bytes, what happened)."""

    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    finds: list[tuple[str, bytes, str]] = field(default_factory=list)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The same with one to eight changes: bits flipped, pieces cut, doubled, moved, or overwritten with loud bytes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        if not data:
            break
        at, length = draw.randrange(len(data)), draw.choice((1, 1, 2, 4, 8, 32, 200))
        kind = draw.randrange(6)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        elif kind == 3:
            data[at:at] = bytes(draw.randrange(256) for _ in range(length))
        elif kind == 4:
            loud = draw.choice(LOUD)
            data[at : at + len(loud)] = loud
        else:
            del data[at:]
    return bytes(data)


def seeds() -> dict[str, list[bytes]]:
    """Files to begin with, by ending; bad ones among them, which are near to other bad ones."""
    import safetensors.torch
    import torch

    tensors = {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3)}
    zipped, older, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(tensors, zipped)
    torch.save(tensors, older, _use_new_zipfile_serialization=False)
    np.savez(arrays, x=np.ones((2, 4), np.float32))
    with tempfile.TemporaryDirectory() as folder:
        models = [good().SerializeToString()]
        for make in (*BROKEN.values(), *UNRUNNABLE.values()):
            models.append(make(Path(folder)).read_bytes())
    return {
        ".onnx": models,
        ".pt": [zipped.getvalue(), older.getvalue()],
        ".safetensors": [safetensors.torch.save(tensors)],
        ".npz": [arrays.getvalue()],
    }


def loaders() -> dict[str, Callable[[Path], object]]:
    """What reads each kind of file."""
    from deployml.exporter.load import load
    from deployml.exporter.lock import lock
    from deployml.exporter.onnx_file import open_file

    def onnx(path: Path) -> object:
        open_file(path)
        return lock(path, output=path.with_suffix(".lock.json"))

    def linear() -> object:
        import torch

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = torch.nn.Linear(4, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.a(x)

        return Module()

    def torch_file(path: Path) -> object:
        return load(path, factory=linear, inputs=["x:float32[batch,4]"])

    def arrays(path: Path) -> object:
        return load(linear(), inputs_file=path)

    return {".onnx": onnx, ".pt": torch_file, ".safetensors": torch_file, ".npz": arrays}


def fuzz(draw: random.Random, until: Callable[[int], bool], endings: Sequence[str] = ()) -> Counts:
    """Mutate and load until ``until(number of files tried)`` says so."""
    counts, readers = Counts(), loaders()
    pool = [(ending, content) for ending, contents in seeds().items() for content in contents]
    pool = [(e, c) for e, c in pool if not endings or e in endings]
    by_ending = {e: [c for other, c in pool if other == e] for e, _ in pool}
    with tempfile.TemporaryDirectory() as folder:
        for ending in _turns(sorted(by_ending)):
            if until(counts.tried):
                return counts
            content = mutated(draw.choice(by_ending[ending]), draw)
            path = Path(folder) / f"file{ending}"
            path.write_bytes(content)
            counts.tried += 1
            outcome = _outcome(readers[ending], path)
            counts.outcomes[f"{ending} {outcome if outcome in ('loaded', 'refused') else 'find'}"] += 1
            if outcome not in ("loaded", "refused"):
                counts.finds.append((ending, content, outcome))
    return counts


def _turns(names: Sequence[str]) -> Iterator[str]:
    while True:
        yield from names


def _outcome(read: Callable[[Path], object], path: Path) -> str:
    from deployml import DeploymlError

    start = time.perf_counter()
    try:
        read(path)
        outcome = "loaded"
    except DeploymlError as error:
        outcome = "refused" if error.message and error.hint else f"no hint: {error.message}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    took = time.perf_counter() - start
    return outcome if took < SLOW else f"took {took:.1f} s ({outcome})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz for a time, print the counts, write the finds. Returns 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="an ending, such as .onnx")
    parser.add_argument("--finds", type=Path, help="folder for the bytes of finds")
    given = parser.parse_args(arguments)
    end = time.monotonic() + given.seconds
    counts = fuzz(random.Random(given.seed), lambda _: time.monotonic() > end, given.only)
    print(f"{counts.tried} files: " + ", ".join(f"{name} {n}" for name, n in sorted(counts.outcomes.items())))
    for number, (ending, content, said) in enumerate(counts.finds):
        print(f"find {number}: {ending}: {said}")
        if given.finds is not None:
            given.finds.mkdir(parents=True, exist_ok=True)
            (given.finds / f"find-{number}{ending}").write_bytes(content)
    return int(bool(counts.finds))


if __name__ == "__main__":
    sys.exit(main())
