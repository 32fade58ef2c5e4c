"""Measures the processor time of each test, and fails a test that takes more than its tier allows.

Wall time would depend on what else the machine does. Processor time counts this process with its threads, and each
child process that has ended. The setup is counted separately, because the first of several tests sets up what they
share.
"""

import resource
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

SLOWEST = 10  # tests in the list at the end


@dataclass(frozen=True)
class Budget:
    """Seconds of processor time that a test may take.

    It is about twice the time of the tier's longest test on an idle machine, because other processes on the same
    processor lengthen even processor time.
    """

    setup: float
    call: float


BUDGETS = {"fast": Budget(setup=90, call=40), "slow": Budget(setup=600, call=900), "rare": Budget(3600, 3600)}

begin = pytest.StashKey[float]()
measured: dict[str, float] = {}


def processor_seconds() -> float:
    """Returns the seconds of processor time that this process and its ended children have used."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def tier(item: pytest.Item) -> str:
    return next((name for name in ("rare", "slow") if item.get_closest_marker(name)), "fast")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[begin] = processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    now = processor_seconds()
    report.processor_seconds = now - item.stash[begin]
    item.stash[begin] = now
    allowed = getattr(BUDGETS[tier(item)], report.when, float("inf"))
    if report.passed and report.processor_seconds > allowed:
        report.outcome = "failed"
        report.longrepr = (
            f"{report.when} took {report.processor_seconds:.1f} s of processor time; "
            f"the {tier(item)} tier allows {allowed:.0f} s (tests/shared/budget.py)"
        )
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collects the reports of all worker processes in the process that prints the results."""
    measured[report.nodeid] = measured.get(report.nodeid, 0) + report.processor_seconds


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section(f"processor time of the {SLOWEST} slowest tests with their setup, in seconds")
    ranked = sorted(measured.items(), key=lambda entry: entry[1], reverse=True)
    for name, seconds in ranked[:SLOWEST]:
        terminalreporter.write_line(f"{seconds:8.1f}  {name}")
    terminalreporter.write_line(f"{sum(measured.values()):8.1f}  all {len(measured)} tests")
