"""Peak memory of a piece of work in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@contextmanager
def peak_mib() -> Iterator[dict[str, float]]:
    """Fills in "MiB" with the most that the block held beyond what was there before it.

    Linux only; elsewhere the dictionary stays empty.
    """
    found: dict[str, float] = {}
    if not _STATUS.exists():
        yield found
        return
    _RESET.write_text("5")  # forget the peak so far
    before = _field("VmRSS")
    yield found
    found["MiB"] = (_field("VmHWM") - before) / 2**10


def _field(name: str) -> float:
    """A field of /proc/self/status in KiB."""
    line = next(row for row in _STATUS.read_text().splitlines() if row.startswith(name))
    return float(line.split()[1])
