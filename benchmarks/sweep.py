"""Export and fuse a tiny random model of every type transformers has: ``python benchmarks/sweep.py --seconds 3600``.

The zoo (tests/zoo) holds models whose configuration somebody wrote; this run holds the others. Sizes are set by the
names of the fields of each configuration alone, no type is treated apart. Every model runs in a process of its own,
in a time box, and adds one line to a JSON file: what became of each attention and whether the fused graph agrees with
eager. A second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"

#: Field to the size it gets, where the configuration has one that is larger.
_SIZES: Final[dict[str, Any]] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "encoder_hidden_size"), 64),
    **dict.fromkeys(("embedding_size", "projection_dim", "decoder_hidden_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 96
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "d_kv"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "depth", "text_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    "qk_rope_head_dim": 8,
    **dict.fromkeys(("vocab_size", "text_vocab_size", "entity_vocab_size"), 100),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k", "topk_group", "n_group"), 2),
    **dict.fromkeys(("image_size", "img_size", "input_size"), 32),
    **dict.fromkeys(("patch_size", "num_mel_bins"), 8),
    **dict.fromkeys(("sliding_window", "attention_window"), 4),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
}
#: Fields that switch something off that is no part of a forward pass of one batch.
_OFF: Final = ("use_cache", "output_hidden_states", "output_attentions", "is_decoder_only_cache")
#: Parameters that a tiny model may have, and bytes of address space that its process may.
_LIMIT: Final = 40_000_000
_MEMORY: Final = 12 << 30


def tiny(config: Any) -> Any:
    """A configuration with every size made small, its sub-configurations too."""
    for name, value in list(vars(config).items()):
        if type(value).__name__.endswith("Config"):
            tiny(value)
        elif name in _OFF:
            setattr(config, name, False)
        elif name in _SIZES:
            _shrink(config, name, value)
    turned = vars(config).get("qk_rope_head_dim")
    if turned is not None and "head_dim" in vars(config):  # latent attention: what is rotated, not the whole head
        config.head_dim = turned
    return config


def _shrink(config: Any, name: str, value: Any) -> None:
    wanted = _SIZES[name]
    if isinstance(value, bool) or not isinstance(value, int) or value <= wanted:
        return
    try:
        setattr(config, name, wanted)
    except (AttributeError, ValueError, NotImplementedError):
        return  # computed from others


def build(kind: str, implementation: str | None) -> Any:
    """A tiny model of one type, its parameters drawn at 0.15.

    Raises:
        ValueError: when a tiny configuration is still a large model.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = tiny(transformers.CONFIG_MAPPING[kind]())
    for name in ("layer_types", "mlp_layer_types"):
        listed = vars(config).get(name)
        if isinstance(listed, list):
            setattr(config, name, listed[:2])
    if implementation is not None:
        config._attn_implementation = implementation
    with torch.device("meta"):
        size = sum(p.numel() for p in transformers.AutoModel.from_config(config).parameters())
    if size > _LIMIT:
        raise ValueError(f"{size / 1e6:.0f} million parameters are left")
    module = transformers.AutoModel.from_config(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator) * 0.15
                norm = parameter.dim() == 1 and name.endswith("weight")
                parameter.copy_(noise + 1.0 if norm else noise)
    return module


def one(kind: str) -> dict[str, Any]:
    """What becomes of one type."""
    from deployml import export
    from deployml.runtime.errors import DeploymlError

    start = time.perf_counter()
    found: dict[str, Any] = {"type": kind}
    try:
        module = build(kind, None)
    except Exception as error:  # a configuration that no general rule makes small
        return found | {"stage": "build", "error": _line(error), "seconds": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifact = export(module, output=Path(folder) / "model.onnx", html=False)
        except DeploymlError as error:
            found |= {"stage": "export", "error": _line(error)}
        except Exception as error:  # a fault of ours
            found |= {"stage": "bug", "error": f"{type(error).__name__}: {_line(error)}"}
        else:
            found |= _findings(artifact.report)
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())[:400]


def _findings(report: Any) -> dict[str, Any]:
    sites = report.sites
    parity = report.parity
    worst = None if parity is None or parity.verdict == "pass" else parity.worst
    return {
        "stage": "done",
        "fused": dict(Counter(str(s.op) for s in sites if s.status == "fused")),
        "declined": [f"{s.reason}: {s.detail}"[:300] for s in sites if s.status == "declined"],
        "parity": None if parity is None else parity.verdict,
        "worst": None
        if worst is None
        else f"{worst.output} {worst.case}: {worst.needed} of {worst.granted} {worst.note}",
    }


def kinds() -> list[str]:
    """The types that have a base model and no entry in the zoo: those that read text first, then by name."""
    import transformers

    sys.path.insert(0, str(HERE.parent / "tests"))
    from zoo.models import ZOO

    known = {name.replace("_", "") for name in ZOO}
    mapping = transformers.MODEL_MAPPING
    found = [kind for kind, config in transformers.CONFIG_MAPPING.items() if config in mapping]
    others = [kind for kind in found if kind.replace("-", "").replace("_", "") not in known]
    return sorted(others, key=lambda kind: (not _reads_text(kind), kind))


def _reads_text(kind: str) -> bool:
    """Whether the class of a type (or the first of several) reads tokens, and no images beside them."""
    import transformers

    try:
        model = transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[kind]]
        cls = model[0] if isinstance(model, tuple) else model
        return cls.main_input_name == "input_ids" and not hasattr(cls, "get_image_features")
    except (ImportError, ValueError):  # a class that needs a library which is not there
        return False


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None, help="these types, whatever is known of them")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--each", type=float, default=240.0, help="seconds a model may take")
    parser.add_argument("--out", type=Path, default=RESULTS / "sweep.json")
    given = parser.parse_args()
    import torch  # noqa: F401  (forked processes share what is imported here)
    import transformers  # noqa: F401

    import deployml  # noqa: F401

    known = {r["type"]: r for r in json.loads(given.out.read_text())} if given.out.exists() else {}
    end = time.monotonic() + given.seconds
    for kind in given.only if given.only is not None else [k for k in kinds() if k not in known]:
        if time.monotonic() > end:
            break
        known[kind] = _apart(kind, given.each)
        given.out.write_text(json.dumps([known[k] for k in sorted(known)], indent=1) + "\n")
        print(json.dumps(known[kind]), flush=True)
    print(Counter(r["stage"] for r in known.values()))
    return 0


def _apart(kind: str, seconds: float) -> dict[str, Any]:
    """The line of one type, made in a forked process: what was imported is imported once."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(kind, sender))
    process.start()
    sender.close()
    found: dict[str, Any] = {"type": kind, "stage": "time", "error": f"more than {seconds:.0f} s"}
    if receiver.poll(seconds):
        try:
            found = receiver.recv()
        except EOFError:
            process.join()
            found = {"type": kind, "stage": "crash", "error": f"exit {process.exitcode}"}
    process.kill()
    process.join()
    return found


def _send(kind: str, sender: Connection) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sender.send(one(kind))


if __name__ == "__main__":
    sys.exit(main())
