"""Describes the machine that runs a measurement."""

import platform
import re
from pathlib import Path

VECTORS = {"AVX-512": "avx512f", "AVX2": "avx2"}  # the widest first; the values are flags in /proc/cpuinfo


def cpu_model() -> str:
    """Returns the processor's name. On Linux it is in /proc/cpuinfo: `platform` has only the architecture there."""
    match = re.search(r"model name\s*: (.+)", cpu_information())
    return match[1].strip() if match else platform.processor() or platform.machine()


def hardware() -> str:
    """Returns one line with processor, vector instructions, physical cores and memory.

    The vector instructions decide the speed and the last digits of results, and the name of a rented machine's
    processor does not tell them.
    """
    import psutil  # not at the top: the container image has no psutil

    flags = re.search(r"flags\s*: (.+)", cpu_information())
    available = flags[1].split() if flags else []
    vectors = next((f" with {name}" for name, flag in VECTORS.items() if flag in available), "")
    memory = psutil.virtual_memory().total / 2**30
    return f"{cpu_model()}{vectors}, {psutil.cpu_count(logical=False)} cores, {memory:.0f} GiB"


def cpu_information() -> str:
    """Returns the content of /proc/cpuinfo; empty on other systems than Linux."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
