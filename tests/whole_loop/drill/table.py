"""The drill: faults and operations against the servers of `rlhf up`, one row for each.

    python tests/whole_loop/drill/table.py          (`make drill`)

A row passes when its scenario came out right and nothing was left behind: no orphan process, no
leaked slot, no lost or doubled metric in MLflow, nothing that `rlhf fsck` finds. The exit status
is 1 when a row fails.
"""

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

WHOLE_LOOP = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(WHOLE_LOOP)
    sys.path.insert(1, str(WHOLE_LOOP.parents[1]))

from drill import rows_kills, rows_outages, rows_schedule, rows_stages, rows_times  # noqa: E402
from drill.checks import Checks  # noqa: E402
from drill.disk import disk  # noqa: E402
from drill.house import House  # noqa: E402
from drill.postgres import cluster  # noqa: E402
from drill.row import NotHere, Row  # noqa: E402

ROWS = (
    *rows_schedule.ROWS,
    *rows_stages.ROWS,
    *rows_kills.ROWS,
    *rows_outages.ROWS,
    *rows_times.ROWS,
)
_NAME_WIDTH = 46


class Drill:
    """Rows against one house, printed as they end."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._checks = Checks(house)

    def run(self, rows: Iterable[Row]) -> bool:
        """Whether no row failed."""
        self._house.cron = rows_schedule.EVERY_MINUTE  # for the first row, which ends it
        # what must hold after a row is looked at after the first one: its schedule fires at once
        if not self._row(Row("rlhf up", _start), is_up=False):
            return False
        holds = True
        for row in rows:
            holds &= self._row(row)
        return holds & self._row(Row("rlhf fsck, rlhf down", _finish), is_up=False)

    def _row(self, row: Row, is_up: bool = True) -> bool:
        started = time.monotonic()
        try:
            note = row.run(self._house)
            if is_up and (problems := self._checks.problems()):
                raise AssertionError("; ".join(problems))
            verdict = "pass"
        except NotHere as reason:
            verdict, note = "skip", str(reason)
        except Exception as error:  # whatever it is, the other rows are worth their own answer
            traceback.print_exc(file=sys.stderr)
            verdict, note = "FAIL", " ".join(f"{type(error).__name__}: {error}".split())[:400]
        print(_line(row.name, verdict, f"{time.monotonic() - started:.0f} s", note), flush=True)
        if verdict == "FAIL" and is_up and self._house.standing:
            self._recover()
        return verdict != "FAIL"

    def _recover(self) -> None:
        """A row that failed leaves nothing to the next one."""
        with suppress(Exception):  # whatever state it has left things in
            if self._house.is_up:
                self._house.cancel_everything()
                if not self._checks.settled():
                    return
        self._house.kill_everything()
        self._house.up()


def _start(house: House) -> str:
    house.up()
    return f"{sum(house.standing.values())} processes"


def _finish(house: House) -> str:
    out = house.rlhf("fsck")
    assert out.returncode == 0, out.stdout + out.stderr
    house.down()
    assert not house.programs(), house.programs()
    return out.stdout.strip().splitlines()[-1]


def _line(name: str, verdict: str, took: str, note: str) -> str:
    return f"{name.ljust(_NAME_WIDTH)} {verdict}  {took.rjust(6)}  {note}".rstrip()


def chosen(only: Sequence[str], is_core: bool) -> list[Row]:
    """Rows whose name has one of these words, all without any; always the first, which makes V1."""
    named = [r for r in ROWS if not only or r is ROWS[0] or any(word in r.name for word in only)]
    return [row for row in named if row.is_core or not is_core]


@contextmanager
def house_on(folder: Path, database: str) -> Iterator[House]:
    """A house on SQLite files or on a Postgres of its own; nothing of it outlives the block."""
    with disk(folder) as home, cluster(wanted=database == "postgres") as environment:
        house = House(folder, home, environment)
        try:
            yield house
        finally:
            house.kill_everything()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], help="rows whose name has these words")
    parser.add_argument(
        "--database", choices=("sqlite", "postgres"), help="Prefect's and MLflow's; else both"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what has been started is ended, too
    holds = True
    for database in (arguments.database,) if arguments.database else ("sqlite", "postgres"):
        print(f"--- {database} ---", flush=True)
        rows = chosen(arguments.only, is_core=database == "postgres")
        try:
            with (
                tempfile.TemporaryDirectory(prefix="rlhf-drill-") as folder,
                house_on(Path(folder), database) as house,
            ):
                holds &= Drill(house).run(rows)
        except NotHere as reason:
            print(_line(f"all on {database}", "skip", "0 s", str(reason)), flush=True)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
