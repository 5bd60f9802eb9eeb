"""Zip archives, read with suspicion: truncated, oversized and ambiguous ones are refused before torch sees them."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import InputError

__all__ = ["Archive", "open_archive"]

#: An archive may declare this many times its size on disk: weights do not compress further than that.
_MAX_INFLATION = 20
#: Below this many bytes declared, inflation is nobody's business.
_ALWAYS_FINE = 64 * 1024 * 1024
#: More entries than this is no model; reading the directory alone would take minutes.
_MAX_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Archive:
    """The directory of a zip file.

    Attributes:
        path: The file.
        root: First folder of every entry ("model" in "model/data.pkl"), or "".
        sizes: Declared size in bytes of every entry, by its name below ``root``.
    """

    path: Path
    root: str
    sizes: dict[str, int]

    def has(self, name: str) -> bool:
        """Say whether an entry of this name (below the root) exists."""
        return name in self.sizes

    def any_under(self, folder: str) -> bool:
        """Say whether an entry lies in this folder (below the root)."""
        return any(name.startswith(folder) for name in self.sizes)

    def read(self, name: str, *, limit: int) -> bytes:
        """Read one entry of at most ``limit`` bytes.

        Raises:
            InputError: The entry is larger than that, or damaged.
        """
        if self.sizes[name] > limit:
            raise InputError(
                f"{self.path.name}: the entry {name} declares {self.sizes[name]} bytes, more than any model has",
                hint="Save the model anew with the tool that made it; this file is damaged or hostile.",
            )
        full = f"{self.root}/{name}" if self.root else name
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(full) as entry:
                return entry.read(limit + 1)
        except (
            zipfile.BadZipFile,
            zipfile.LargeZipFile,
            zlib.error,
            OSError,
            ValueError,
            NotImplementedError,
            RuntimeError,
            EOFError,
        ) as e:
            raise _damaged(self.path, str(e)) from e


def open_archive(path: Path) -> Archive:
    """Read the directory of a zip file and check that loading it is safe in size and unambiguous.

    Raises:
        InputError: Truncated, damaged, encrypted, two entries of one name, or declared sizes beyond reason.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise _damaged(path, str(e)) from e
    names = [entry.filename for entry in entries]
    if not names or len(names) > _MAX_ENTRIES:
        raise _damaged(path, f"{len(names)} entries")
    if len(set(names)) != len(names):
        raise _damaged(path, "two entries share one name")
    declared, held = sum(entry.file_size for entry in entries), path.stat().st_size
    if declared > max(_ALWAYS_FINE, _MAX_INFLATION * held):
        raise InputError(
            f"{path.name} declares {declared} bytes of content in a file of {held} bytes: refused unread",
            hint="Such an archive exhausts memory when it is loaded. Ask its maker for a plain save of the model.",
        )
    root = _common_root(names)
    cut = len(root) + 1 if root else 0
    return Archive(path, root, {entry.filename[cut:]: entry.file_size for entry in entries})


def _common_root(names: list[str]) -> str:
    first = names[0].split("/", 1)[0]
    return first if all(name.startswith(first + "/") for name in names) else ""


def _damaged(path: Path, detail: str) -> InputError:
    return InputError(
        f"{path.name} starts like a zip archive but cannot be read as one ({detail})",
        hint="The file is truncated or damaged: copy or download it again and compare its size with the original.",
    )
