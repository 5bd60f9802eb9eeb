"""Our graphs beside onnxscript's ``optimize_for_ort``: nodes, fused attention and latency of the same modules.

    python benchmarks/nodes.py                  # all models, writes benchmarks/results/nodes.md
    python benchmarks/nodes.py bert llama       # some of them, printed only

Both start from torch.export of one module at opset 20 with dynamic batch and length; theirs is torch's own ONNX
export followed by ``onnxscript.rewriter.ort_fusions.optimize_for_ort``. A ratio is the median over rounds of (their
time / our time) with its 95 % interval, in processor time of one thread: 1.5 says that ours is 1.5 times as fast.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn

from deployml.custom_ops import register
from deployml.exporter.capture import capture
from deployml.exporter.load import load
from deployml.exporter.translate import translate
from deployml.passes import pipeline
from deployml.runtime.latency import bench, bound_runner
from deployml.runtime.target import Target

OPSET, WIDTH, HEADS, LAYERS, INNER, VOCABULARY = 20, 256, 8, 4, 1024, 1000
SHAPES = ((1, 128), (4, 128))
FUSED = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
COMMON = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}

Feed = Callable[[int, int], dict[str, torch.Tensor]]
Axes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Model:
    """How to build a module and what to feed it."""

    build: Callable[[], nn.Module]
    feed: Feed
    axes: Axes


class Block(nn.Module):
    """A pre-norm transformer block around a hand-written attention."""

    def __init__(self, attend: Callable[[Block, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.one, self.two = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.register_buffer("tril", torch.tril(torch.ones(512, 512)).view(1, 1, 512, 512))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.out(self.attend(self, self.one(x)))
        return x + self.down(F.gelu(self.up(self.two(x))))


def nano(block: Block, x: torch.Tensor) -> torch.Tensor:
    batch, length, _ = x.shape
    q, k, v = (y.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2) for y in block.qkv(x).split(WIDTH, dim=2))
    scores = q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
    scores = scores.masked_fill(block.tril[:, :, :length, :length] == 0, float("-inf"))
    return (F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(batch, length, WIDTH)


def einsum(block: Block, x: torch.Tensor) -> torch.Tensor:
    batch, length, _ = x.shape
    q, k, v = (y.view(batch, length, HEADS, WIDTH // HEADS) for y in block.qkv(x).chunk(3, dim=-1))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (WIDTH // HEADS) ** -0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(batch, length, WIDTH)


def packed(block: Block, x: torch.Tensor) -> torch.Tensor:
    batch, length, _ = x.shape
    q, k, v = block.qkv(x).reshape(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)


class Padded(nn.Module):
    """nn.TransformerEncoder with a key-padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


def _tokens(batch: int, length: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length - length // 4 :] = 0
    return {"input_ids": torch.randint(5, VOCABULARY, (batch, length)), "attention_mask": mask}


def _both(batch: int, length: int) -> dict[str, torch.Tensor]:
    return _tokens(batch, length) | {"decoder_input_ids": torch.randint(5, VOCABULARY, (batch, length))}


def _hidden(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, length, WIDTH)}


def _padded(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, length, WIDTH), "padding": _tokens(batch, length)["attention_mask"] == 0}


TOKENS: Axes = {"input_ids": {0: "b", 1: "s"}, "attention_mask": {0: "b", 1: "s"}}
BOTH: Axes = TOKENS | {"decoder_input_ids": {0: "b", 1: "s"}}
HIDDEN: Axes = {"x": {0: "b", 1: "s"}}


def _text(make: Callable[[], nn.Module]) -> Model:
    return Model(make, _tokens, TOKENS)


def _decoder(name: str, **more: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = getattr(tf, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
        sizes = COMMON | {"vocab_size": VOCABULARY, "num_key_value_heads": 2, "use_cache": False} | more
        return getattr(tf, f"{name}ForCausalLM")(config(**sizes))

    return make


def _hand(attend: Callable[[Block, torch.Tensor], torch.Tensor]) -> Model:
    return Model(lambda: nn.Sequential(*(Block(attend) for _ in range(LAYERS))), _hidden, HIDDEN)


MODELS: dict[str, Model] = {
    "bert": _text(lambda: tf.BertModel(tf.BertConfig(**COMMON, vocab_size=VOCABULARY), add_pooling_layer=False)),
    "distilbert": _text(
        lambda: tf.DistilBertModel(
            tf.DistilBertConfig(dim=WIDTH, hidden_dim=INNER, n_layers=LAYERS, n_heads=HEADS, vocab_size=VOCABULARY)
        )
    ),
    "gpt2": _text(
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY, use_cache=False)
        )
    ),
    "llama": _text(_decoder("Llama")),
    "qwen3": _text(_decoder("Qwen3", head_dim=32)),
    "gemma3": _text(_decoder("Gemma3", head_dim=32, sliding_window=64)),
    "vit": Model(
        lambda: tf.ViTModel(tf.ViTConfig(**COMMON, image_size=176, patch_size=16), add_pooling_layer=False),
        lambda batch, _: {"pixel_values": torch.randn(batch, 3, 176, 176)},
        {"pixel_values": {0: "b"}},
    ),
    "clip-text": _text(
        lambda: tf.CLIPTextModel(
            tf.CLIPTextConfig(**COMMON, vocab_size=VOCABULARY, max_position_embeddings=160, eos_token_id=999)
        )
    ),
    "bart": Model(
        lambda: tf.BartModel(
            tf.BartConfig(
                d_model=WIDTH,
                encoder_layers=LAYERS,
                decoder_layers=LAYERS,
                encoder_attention_heads=HEADS,
                decoder_attention_heads=HEADS,
                encoder_ffn_dim=INNER,
                decoder_ffn_dim=INNER,
                vocab_size=VOCABULARY,
                use_cache=False,
            )
        ),
        _both,
        BOTH,
    ),
    "whisper-encoder": Model(
        lambda: tf.models.whisper.modeling_whisper.WhisperEncoder(
            tf.WhisperConfig(
                d_model=WIDTH,
                encoder_layers=LAYERS,
                encoder_attention_heads=HEADS,
                encoder_ffn_dim=INNER,
                max_source_positions=128,
            )
        ),
        lambda batch, length: {"input_features": torch.randn(batch, 80, 256)},
        {"input_features": {0: "b"}},
    ),
    "nn.TransformerEncoder": Model(Padded, _padded, {**HIDDEN, "padding": {0: "b", 1: "s"}}),
    "hand-nanogpt": _hand(nano),
    "hand-einsum": _hand(einsum),
    "hand-packed": _hand(packed),
}


