"""`pytest bench/ --benchmark-only`: one instrument of several files. `--quick` takes two minutes on two cores, and
`--store` saves the run as the one of this device, from which bench.instrument.report makes tables.

A case is an operation in one form, `bench_<operation>[<shape>-<form>]`; the forms of an operation are measured
together (harness.py), and what pytest-benchmark is then given are those rounds, played back: its statistics, JSON and
`--benchmark-compare` work as ever. Ratios, rates and shares of the roof are each case's `extra_info`.

`--benchmark-compare` alone compares with the stored run of a device of this name, and fails where a ratio of ours to an
alternative, or our share of the roof, has become worse (guard.py); times of another day it only shows.
"""

import storm_fast  # noqa: F401  # before torch: it tells OpenMP's threads how to wait

# isort: split
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.instrument import guard, machine, table
from bench.instrument.ceilings import Ceilings, measure
from bench.instrument.forms import DEVICE, IS_GPU, skipped
from bench.instrument.harness import Rounds, Subject, quartiles
from bench.instrument.harness import measure as measure_subject
from storm_fast.engine.allocator import keep_pages

Compare = Callable[[str, str, Callable[[], Subject]], None]
Show = Callable[[str, str, Rounds], None]


class _Playback:
    """The clock that pytest-benchmark reads: it advances by what each round took when it was measured."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def read(self) -> float:
        """Seconds."""
        return self.now_s


_PLAYBACK = _Playback()


def playback_timer() -> float:
    """That clock; pytest-benchmark prints a timer's name."""
    return _PLAYBACK.read()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --quick and --store."""
    parser.addoption("--quick", action="store_true", help="fewer rounds and sizes: two minutes on two cores")
    parser.addoption("--store", action="store_true", help="save the run where bench/results/ has this device's")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before pytest-benchmark reads its options: compare with the stored run, and leave its table to those who ask."""
    option = config.option
    if option.store:
        option.benchmark_json = str(guard.stored_path())
    if option.benchmark_json:  # which is written at the very end, when minutes have been spent
        Path(option.benchmark_json).parent.mkdir(parents=True, exist_ok=True)
    if option.benchmark_compare is True:
        if not guard.stored_path().exists():
            raise pytest.UsageError(f"want a stored run of this device, {guard.stored_path()}; there is none")
        option.benchmark_compare = str(guard.stored_path())
    if not (option.benchmark_compare or option.benchmark_columns or option.benchmark_verbose):
        option.benchmark_quiet = True
    if not IS_GPU:
        keep_pages()  # as training does: elsewhere each call would fault its pages in anew
    config.stash[_START] = machine.state()


_START = pytest.StashKey[dict[str, Any]]()
_CEILINGS = pytest.StashKey[Ceilings]()
_WRONG = pytest.StashKey[dict[str, str]]()
_FAILED = pytest.StashKey[dict[str, str]]()
_GUARD = pytest.StashKey[guard.Verdict]()
_ABSENT = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether --quick was asked for."""
    return bool(pytestconfig.getoption("--quick"))


@pytest.fixture(scope="session")
def ceilings(pytestconfig: pytest.Config) -> Ceilings:
    """What this device reaches; measured once, before anything else."""
    return pytestconfig.stash.setdefault(_CEILINGS, measure(DEVICE))


@pytest.fixture
def show(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, ceilings: Ceilings) -> Show:
    """Gives one form's rounds to pytest-benchmark; what is absent is skipped, what is wrong or fails has no time."""

    def run(operation: str, form: str, found: Rounds) -> None:
        name, stash = f"{operation}: {form}", request.config.stash
        if form in found.absent:
            stash.setdefault(_ABSENT, {})[name] = found.absent[form]
            pytest.skip(f"absent: {found.absent[form]}")
        for key, word, told in ((_WRONG, "WRONG", found.wrong), (_FAILED, "FAILED", found.failed)):
            if form in told:
                stash.setdefault(key, {})[name] = told[form]
                pytest.fail(f"{word}: {told[form]}", pytrace=False)
        benchmark.group = operation
        benchmark.extra_info |= case_info(form, found, ceilings)
        rounds = iter(found.seconds[form])

        def play() -> None:
            _PLAYBACK.now_s += next(rounds)

        benchmark.pedantic(play, rounds=len(found.seconds[form]))

    return run


@pytest.fixture(scope="session")
def measured() -> dict[str, Rounds]:
    """Rounds of all operations so far, by name."""
    return {}


@pytest.fixture
def compare(show: Show, measured: dict[str, Rounds], quick: bool, request: pytest.FixtureRequest) -> Compare:
    """Measures an operation when the first of its forms asks, and shows this form."""

    def run(operation: str, form: str, subject: Callable[[], Subject]) -> None:
        if operation not in measured:
            rounds = (20 if quick else 50) if IS_GPU else (5 if quick else 15)
            measured[operation] = measure_subject(subject(), rounds, skipped(quick, is_last_shape(request)))
        show(operation, form, measured[operation])

    return run


