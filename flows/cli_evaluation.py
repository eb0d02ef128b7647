"""`rlhf evaluation`: versions compared by people and by outside models."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_contracts.errors import UserError
from flows.cli_options import (
    HomeOption,
    JsonOption,
    existing_home,
    opened,
    paragraphs,
    print_json,
    wide_console,
)
from flows.environment import Places, places

if TYPE_CHECKING:
    from annotation.evaluation.verdicts import Pair, Summary
    from flows.judgements import Judgement

API_KEY_VARIABLE = "RLHF_JUDGE_API_KEY"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Versions compared by people, on blind sheets, or by an outside model.

`sheet` → people rate → `read`; or `judge`. The results are in `rlhf report`.""",
)

VersionOption = Annotated[
    str | None, typer.Option("--version", help="V5, v5 or 5; without it the newest.")
]
AgainstOption = Annotated[str, typer.Option("--against", help="Another version; sft: version 0.")]
DomainOption = Annotated[
    str | None, typer.Option("--domain", help="helpfulness or safety; without it both.")
]
PromptsOption = Annotated[
    int | None, typer.Option("--num-prompts", min=1, help="Of each domain; without it all.")
]


@app.command()
@paragraphs
def sheet(
    version: VersionOption = None,
    against: AgainstOption = "sft",
    num_prompts: PromptsOption = 50,
    raters: Annotated[int, typer.Option("--raters", min=1, help="A sheet for each.")] = 1,
    domain: DomainOption = None,
    output: Annotated[Path, typer.Option("--output", help="Folder for the raters.")] = Path(
        "sheets"
    ),
    key: Annotated[
        Path | None, typer.Option("--key", help="Who is who; default: OUTPUT.key.json.")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="csv or jsonl.")] = "csv",
    seed: Annotated[
        int | None, typer.Option("--seed", help="Sides and order; without it nobody can know.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write blind sheets: two responses to each prompt, sides hidden, to be rated from 1 to 7.

    \b
    - `rlhf evaluation sheet --version V5 --against V4 --raters 3`

    The responses are those of the home's newest evaluation. Keep the key to yourself.
    """
    from annotation.evaluation.sheets import write_sheets

    if format_ not in ("csv", "jsonl"):
        raise UserError(f"There is no format {format_!r}", "Use csv or jsonl")
    pairs = _pairs(places(home), version, against, num_prompts, domain)
    key_file = key or output.with_name(f"{output.name}.key.json")
    files = write_sheets(pairs, output, key_file, num_raters=raters, kind=format_, seed=seed)
    for file in files:
        typer.echo(str(file))
    typer.echo(f"{len(pairs)} pairs; keep {key_file} from the raters")


@app.command()
@paragraphs
def read(
    files: Annotated[list[Path], typer.Argument(help="Filled sheets, each named by its rater.")],
    key: Annotated[Path, typer.Option("--key", help="The key that `sheet` wrote.")] = Path(
        "sheets.key.json"
    ),
    judge: Annotated[str, typer.Option("--judge", help="Whom the report names.")] = "people",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Read filled sheets: win/tie/loss, the 7-point scale, agreement; into the home's report.

    \b
    - `rlhf evaluation read sheets/*.csv --key sheets.key.json`
    """
    from annotation.evaluation.sheets import read_sheets
    from flows.judgements import check_judge, judged

    where = existing_home(places(home))
    check_judge(opened(where)[0], judge, "people")
    made_with, reading = read_sheets(files, key)
    counts = {
        "ratings": len(reading.ratings) - reading.num_identical,
        "raters": reading.num_raters,
        "unanswered": reading.num_unanswered,
        "identical": reading.num_identical,
    }
    result = judged(reading.ratings, made_with.version, made_with.opponent, judge, "people", counts)
    _keep_and_show(where, *result, as_json)


@app.command()
@paragraphs
def judge(
    url: Annotated[str, typer.Option("--url", help="Base address, with /v1.")],
    model: Annotated[str, typer.Option("--model", help="The judge's name at that address.")],
    version: VersionOption = None,
    against: AgainstOption = "sft",
    num_prompts: PromptsOption = 100,
    domain: DomainOption = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds.")] = 60.0,
    retries: Annotated[int, typer.Option("--retries", min=0)] = 5,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Requests at once.")] = 4,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of a reply.")] = 300,
    price_in: Annotated[
        float, typer.Option("--price-in", min=0, help="Of a million tokens read.")
    ] = 0.0,
    price_out: Annotated[
        float, typer.Option("--price-out", min=0, help="Of a million tokens written.")
    ] = 0.0,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Let an outside model judge, over any OpenAI-compatible endpoint, each pair in both orders.

    \b
    - `rlhf evaluation judge --url http://127.0.0.1:8000/v1 --model NAME --version V5`

    A preference that turns with the order is a tie. A key is read from RLHF_JUDGE_API_KEY. Killed
    half way? The same command asks only what has no answer yet.
    """
    from annotation.evaluation.outside_judge import JudgeSettings, judge_pairs
    from flows.judgements import check_judge, judged

    where = existing_home(places(home))
    check_judge(opened(where)[0], model, "model")
    pairs = _pairs(where, version, against, num_prompts, domain)
    settings = JudgeSettings(
        url=url,
        model=model,
        api_key=os.environ.get(API_KEY_VARIABLE, ""),
        timeout_seconds=timeout,
        max_retries=retries,
        num_parallel=parallel,
        max_tokens=max_tokens,
        price_in=price_in,
        price_out=price_out,
    )
    log = where.local / "judgements" / "replies.jsonl"
    found = judge_pairs(pairs, settings, log, _progress())
    counts = {k: v for k, v in vars(found).items() if k != "ratings"}
    result = judged(found.ratings, pairs[0].version, pairs[0].opponent, model, "model", counts)
    _keep_and_show(where, *result, as_json)


def _pairs(
    where: Places, version: str | None, against: str, num_prompts: int | None, domain: str | None
) -> "list[Pair]":
    from annotation.evaluation.verdicts import pairs_of
    from data_contracts.ratings import Domain
    from flows.graph import policy_label
    from flows.models import version_number
    from flows.run_record import RunRecord

    if domain is not None and domain not in list(Domain):
        raise UserError(f"There is no domain {domain!r}", f"Use one of: {', '.join(Domain)}")
    record = RunRecord(*opened(existing_home(where)))
    if record.newest is None:
        raise UserError(f"The home {where.home} has no evaluation", "Run `rlhf run` to its end")

    def label(name: str) -> str:
        return name if name in record.all_labels else policy_label(version_number(name))

    labels = policy_label(record.newest) if version is None else label(version), label(against)
    return pairs_of(record.evaluations, *labels, num_prompts, domain)


def _progress() -> Any:
    from rich.console import Console

    console = Console(stderr=True, highlight=False)

    def show(done: int, total: int) -> None:
        if console.is_terminal or done == total or done % 100 == 0:
            console.print(
                f"  {done:,}/{total:,} replies", end="\r" if console.is_terminal else "\n"
            )

    return show


def _keep_and_show(
    where: Places, judgement: "Judgement", rows: "list[Summary]", as_json: bool
) -> None:
    from flows.judgements import keep

    name = keep(opened(where)[0], judgement)
    if as_json:
        summaries = [asdict(row) for row in rows]
        print_json({"name": name, "counts": judgement.counts, "summaries": summaries})
        return
    console = wide_console()
    for row in rows:
        for line in _lines(row):
            console.print(line, soft_wrap=True, markup=False)
    told = {k: v for k, v in judgement.counts.items() if v is not None}
    console.print(", ".join(f"{k.removeprefix('num_').replace('_', ' ')} {v:,.4g}"
                            for k, v in told.items()), soft_wrap=True)  # fmt: skip
    console.print(f"In the home as {name}: `rlhf report` shows it", soft_wrap=True)


def _lines(summary: "Summary") -> list[str]:
    row, scale, wide = summary.row, summary.scale, summary.bootstrap
    lines = [
        f"{row['domain']}: {row['version']} against {row['opponent']}, judged by {row['judge']}: "
        f"{row['wins']} wins, {row['ties']} ties, {row['losses']} losses",
        f"  win rate {row['win_rate']:.3f}, 95 %: Wilson [{row['low']:.3f}, {row['high']:.3f}], "
        f"bootstrap [{wide.low:.3f}, {wide.high:.3f}]",
        f"  mean rating {scale.mean:+.2f} [{scale.low:+.2f}, {scale.high:+.2f}] of −3 … 3; "
        f"counts {summary.counts}",
    ]
    for label, found in (("AC1 of win, tie, loss", summary.ac1), ("AC2 of the scale", summary.ac2)):
        if found is not None:
            lines.append(
                f"  Gwet's {label}: {found.coefficient:.3f} [{found.low:.3f}, {found.high:.3f}] "
                f"on {found.num_subjects} prompts"
            )
    return lines
