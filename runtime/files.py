"""Writing files so that a fault at any moment leaves whole files: the old ones or the new ones.

A set of files is written into a hidden folder beside its destination, synced, sealed with a small plan, and only
then renamed into place, the model last. The seal is the point of no return: before it, a fault changes nothing;
after it, :func:`recover` (called by the next writer of the same model, and by ``open_session``) finishes the renames.
Where a model's weights file is replaced, the models that read it are taken away first: for the moment in
between there is no model at such a name, rather than an old model with new weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from . import crumbs
from .errors import InputError
from .memory import free_disk, human_bytes

try:
    import fcntl
except ImportError:  # Windows: without locks an abandoned folder is told by its seal alone
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Staging",
    "append_text",
    "atomic_write",
    "check_apart",
    "check_writable",
    "recover",
    "same_place",
    "sha256_of",
]

_SEAL: Final = "PLAN.json"
_LOCK: Final = "LOCK"
_MODEL_SUFFIX: Final = ".onnx"
_GRACE_SECONDS: Final = 600.0

#: What an OSError number means to the user and what to do about it.
_FAULTS: Final[dict[int, tuple[str, str]]] = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another folder"),
    errno.EFBIG: ("the file would be larger than allowed here", "raise the limit (ulimit -f) or choose another folder"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.EACCES: ("no permission to write there", "change the permissions or choose another folder"),
    errno.EPERM: ("no permission to write there", "change the permissions or choose another folder"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another folder"),
    errno.ENOENT: ("there is no such folder, and none can be made there", "choose another folder"),
    errno.EEXIST: ("a part of the path is a file, not a folder", "choose another folder"),
    errno.EISDIR: ("there is a folder of that name", "choose another file name"),
    errno.ENAMETOOLONG: ("the file name is too long", "choose a shorter name"),
    errno.EIO: ("the disk reported an error", "check the disk or choose another folder"),
}


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Replace the file at ``path`` by ``data`` (text as UTF-8) in one step: readers see the old or the new file.

    Raises:
        InputError: if the disk is full, read-only, or the folder cannot be written; the old file is whole.
    """
    path = Path(path)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    with _plain_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp is private to the owner; a product is not
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)