def _shapes(model: Model) -> dict[str, Any]:
    dims = {name: torch.export.Dim(name) for name in "bs"}
    return {name: {axis: dims[label] for axis, label in axes.items()} for name, axes in model.axes.items()}


def ours(module: nn.Module, model: Model) -> tuple[ir.Model, float]:
    """Our graph, and the seconds of the passes."""
    feed = model.feed(3, 7)
    if isinstance(module, nn.Sequential):  # its forward names its input "input"
        shapes: Any = tuple(_shapes(model).values())
        loaded = load(module, args=tuple(feed.values()), dynamic_shapes=shapes)
    else:
        loaded = load(module, kwargs=feed, dynamic_shapes=_shapes(model))
    with loaded:
        translated = translate(capture(loaded), opset=OPSET).model
    start = time.perf_counter()
    made = pipeline.run(
        translated,
        Target(name="cpu", onnxruntime=(1, 31, 1), opset=OPSET),
        configure=register,
    ).model
    return made, time.perf_counter() - start


def theirs(module: nn.Module, model: Model) -> ir.Model:
    """onnxscript's graph of the same module."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    feed = model.feed(3, 7)
    positional = isinstance(module, nn.Sequential)
    shapes: Any = tuple(_shapes(model).values()) if positional else _shapes(model)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            module,
            tuple(feed.values()) if positional else (),
            kwargs={} if positional else feed,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    optimize_for_ort(program.model)
    return program.model


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    """A session of one thread, so that processor time is the time of the work."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    register(options, "cpu")
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def fused(model: ir.Model) -> int:
    """Attention nodes of any kind."""
    return sum(n.op_type in FUSED or n.op_type.startswith("FlashAttention") for n in model.graph.all_nodes())


def _named(one: onnxruntime.InferenceSession, feed: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    wanted = [i.name for i in one.get_inputs()]
    arrays = [v.numpy() for v in feed.values()]
    return {n: feed[n].numpy() for n in wanted} if set(wanted) <= set(feed) else dict(zip(wanted, arrays, strict=True))


def compare(name: str, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    model = MODELS[name]
    module = model.build().eval()
    for weights in module.parameters():
        if weights.dim() == 1:  # biases start as 0 and norms as 1: both sides would leave them out
            weights.data += 0.15 * torch.randn_like(weights)
    mine, passes = ours(module, model)
    row: dict[str, Any] = {
        "name": name,
        "nodes": mine.graph.num_nodes(),
        "fused": fused(mine),
        "passes": passes,
    }
    own = session(mine)
    try:
        rival_model = theirs(module, model)
        row |= {"their_nodes": rival_model.graph.num_nodes(), "their_fused": fused(rival_model)}
        rival = session(rival_model)
    except Exception as error:
        row["note"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}"
        return row
    for batch, length in SHAPES:
        feed = model.feed(batch, length)
        runners = {
            "fused": bound_runner(own, _named(own, feed)),
            "onnxscript": bound_runner(rival, _named(rival, feed)),
        }
        report = bench(runners, shapes={}, threads=1, seconds=seconds, clock=time.process_time)
        row[f"{batch}x{length}"] = report.ratios[0]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a page."""
    lines = [
        "# Our graphs beside onnxscript's",
        "",
        *(line.strip() for line in (__doc__ or "").strip().splitlines()[5:]),
        "",
        f"Width {WIDTH}, {LAYERS} layers, {HEADS} heads (2 key/value heads in the grouped decoders); float32, "
        f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}. A quarter of the last row is padding.",
        "",
        "Biases and norms are drawn (standard deviation 0.15): as initialised, both sides would leave them out.",
        "",
        "| model | our nodes | their nodes | our fused | their fused | ratio at 1x128 | ratio at 4x128 | passes, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        ratios = [
            f"{x.value:.2f} ({x.low:.2f}..{x.high:.2f})" if (x := r.get(f"{b}x{s}")) is not None else "-"
            for b, s in SHAPES
        ]
        lines.append(
            f"| {r['name']} | {r['nodes']} | {r.get('their_nodes', '-')} | {r['fused']} | {r.get('their_fused', '-')} "
            f"| {ratios[0]} | {ratios[1]} | {r['passes']:.1f} |"
        )
    notes = [f"- {r['name']}: theirs does not work: {r['note']}" for r in rows if "note" in r]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def main() -> None:
    """Compare and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[[], *MODELS], default=[])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each ratio")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in given.models or MODELS:
        rows.append(compare(name, given.seconds))
        print(rows[-1], file=sys.stderr, flush=True)
    page = table(rows)
    if not given.models:
        target = Path(__file__).parent / "results" / "nodes.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
