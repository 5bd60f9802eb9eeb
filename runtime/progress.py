"""Progress on stderr while stages run, and the record of how long each took and how much memory it held."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from . import crumbs
from .errors import DeploymlError
from .isolate import is_out_of_memory, out_of_memory
from .memory import peak_rss, reset_peak_rss
from .report import Stage

__all__ = ["Progress", "StageHandle"]


class StageHandle:
    """A running stage: move its bar with :meth:`advance`. Does nothing where no bars are shown."""

    def __init__(self, bars: Bars | None, task: TaskID | None) -> None:
        self._bars = bars
        self._task = task

    def total(self, count: int) -> None:
        """Say how many steps the stage has."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=count)

    def advance(self, steps: int = 1, *, text: str | None = None) -> None:
        """Count ``steps`` as done; ``text`` says what is being worked on."""
        if self._bars is None or self._task is None:
            return
        self._bars.advance(self._task, steps)
        if text is not None:
            self._bars.update(self._task, detail=text)


class Progress:
    """Bars on stderr while stages run; silent when stderr is no terminal or ``enabled`` is False.

    Use as a context manager, or not at all: stages are recorded either way.

    Args:
        enabled: False for ``--json`` and for library calls.
        console: Where to draw; stderr by default.
    """

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        console = console or Console(file=sys.stderr)
        self._bars = _bars(console) if enabled and console.is_terminal else None
        self._stages: list[Stage] = []
        self._depth = 0

    @classmethod
    def of(cls, wanted: bool | Progress) -> Progress:
        """What the ``progress`` of a public function means: this one, or a new one with or without bars."""
        return wanted if isinstance(wanted, Progress) else cls(enabled=wanted)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that are done, in the order they ended."""
        return tuple(self._stages)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageHandle]:
        """Show and time one stage. It is recorded also when it raises.

        The peak memory is that of the stage where the system can tell, else of the process so far; a stage
        within another leaves the outer one's peak alone.

        Raises:
            ToolchainError: in place of any library's own way to say that memory ran out.
        """
        task = None if self._bars is None else self._bars.add_task(name, total=None, detail="")
        if self._depth == 0:
            reset_peak_rss()
        self._depth += 1
        start = time.perf_counter()
        try:
            with crumbs.leave("stage", name) if self._depth == 1 else nullcontext():
                yield StageHandle(self._bars, task)
        except Exception as error:
            if isinstance(error, DeploymlError) or not is_out_of_memory(error):
                raise
            raise out_of_memory(f"the stage '{name}'") from error
        finally:
            self._depth -= 1
            self._stages.append(Stage(name=name, seconds=time.perf_counter() - start, peak_rss=peak_rss()))
            if self._bars is not None and task is not None:
                self._bars.remove_task(task)

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


def _bars(console: Console) -> Bars:
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[detail]}"),
        console=console,
        transient=True,
    )
