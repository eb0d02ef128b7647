"""What the traps share, and the table that `make traps` ends with."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from trap_models import VOCAB
from trap_ranks import of_one_rank, of_two_ranks
from trap_table import FOLDER, traps

from kernels import generation
from stages.models import sampling
from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe

TEXTS = [f"The {noun} has {i} old walls.\n" for i in range(30) for noun in ("garden", "river")]


@pytest.fixture(scope="session")
def tokenizer():
    """As many pieces as the models embed."""
    return Tokenizer.from_bytes(train_bpe(TEXTS, VOCAB))


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory, tokenizer):
    """What each of two processes finds out, once for all the traps that ask."""
    folder = tmp_path_factory.mktemp("two_ranks")
    tokenizer.copy_to(folder)
    return of_two_ranks(folder, folder)


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory, tokenizer):
    """The same, by this process."""
    return of_one_rank(tmp_path_factory.mktemp("one_rank"), tokenizer)


@pytest.fixture
def drawn(monkeypatch):
    """The responses of every call of the generator by a stage."""
    responses: list[list[list[int]]] = []

    def recording(*arguments, **options):
        out = generation.generate(*arguments, **options)
        responses.append(out.responses)
        return out

    monkeypatch.setattr(sampling, "generate", recording)
    return responses


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Under xdist, one worker launches each program of two ranks, and one the resume matrix."""
    for item in items:
        if hasattr(item.module, "both_programs"):
            item.add_marker(pytest.mark.xdist_group("sharded_ranks"))
        for fixture in ("two_ranks", "matrix"):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(fixture))


def pytest_terminal_summary(terminalreporter, config):
    """Every trap that was tried, where nothing but traps was."""
    places = [Path(argument.split("::")[0]).absolute() for argument in config.args]
    if not all(place == FOLDER or FOLDER in place.parents for place in places):
        return
    console = Console(width=shutil.get_terminal_size((120, 0)).columns)
    with console.capture() as capture:
        console.print(_table(_outcomes(terminalreporter.stats)))
    terminalreporter.write("\n" + capture.get())


def _outcomes(stats):
    """By file: how many cases passed, failed and were skipped."""
    kinds = {"passed": "passed", "failed": "failed", "error": "failed", "skipped": "skipped"}
    outcomes: dict[str, Counter[str]] = {}
    for kind, name in kinds.items():
        for report in stats.get(kind, ()):
            file = Path(report.nodeid.split("::")[0]).name
            outcomes.setdefault(file, Counter())[name] += 1
    return outcomes


def _table(outcomes):
    table = Table("#", "trap", "", "cases", title="What breaks RLHF code", title_justify="left")
    for trap in traps():
        if counts := outcomes.get(trap.path.name):
            cases = str(counts["passed"] + counts["failed"])
            if counts["skipped"]:
                cases += f" + {counts['skipped']} on a GPU"
            table.add_row(str(trap.number), trap.sentence, _verdict(counts), cases)
    return table


def _verdict(counts):
    if counts["failed"]:
        return "[red]FAILS[/red]"
    return "[green]holds[/green]" if counts["passed"] else "needs a GPU"
