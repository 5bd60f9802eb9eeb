"""Memory of this process and of the machine, and free disk space, in bytes. Linux first; None where unknown."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["available_memory", "current_rss", "free_disk", "human_bytes", "human_count", "peak_rss", "reset_peak_rss"]

_KIB = 1024
_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")


def peak_rss() -> int:
    """Highest resident size of this process so far, or since :func:`reset_peak_rss` where that worked; 0 if unknown."""
    high_water = _proc_kib(_STATUS, "VmHWM")
    if high_water is not None:
        return high_water
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else _KIB  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def current_rss() -> int | None:
    """Resident size of this process now; None where /proc is missing."""
    return _proc_kib(_STATUS, "VmRSS")


def reset_peak_rss() -> bool:
    """Start the peak anew, so that each stage has its own. False where the kernel does not offer it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 resets the peak resident set size
        return True
    return False


def available_memory() -> int | None:
    """Memory that can be had without swapping, the container's limit counted in."""
    free = _proc_kib(Path("/proc/meminfo"), "MemAvailable")
    left = _cgroup_left()
    known = [n for n in (free, left) if n is not None]
    return min(known) if known else None


def free_disk(path: str | Path) -> int:
    """Free bytes on the file system that holds ``path`` or, if that is not there yet, its nearest parent."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def human_bytes(count: int) -> str:
    """Write a byte count for people: 1536 is "1.5 KiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_count(count: float) -> str:
    """Write a large count for people, with the prefix of its unit: 1.5e9 is "1.5 G"."""
    for prefix in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.0f} {prefix}" if not prefix else f"{count:.1f} {prefix}"
        count /= 1000
    return f"{count:.1f} T"


def _proc_kib(path: Path, key: str) -> int | None:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * _KIB
    return None


def _cgroup_left() -> int | None:
    with suppress(OSError, ValueError):
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text().strip()
        return max(0, int(limit) - int(used))  # "max" is no number: no limit
    return None