def is_last_shape(request: pytest.FixtureRequest) -> bool:
    """Whether no other shape of the same operation comes after this one."""

    def shape(item: Any) -> dict[str, Any]:
        return {name: value for name, value in item.callspec.params.items() if name != "form"}

    def operation(item: Any) -> tuple[Any, Any]:
        return item.function, item.callspec.params.get("spec")

    siblings = [item for item in request.session.items if operation(item) == operation(request.node)]
    return shape(siblings[-1]) == shape(request.node)


def case_info(form: str, found: Rounds, ceilings: Ceilings) -> dict[str, Any]:
    """What a case states beside its times."""
    best_s, median_s, _ = quartiles(found.seconds[form])
    info: dict[str, Any] = {"form": form, "ours": form == found.ours} | found.beside.get(form, {})
    if found.ours in found.seconds and form != found.ours:
        q1, q2, q3 = quartiles(found.over_ours(form))
        info["over_ours"] = {"q1": q1, "median": q2, "q3": q3, "rounds": len(found.over_ours(form))}
    if found.cost is not None and any(found.cost):
        cost = found.cost
        # A CPU without bf16 in hardware multiplies faster in float32.
        flops_per_s = max(ceilings.bf16_flops_per_s, ceilings.full_flops_per_s)
        roof_s = max(cost.flops / flops_per_s, cost.bytes / ceilings.bytes_per_s)
        info |= {"flops": cost.flops, "bytes": cost.bytes, "share_of_roof": roof_s / median_s}
        info["share_best"] = roof_s / best_s  # of the best quarter of rounds, for the guard
    if found.unit:
        info |= {"unit": found.unit, "per_s": found.count / median_s}
    return info


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every benchmark that clock; with --quick, leave out what is marked `full`."""
    if config.getoption("--quick"):
        full = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if item not in full]
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=playback_timer, warmup=False))
        # Peers, compilers and pytest-benchmark (of a form that is wrong, and so was given no time) warn.
        item.add_marker(pytest.mark.filterwarnings("ignore"))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Name the device, and not the machine."""
    machine_info.clear()
    machine_info |= machine.describe()


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """The commit is what STORM_COMMIT says, where it is set: a repository around a copied tree is another one."""
    if "STORM_COMMIT" in os.environ:
        commit_info.update(id=os.environ["STORM_COMMIT"], dirty=False)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Add what the roof was and how the device fared; drop single rounds, which quartiles stand for."""
    end, start = machine.state(), config.stash[_START]
    output_json["device"] = {
        "ceilings": config.stash[_CEILINGS]._asdict() if _CEILINGS in config.stash else {},
        "start": start,
        "end": end,
        "at_work": machine.samples(),
        "limits": machine.limits(),
        "troubles": machine.troubles(start, end, machine.samples()),
        "remarks": machine.remarks(machine.samples()),
        "absent": config.stash.get(_ABSENT, {}),
        "wrong": config.stash.get(_WRONG, {}),
        "failed": config.stash.get(_FAILED, {}),
        "quick": bool(config.getoption("--quick")),
    }
    for case in output_json["benchmarks"]:
        case["stats"].pop("data", None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose ratios are worse than those it is compared with."""
    benchmarks = getattr(session.config, "_benchmarksession", None)
    stored = {
        name: case["extra_info"]
        for cases in (getattr(benchmarks, "compared_mapping", None) or {}).values()
        for name, case in cases.items()
    }
    now = {b.fullname: b.extra_info for b in getattr(benchmarks, "benchmarks", [])}
    if stored:
        verdict = guard.judge(stored, now)
        session.config.stash[_GUARD] = verdict
        if verdict.worse and session.exitstatus == 0:
            session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what pytest-benchmark's own table has no columns for, and what the figures are worth."""
    config = terminalreporter.config
    session = getattr(config, "_benchmarksession", None)
    cases = [
        table.Case(b.group, b.stats.median, b.stats.iqr, b.stats.rounds, b.extra_info)
        for b in getattr(session, "benchmarks", [])
        if b and b.stats.rounds and "form" in b.extra_info
    ]
    absent, faults = config.stash.get(_ABSENT, {}), [config.stash.get(key, {}) for key in (_WRONG, _FAILED)]
    if not (cases or absent or any(faults)):
        return
    terminalreporter.section(machine.device_name())
    lines = [*table.lines(cases), *table.faults(*faults), *table.ceilings(config.stash[_CEILINGS]._asdict())]
    for line in [*lines, *table.limits(machine.limits()), *machine.remarks(machine.samples()), *table.absences(absent)]:
        terminalreporter.write_line(line)
    if _GUARD in config.stash:
        verdict = config.stash[_GUARD]
        for line in verdict.worse:
            terminalreporter.write_line(f"SLOWER: {line}", red=True)
        counts = f"{len(verdict.worse)} worse; {len(verdict.missing)} of the stored run not measured now"
        terminalreporter.write_line(f"{verdict.compared} ratios and shares compared with the stored run: {counts}")
    for trouble in machine.troubles(config.stash[_START], machine.state(), machine.samples()):
        terminalreporter.write_line(f"NOT TO BE TRUSTED: {trouble}", red=True)
