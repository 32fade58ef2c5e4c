"""Describes the hardware that a speed or an accuracy was measured on."""

import platform
from pathlib import Path

VECTORS = {"AVX-512": "avx512f", "AVX2": "avx2"}  # the widest first; the flag in /proc/cpuinfo


def hardware() -> str:
    """Returns processor, physical cores and memory, such as "AMD EPYC with AVX2, 2 cores, 24 GiB"."""
    import psutil  # the container of the server has this module, and no psutil

    memory = psutil.virtual_memory().total / 2**30
    return f"{processor()}, {psutil.cpu_count(logical=False)} cores, {memory:.0f} GiB"


def processor() -> str:
    """Returns the processor's marketing name, which `platform` does not know on Linux, and its widest vectors.

    The name that a rented machine shows hides the processor's generation. The vector instructions decide speed and
    the last digits of a result.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = values.get("flags", "").split()
    vectors = next((f" with {name}" for name, flag in VECTORS.items() if flag in flags), "")
    return values.get("model name", platform.machine()).strip() + vectors
