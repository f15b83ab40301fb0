"""The highest memory since a moment, from counters that run anyway: cheap enough for every step of a training run."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class ProcessPeak:
    """Peak memory since ``start``: on CUDA of the allocator on the device, else of the whole process (Linux).

    ``start`` resets the counter that is read, ``torch.cuda.max_memory_allocated`` or the high-water mark of the
    process, also for whoever else reads it.

    Args:
        device: Where the model is.

    Example:
        >>> peak = ProcessPeak(torch.device("cpu"))
        >>> peak.start()
        >>> used = peak.read_bytes()  # None where the system does not say
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = False

    def start(self) -> None:
        """Forget earlier peaks."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._started = True
        else:
            self._started = self._device.type == "cpu" and reset_high_water_mark()

    def read_bytes(self) -> int | None:
        """The peak since ``start``, or None where it cannot be had."""
        if not self._started:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return status_bytes("VmHWM")


def reset_high_water_mark() -> bool:
    """Set the process's high-water mark to its present size; whether the system (Linux) has one."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return status_bytes("VmHWM") is not None


def status_bytes(field: str) -> int | None:
    """What Linux says of this process's memory, such as ``VmRSS`` or ``VmHWM`` [bytes]; None where it does not."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(f"{field}:")]
    return int(found[0].split()[1]) * 1024 if found else None
