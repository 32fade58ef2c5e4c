import re
from pathlib import Path

import psutil

from visionpipe.artifact.hardware import hardware, processor


def test_the_hardware_names_processor_cores_and_memory():
    memory = round(psutil.virtual_memory().total / 2**30)
    assert hardware() == f"{processor()}, {psutil.cpu_count(logical=False)} cores, {memory} GiB"


def test_a_processor_is_named_with_its_widest_vectors(monkeypatch):
    lines = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2{more}\n"
    for more, name in (("", "AMD EPYC with AVX2"), (" avx512f", "AMD EPYC with AVX-512")):
        monkeypatch.setattr(Path, "read_text", lambda *_, more=more, **__: lines.format(more=more))
        assert processor() == name


def test_a_processor_without_proc_has_a_name_too(monkeypatch):
    def read_text(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", read_text)
    assert re.search(r"\w", processor())
