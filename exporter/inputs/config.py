"""Derive inputs from what a transformers model says of itself: forward's parameters and config fields.

There is no list of model types here: a parameter name such as ``pixel_values`` has one meaning in the whole library,
and the config fields say its sizes.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .fields import field_of, parameters_of
from .sizes import Limits
from .spec import InputSpec

__all__ = ["derive_specs", "left_out", "limits_of"]

#: Highest position of a text model, under the names in use.
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "block_size",
    "n_ctx",
)
_VISION = ("vision_config", "encoder", "backbone_config", "image_config")
_AUDIO = ("audio_config", "encoder")
_DEFAULT_IMAGE = 224


def derive_specs(module: Any) -> tuple[InputSpec, ...] | None:
    """Return the inputs of a transformers-like module, or None where forward wants something not known here.

    A module is transformers-like when it carries a config and its main input bears a known name.
    """
    main = getattr(module, "main_input_name", None)
    parameters = parameters_of(module)
    if getattr(module, "config", None) is None or not isinstance(main, str) or main not in parameters:
        return None
    makers = {
        "input_ids": _text,
        "pixel_values": _image,
        "input_features": _features,
        "input_values": _wave,
    }
    several = [name for name in makers if name in parameters and _needed(name, main, module, parameters)]
    specs: list[InputSpec] = []
    for name in several:
        made = makers[name](module, parameters, several)
        if made is None:
            return None
        specs += made
    specs += _decoder(module, parameters, specs)
    covered = {spec.name for spec in specs}
    ordered = sorted(specs, key=lambda spec: list(parameters).index(spec.name))
    return tuple(ordered) if specs and not _uncovered(parameters, covered) else None


def left_out(module: Any, specs: tuple[InputSpec, ...]) -> tuple[str, ...]:
    """Name the optional inputs of another sense (images of a language model) that the derived inputs do without."""
    senses = {
        "pixel_values": "vision_config",
        "input_features": "audio_config",
        "input_values": "audio_config",
    }
    taken, parameters = {spec.name for spec in specs}, parameters_of(module)
    return tuple(
        name
        for name, config in senses.items()
        if name in parameters and name not in taken and field_of(module, config) is not None
    )


def _needed(name: str, main: str, module: Any, parameters: dict[str, Any]) -> bool:
    """Main input, an input without default, or the other half of a two-tower model (CLIP)."""
    if name == main or parameters[name].default is parameters[name].empty:
        return True
    two_towers = field_of(module, "text_config") is not None and field_of(module, "vision_config") is not None
    return two_towers and field_of(module, "projection_dim") is not None and name in ("input_ids", "pixel_values")


def _uncovered(parameters: dict[str, Any], covered: set[str]) -> list[str]:
    variadic = (2, 4)  # inspect.Parameter.VAR_POSITIONAL, VAR_KEYWORD
    return [
        name
        for name, parameter in parameters.items()
        if name not in covered and parameter.default is parameter.empty and int(parameter.kind) not in variadic
    ]


def _text(module: Any, parameters: dict[str, Any], several: list[str]) -> list[InputSpec] | None:
    batch = "text_batch" if "pixel_values" in several else "batch"
    specs = [InputSpec("input_ids", "int64", (batch, "seq"))]
    if "attention_mask" in parameters:
        specs.append(InputSpec("attention_mask", "int64", (batch, "seq")))
    if "bbox" in parameters:  # places in a table, or shares of the page
        listed = field_of(module, "max_2d_position_embeddings", ("text_config", "encoder")) is not None
        specs.append(InputSpec("bbox", "int64" if listed else _float(module), (batch, "seq", 4)))
    return specs


def _image(module: Any, parameters: dict[str, Any], several: list[str]) -> list[InputSpec] | None:
    batch = "image_batch" if "input_ids" in several else "batch"
    size = field_of(module, "image_size", _VISION) or _DEFAULT_IMAGE
    if isinstance(size, dict):
        size = (size.get("height", _DEFAULT_IMAGE), size.get("width", _DEFAULT_IMAGE))
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    channels = field_of(module, "num_channels", _VISION)
    channels = channels if isinstance(channels, int) else 3
    frames = field_of(module, "num_frames", _VISION)
    dims: tuple[int | str, ...] = (channels, height, width)
    if isinstance(frames, int):
        dims = (frames, *dims)
    return [InputSpec("pixel_values", _float(module), (batch, *dims))]


def _features(module: Any, parameters: dict[str, Any], several: list[str]) -> list[InputSpec] | None:
    """Spectrograms. An encoder with a table of positions (Whisper) takes exactly twice as many frames."""
    mels = field_of(module, "num_mel_bins", _AUDIO)
    positions = field_of(module, "max_source_positions", _AUDIO)
    per_channel = field_of(module, "input_feat_per_channel", _AUDIO)
    if isinstance(per_channel, int):
        channels = field_of(module, "input_channels", _AUDIO) or 1
        return [InputSpec("input_features", _float(module), ("batch", "frames", per_channel * channels))]
    if isinstance(mels, int) and isinstance(positions, int):
        return [InputSpec("input_features", _float(module), ("batch", mels, 2 * positions))]
    width = (
        field_of(module, "feature_projection_input_dim", _AUDIO)
        or field_of(module, "input_dim", _AUDIO)
        or mels  # a convolution in front, and no table of positions
    )
    if isinstance(width, int):
        return [InputSpec("input_features", _float(module), ("batch", "frames", width))]
    return None


def _wave(module: Any, parameters: dict[str, Any], several: list[str]) -> list[InputSpec] | None:
    """Raw audio where the config lists strides of convolutions; else a spectrogram of fixed length."""
    mels, length = field_of(module, "num_mel_bins", _AUDIO), field_of(module, "max_length", _AUDIO)
    if isinstance(field_of(module, "conv_stride", _AUDIO), list | tuple):
        return [InputSpec("input_values", _float(module), ("batch", "samples"))]
    if isinstance(mels, int) and isinstance(length, int):
        return [InputSpec("input_values", _float(module), ("batch", length, mels))]
    return None


def _decoder(module: Any, parameters: dict[str, Any], specs: list[InputSpec]) -> list[InputSpec]:
    """A decoder's own tokens, in the batch of the encoder's input."""
    if "decoder_input_ids" not in parameters or field_of(module, "is_encoder_decoder") is False:
        return []
    batch = specs[0].dims[0] if specs else "batch"
    return [InputSpec("decoder_input_ids", "int64", (batch, "decoder_seq"))]


def _float(module: Any) -> str:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return str(parameter.dtype).removeprefix("torch.")
    return "float32"


def limits_of(module: Any) -> Limits:
    """Smallest and largest example size per dimension name."""
    positions = [field_of(module, name, ("text_config", "decoder", "encoder")) for name in _POSITIONS]
    highest = min((int(p) for p in positions if type(p) is int and p > 1), default=None)
    # Some tables reserve the first positions (RoBERTa, BART, OPT), so keep clear of the end.
    longest = None if highest is None else max(2, highest - 4)
    strides, kernels = field_of(module, "conv_stride", _AUDIO), field_of(module, "conv_kernel", _AUDIO)
    samples = 1000
    if isinstance(strides, list | tuple) and isinstance(kernels, list | tuple):
        samples = 12 * prod(int(stride) for stride in strides) + max(map(int, kernels)) * len(kernels)
    return {
        "batch": (3, None),
        "text_batch": (3, None),
        "image_batch": (2, None),
        "seq": (7, longest),
        "decoder_seq": (5, longest),
        "frames": (40, None),
        "samples": (samples, None),
    }