def append_text(path: str | Path, text: str) -> None:
    """Add ``text`` to the end of a file that others write to as well; what UTF-8 cannot hold is escaped.

    Raises:
        InputError: if it cannot be written.
    """
    path = Path(path)
    with _plain_faults(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def check_writable(model: str | Path) -> None:
    """See to it, before any work is done, that a model can be written to this path; nothing is written.

    Raises:
        InputError: if there is a folder of that name, a file where a folder should be, or no permission.
    """
    path = Path(model).absolute()
    with _plain_faults(Path(model)):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        nearest = next(folder for folder in path.parents if os.path.lexists(folder))
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths are one name in one folder; a link to a file is another place than the file."""
    return (os.path.realpath(one.parent), one.name) == (os.path.realpath(other.parent), other.name)


def check_apart(output: Path, inputs: Iterable[Path], *, hint: str) -> None:
    """See to it that what is written does not take the place of what is read.

    Args:
        output: A file that will be written, or taken away.
        inputs: What is read.
        hint: What to do about it.

    Raises:
        InputError: naming the file that would be lost.
    """
    if any(same_place(output, path) or _same_file(output, path) for path in inputs):
        raise InputError(f"'{output}' is read here and would be written over", hint=hint)


def _same_file(one: Path, other: Path) -> bool:
    """Whether it is one file under two names; a link may be replaced, which leaves the file that it leads to."""
    with suppress(OSError):
        return not one.is_symlink() and one.samefile(other)
    return False


class Staging:
    """A set of files that appears all at once beside ``model``, or not at all.

    Use as a context manager; leave it without an exception to commit. An exception inside leaves the destination
    untouched. Files are named without a folder, as they will be called.

    Args:
        model: Path of the main model; its folder (made if missing) receives every file.

    Raises:
        InputError: if the folder cannot be written, the disk is full and the like; previous files are whole.
    """

    def __init__(self, model: str | Path) -> None:
        self._model = Path(model)
        self._folder = self._model.parent
        self._drop: list[str] = []
        self._lock: int | None = None
        self._stage: Path | None = None

    @property
    def folder(self) -> Path:
        """The hidden folder the files are written into."""
        if self._stage is None:
            raise RuntimeError("Staging is used outside its with block")
        return self._stage

    def path(self, name: str) -> Path:
        """Where to write the file that will be called ``name``, for writers that need a path of their own."""
        if not _is_plain(name):
            raise InputError(f"'{name}' is no plain file name", hint="give a name without a folder")
        return self.folder / name

    def write(self, name: str, data: bytes | str) -> Path:
        """Write ``data`` (text as UTF-8) under ``name`` and return the staged path."""
        path = self.path(name)
        path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        return path

    def remove(self, name: str) -> None:
        """Delete ``name`` from the destination at commit: the leftover of an earlier export, for instance."""
        self.path(name)
        self._drop.append(name)

    def __enter__(self) -> Staging:
        with _plain_faults(self._model):
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._model.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self._model))
            recover(self._model)
            self._stage = Path(tempfile.mkdtemp(prefix=_prefix(self._model), dir=self._folder))
            self._lock = _take_lock(self._stage)
        crumbs.drop("model", str(self._model.absolute()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sealed = False
        try:
            if error is None:
                with _plain_faults(self._model):
                    plan = self._seal()
                sealed = True
                with _plain_faults(self._model, outcome="new files are complete and wait for the next run"):
                    _carry_out(self.folder, self._folder, plan)
            elif isinstance(error, OSError) and error.errno in _FAULTS:
                raise _input_error(error, self._model) from error
        finally:
            crumbs.drop("model", "")
            _drop_lock(self._lock)
            if not sealed or not (self.folder / _SEAL).exists():
                shutil.rmtree(self.folder, ignore_errors=True)

    def _seal(self) -> dict[str, list[str]]:
        names = sorted(p.name for p in self.folder.iterdir() if p.name != _LOCK)
        for name in names:
            _sync_file(self.folder / name)
        plan = _plan(names, self._drop, self._folder, self.folder, self._model.name)
        draft = self.folder / (_SEAL + ".draft")
        draft.write_text(json.dumps(plan), encoding="utf-8")
        _sync_file(draft)
        os.replace(draft, self.folder / _SEAL)
        _sync_folder(self.folder)
        return plan


def recover(model: str | Path) -> bool:
    """Finish or clear away what a killed writer of ``model`` left behind. True if files were put in place.

    A sealed folder holds complete, synced files: its renames are carried out. One without a seal is deleted. A
    folder whose writer is still running is left alone.
    """
    model = Path(model)
    finished = False
    for stage in sorted(model.parent.glob(_glob_escape(_prefix(model)) + "*")):
        lock = None if _just_born(stage) else _take_lock(stage)
        if lock is None:
            continue
        try:
            if (stage / _SEAL).exists() and (plan := _read_plan(stage / _SEAL)) is not None:
                _carry_out(stage, model.parent, plan)
                finished = True
            shutil.rmtree(stage, ignore_errors=True)
        finally:
            _drop_lock(lock)
    return finished


def _just_born(stage: Path) -> bool:
    """Whether ``stage`` is no folder of ours, or one that its writer has not locked yet."""
    if not stage.is_dir():
        return True
    return not (stage / _LOCK).exists() and time.time() - stage.stat().st_mtime < _GRACE_SECONDS


def _plan(names: Sequence[str], drop: Sequence[str], folder: Path, stage: Path, model: str) -> dict[str, list[str]]:
    """Order of the renames: data and reports first, models after what they read, the main model last."""
    same = [n for n in names if not n.endswith(_MODEL_SUFFIX) and _same_bytes(stage / n, folder / n)]
    moves = sorted((n for n in names if n not in same), key=lambda n: (n == model, n.endswith(_MODEL_SUFFIX), n))
    models = [n for n in moves if n.endswith(_MODEL_SUFFIX)]
    replaces_data = any(n.endswith(".data") and (folder / n).exists() for n in moves)
    return {
        "away": [n for n in models if (folder / n).exists()] if replaces_data else [],
        "move": moves,
        "drop": [n for n in drop if n not in names],
    }


def _read_plan(seal: Path) -> dict[str, list[str]] | None:
    """The plan of a sealed folder; None for one that we did not write: a name in it must not lead elsewhere."""
    try:
        plan = json.loads(seal.read_text(encoding="utf-8"))
        names = [name for step in ("away", "move", "drop") for name in plan[step]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return plan if all(isinstance(name, str) and _is_plain(name) for name in names) else None


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder itself."""
    return Path(name).name == name and "\\" not in name and name not in (_SEAL, _LOCK, "", ".", "..")


def _carry_out(stage: Path, folder: Path, plan: dict[str, list[str]]) -> None:
    """Do the renames of a plan; each step may have been done already by a writer that was killed."""
    for name in plan["away"]:
        if (stage / name).exists() and (folder / name).exists():
            os.replace(folder / name, stage / f"{name}.previous")
    if plan["away"]:
        _sync_folder(folder)
    for name in plan["move"]:
        if (stage / name).exists():
            os.replace(stage / name, folder / name)
    _sync_folder(folder)
    for name in plan["drop"]:
        (folder / name).unlink(missing_ok=True)
    (stage / _SEAL).unlink(missing_ok=True)


def _same_bytes(one: Path, other: Path, block: int = 1 << 20) -> bool:
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        while chunk := a.read(block):
            if chunk != b.read(block):
                return False
    return True


def _prefix(model: Path) -> str:
    return f".{model.name[:60]}.staging-"


def _glob_escape(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _take_lock(stage: Path) -> int | None:
    """An open, locked file that says the writer of ``stage`` lives; None if another process holds it."""
    handle = os.open(stage / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    if fcntl is None:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _drop_lock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there; NTFS journals renames itself
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems refuse to sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _plain_faults(path: Path, *, outcome: str = "earlier files are untouched") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FAULTS:
            raise
        raise _input_error(error, path, outcome) from error


def _input_error(error: OSError, path: Path, outcome: str = "earlier files are untouched") -> InputError:
    what, hint = _FAULTS[error.errno or 0]
    with suppress(OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what += f" ({human_bytes(free_disk(path))} left)"
    return InputError(f"'{path}' cannot be written: {what}; {outcome}", hint=hint)
