"""Find out what a source is by its content; an ending proves nothing."""

from __future__ import annotations

import difflib
import json
import struct
from enum import Enum
from pathlib import Path

from ...runtime.errors import InputError
from .archive import Archive, open_archive

__all__ = ["Format", "sniff"]

_HEAD = 4096
#: safetensors itself refuses longer headers.
_MAX_SAFETENSORS_HEADER = 100_000_000
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")


class Format(Enum):
    """A form in which a model can come."""

    TORCH_ZIP = "torch.save archive"
    TORCH_LEGACY = "torch.save file of before 1.6"
    PICKLE = "plain pickle"
    PROGRAM = "torch.export program (.pt2)"
    TORCHSCRIPT = "TorchScript archive"
    SAFETENSORS = "safetensors file"
    HUGGING_FACE = "Hugging Face directory"


#: First bytes of files that are no PyTorch model: what they are and what to do with them.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the model itself",
        "Run `git lfs pull` and try again.",
    ),
    (b"GGUF", "a GGUF file of llama.cpp", "Export from the original PyTorch or safetensors weights."),
    (b"\x89HDF", "an HDF5 (Keras) file", "Export from the PyTorch form of the model."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it and give the model inside."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it and give the model inside."),
    (b"\x93NUMPY", "a NumPy array", "Give a model as SOURCE; arrays go to --inputs as .npz."),
    (b"<!DOCTYPE", "a web page", "The download went wrong: fetch the file itself."),
    (b"<!doctype", "a web page", "The download went wrong: fetch the file itself."),
    (b"<html", "a web page", "The download went wrong: fetch the file itself."),
)


def sniff(path: Path) -> Format:
    """Name the form of the model at ``path``.

    Raises:
        InputError: Missing, empty, truncated, or no form of a PyTorch model; the message says what it is.
    """
    if not path.exists():
        raise _missing(path)
    if path.is_dir():
        return _sniff_folder(path)
    if not path.is_file():
        raise InputError(f"{path.name} is neither a file nor a folder", hint="Give the path of a saved model.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as e:
        raise InputError(f"{path.name} cannot be read: {e.strerror}", hint="Check its permissions, or copy it.") from e
    if size == 0:
        raise InputError(
            f"{path.name} is empty", hint="Save the model again; the disk may have been full the last time."
        )
    return _sniff_file(path, head, size)


def _sniff_file(path: Path, head: bytes, size: int) -> Format:
    for magic, what, hint in _FOREIGN:
        if head.startswith(magic):
            raise InputError(f"{path.name} is {what}", hint=hint)
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(open_archive(path))
    if _is_safetensors(path, head, size):
        return Format.SAFETENSORS
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return Format.TORCH_LEGACY if _LEGACY_MAGIC in head[:32] else Format.PICKLE
    if _looks_like_onnx(head):
        raise InputError(
            f"{path.name} is an ONNX model already",
            hint=f"Run `deployml optimize {path.name} -o fused.onnx` to fuse its attention.",
        )
    if head.lstrip()[:1] == b"{":
        raise _json_given(path)
    raise InputError(
        f"{path.name} is no form of a PyTorch model that deployml knows (it starts with {head[:8].hex(' ')})",
        hint="Give a torch.save file, a .pt2 program, a TorchScript archive, a safetensors file or a Hugging Face "
        "folder. If it was one of these, it is damaged: copy it again.",
    )


def _sniff_zip(archive: Archive) -> Format:
    if archive.any_under("data/aotinductor/"):
        raise InputError(
            f"{archive.path.name} is a compiled AOTInductor package: it holds machine code and no graph",
            hint="Give the program it was compiled from: torch.export.save(torch.export.export(...), 'model.pt2').",
        )
    if archive.any_under("models/") and archive.has("archive_format"):
        return Format.PROGRAM
    if archive.has("serialized_exported_program.json"):
        raise InputError(
            f"{archive.path.name} is a torch.export program in the format of torch 2.7 and before",
            hint="Load it with the torch that wrote it, export the module again and save it with torch 2.9 or later.",
        )
    if archive.has("constants.pkl") and archive.has("data.pkl"):
        return Format.TORCHSCRIPT
    if archive.has("data.pkl"):
        return Format.TORCH_ZIP
    if any(name.endswith(".npy") for name in archive.sizes):
        raise InputError(
            f"{archive.path.name} is an .npz file of arrays, not a model",
            hint=f"Give the model as SOURCE and this file as `--inputs {archive.path.name}`.",
        )
    raise InputError(
        f"{archive.path.name} is a zip archive without a PyTorch model in it",
        hint="If the model is packed inside, unpack the archive and give the model itself.",
    )


def _is_safetensors(path: Path, head: bytes, size: int) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (header,) = struct.unpack("<Q", head[:8])
    if header + 8 <= size:
        return header <= _MAX_SAFETENSORS_HEADER
    if header <= _MAX_SAFETENSORS_HEADER and b'"dtype"' in head:
        raise InputError(
            f"{path.name} is a truncated safetensors file (its header alone needs {header + 8} bytes of {size})",
            hint="Copy or download it again and compare its size with the original.",
        )
    return False


def _looks_like_onnx(head: bytes) -> bool:
    # ModelProto opens with field 1 (ir_version, a small varint), then a string or message field up to 8.
    return len(head) > 3 and head[0] == 0x08 and 1 <= head[1] <= 30 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x3A, 0x42)


def _json_given(path: Path) -> InputError:
    folder = path.parent.name or "."
    try:
        index = "weight_map" in json.loads(path.read_bytes()[:50_000_000])
    except (ValueError, RecursionError, OSError):
        index = False
    what = "the index of sharded weights" if index else "a JSON file"
    return InputError(f"{path.name} is {what}, not a model", hint=f"Give the folder it lies in: {folder}/")


def _sniff_folder(path: Path) -> Format:
    if (path / "config.json").exists():
        return Format.HUGGING_FACE
    weights = sorted(p.name for p in path.iterdir() if p.suffix in {".pt", ".pth", ".pt2", ".bin", ".safetensors"})
    if (path / "config.json").is_symlink():
        raise InputError(
            f"config.json in {path.name}/ is a link to a file that is not there",
            hint="Download the snapshot again; only its links were copied.",
        )
    hint = "Give a folder that holds config.json and *.safetensors"
    hint += f", or one file of it: {', '.join(weights[:5])}." if weights else ", or a model file."
    raise InputError(f"{path.name}/ has no config.json, so it is no Hugging Face folder", hint=hint)


def _missing(path: Path) -> InputError:
    if path.is_symlink():
        return InputError(
            f"{path.name} is a link to a file that is not there",
            hint="Fetch the file it points to, then try again.",
        )
    siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=3)
    if close:
        return InputError(f"there is no file {path}", hint=f"Did you mean {' or '.join(close)}?")
    return InputError(
        f"there is no file {path}",
        hint="Give the path of a saved model. deployml downloads nothing: fetch a model from a hub first.",
    )
