"""How a command ends when it fails: one table from exceptions to exit status, text and JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from .errors import DeploymlBug, DeploymlError, ToolchainError, VerdictError
from .isolate import is_out_of_memory
from .report import SCHEMA_VERSION, Report, to_json
from .versions import installed

__all__ = ["EXIT_BUG", "EXIT_INTERRUPTED", "EXIT_PIPE", "EXIT_USAGE", "fail"]

EXIT_USAGE: Final = 2
EXIT_BUG: Final = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
EXIT_PIPE: Final = 141  # 128 + SIGPIPE


def fail(error: BaseException, arguments: Sequence[str]) -> int:
    """Tell the user of an error, on stderr, or as a JSON object on stdout where ``--json`` was given.

    Args:
        error: What ended the command.
        arguments: The command line, without the program's name; ``--debug`` and ``--json`` are looked up in it.

    Returns:
        The exit status.
    """
    try:
        return _tell(error, arguments)
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_PIPE


def _tell(error: BaseException, arguments: Sequence[str]) -> int:
    as_json, debug = "--json" in arguments, "--debug" in arguments
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; no file was changed", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _forget_stdout()
        return EXIT_PIPE
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, DeploymlError):
        _tell_mistake(error, as_json)
        return error.exit_code
    if is_out_of_memory(error):
        short = ToolchainError("memory ran out", hint="use a machine with more memory, or a smaller model")
        _tell_mistake(short, as_json)
        return short.exit_code
    if hasattr(error, "format_message"):  # the command line's own usage errors, whichever library raises them
        return _tell_usage(error, as_json)
    return _tell_bug(error, arguments, as_json, debug)


def _tell_mistake(error: DeploymlError, as_json: bool) -> None:
    if not as_json:
        place = f" [{error.where}]" if error.where else ""
        print(f"error: {error.message}{place}\n  -> {error.hint}", file=sys.stderr)
        return
    fields = {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "where": error.where}
    _print_json(fields, error.exit_code, error.report if isinstance(error, VerdictError) else None)


def _tell_usage(error: BaseException, as_json: bool) -> int:
    message = str(getattr(error, "format_message")())  # noqa: B009
    if as_json:
        _print_json({"kind": "UsageError", "message": message, "hint": "deployml --help"}, EXIT_USAGE)
    elif not message:  # the help was shown instead
        pass
    elif hasattr(error, "show"):
        error.show()
    else:
        print(f"error: {message}", file=sys.stderr)
    return EXIT_USAGE


def _tell_bug(error: BaseException, arguments: Sequence[str], as_json: bool, shown: bool) -> int:
    bundle = _write_bundle(error, arguments)
    message = f"{type(error).__name__}: {error}" if not isinstance(error, DeploymlBug) else str(error)
    hint = f"this is a fault of deployml; please report it with the folder {bundle}"
    if as_json:
        _print_json({"kind": "DeploymlBug", "message": message, "hint": hint, "where": str(bundle)}, EXIT_BUG)
    elif not shown:
        traceback.print_exception(error, file=sys.stderr)
    print(f"error: {message}\n  -> {hint}", file=sys.stderr)
    return EXIT_BUG


def _print_json(error: dict[str, str | None], status: int, findings: object | None = None) -> None:
    """The error object; with the report, or the sites, that a failed verdict carries."""
    found: dict[str, object] = {"schema": SCHEMA_VERSION, "error": {**error, "exit_code": status}}
    if findings is not None:
        found["report" if isinstance(findings, Report) else "sites"] = json.loads(to_json(findings))
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _write_bundle(error: BaseException, arguments: Sequence[str]) -> Path:
    """A folder with what is needed to look into a fault: traceback, command line, versions. No model weights."""
    given = error.bundle if isinstance(error, DeploymlBug) else None
    folder = Path(given) if given is not None else Path(tempfile.mkdtemp(prefix="deployml-bug-"))
    with suppress(OSError):  # a full disk must not hide the fault itself
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        facts = {"arguments": list(arguments), "platform": platform.platform(), "versions": installed()}
        (folder / "environment.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def _forget_stdout() -> None:
    """Keep Python from complaining at exit that the reader of stdout is gone."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
