"""`make paper`: measure the findings and write the report.

    python -m paper                 all findings, five or eight seeds, 50 minutes on two fast cores
    python -m paper --quick         one seed and smaller sizes, minutes
    python -m paper --only k l      some of them

Run it again and what was made is reused.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from data_contracts.errors import UserError
from flows.environment import Places, places, prepare
from paper import page
from paper.finding import Result, Verdict
from paper.record import log_to_mlflow
from paper.runner import as_record, run_findings
from paper.scale import FULL, QUICK, Scale

DEFAULT_HOME = "rlhf_paper"
REPORT = Path("report")


def main() -> None:
    """The command line."""
    arguments = parse()
    try:
        run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one seed and smaller sizes")
    parser.add_argument("--only", nargs="+", default=[], metavar="LETTER", help="some findings")
    parser.add_argument("--seeds", nargs="+", type=int, help="other seeds than the scale's")
    parser.add_argument("--processes", type=int, default=2, help="one thread each (default 2)")
    parser.add_argument("--home", default=DEFAULT_HOME, help=f"the store ({DEFAULT_HOME})")
    parser.add_argument("--report", type=Path, default=REPORT, help=f"folder ({REPORT})")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """Measure, write page and JSON, tell MLflow, print the verdicts."""
    started = time.monotonic()
    scale = chosen_scale(arguments)
    where = places(arguments.home)
    prepare(where)
    results = run_findings(
        where.home, scale, arguments.only, arguments.processes, lambda line: print(line, flush=True)
    )
    minutes = (time.monotonic() - started) / 60
    write(results, scale, minutes, arguments.report, where)
    print(summary(results, arguments.report))


def chosen_scale(arguments: argparse.Namespace) -> Scale:
    """The sizes, with other seeds where the user wants them."""
    scale = QUICK if arguments.quick else FULL
    if not arguments.seeds:
        return scale
    seeds = tuple(arguments.seeds)
    return replace(scale, seeds=seeds, num_seeds_of_long=len(seeds))


def write(results: list[Result], scale: Scale, minutes: float, folder: Path, where: Places) -> None:
    """The page, the numbers as JSON, and both in MLflow."""
    page.report_page(results, scale, minutes).write(folder / "index.html")
    records = [as_record(result) for result in results]
    (folder / "findings.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    log_to_mlflow(results, folder, where)


def summary(results: list[Result], folder: Path) -> str:
    """A line for each finding, and the count."""
    lines = [
        f"({r.finding.letter}) {r.finding.paper:<10} {r.verdict.value:<15} {r.finding.claim}"
        for r in results
    ]
    reproduced = sum(r.verdict is Verdict.reproduced for r in results)
    lines.append(f"{reproduced} of {len(results)} reproduced; {folder / 'index.html'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
