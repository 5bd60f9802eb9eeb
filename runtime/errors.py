"""The error family: what a user can mend, and what only we can.

Three things are kept apart all over the project. An *error* stops the work and the user can act on it
(:class:`DeploymlError`, exit code 2). A *verdict* is a finding in a report (exit code 1) and is raised only
when the caller asked for that. A *bug* is ours (:class:`DeploymlBug`, exit code 70) and is no subclass of the
first, so that nothing that handles user errors can swallow it.
"""

from __future__ import annotations

__all__ = [
    "DeploymlBug",
    "DeploymlError",
    "InputError",
    "ToolchainError",
    "UnsupportedError",
    "VerdictError",
]


class DeploymlError(Exception):
    """Base of every error a user can mend.

    Args:
        message: What happened, in one sentence, naming the file or node.
        hint: What to do next, as an instruction. Shown on its own line.
        where: The file, node or source line at fault, when the message does not already carry it.
    """

    #: Process exit status of the command line for this class.
    exit_code = 2

    def __init__(self, message: str, *, hint: str, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        return f"{self.message}{place}\n  -> {self.hint}"


class InputError(DeploymlError):
    """A file, option or argument that cannot be used as given."""


class UnsupportedError(DeploymlError):
    """A model, operator or target that is understood but cannot be served. Lists all culprits, not the first."""


class ToolchainError(DeploymlError):
    """A library, provider, driver or package that is missing or does not fit the others."""


class VerdictError(DeploymlError):
    """A failed verdict (parity, latency, required fusions), raised only on request (``raise_on_failure``).

    Attributes:
        report: What holds the verdict (a Report, or the sites of an unmet requirement), or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str, where: str | None = None, report: object | None = None) -> None:
        super().__init__(message, hint=hint, where=where)
        self.report = report


class DeploymlBug(Exception):
    """An invariant of ours broke. Not a :class:`DeploymlError`: it must never be hidden as a user's mistake.

    Args:
        message: The invariant that broke and where.
        bundle: Path of a folder that reproduces the fault, or None.
    """

    exit_code = 70

    def __init__(self, message: str, *, bundle: str | None = None) -> None:
        super().__init__(message)
        self.bundle = bundle
