"""`rlhf annotations`: the page for annotators, and batches in and out of it."""

import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_contracts.errors import UserError
from flows.cli_options import HomeOption, JsonOption, existing_home, opened, paragraphs, print_json
from flows.environment import Places, places

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from annotation.storage.database import Database

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Human preferences: serve the page, publish a week's comparisons, export the labels.

A week: `publish --week 3`, `serve`, people label, `export --week 3`, and the recipe's
`collect_preferences.method=annotations` takes it from there.""",
)

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="RLHF_ANNOTATION_DATABASE",
        help="postgresql://… or sqlite:///FILE. Without it: a SQLite file in the home.",
    ),
]
WeekOption = Annotated[
    int, typer.Option("--week", min=1, max=2**31 - 1, help="The iteration that it is for.")
]
FormatOption = Annotated[
    str, typer.Option("--format", help="preferences, jsonl, csv, label_studio or argilla.")
]


def _database(where: Places, url: str | None) -> "Database":
    from annotation.storage.database import home_database

    return home_database(where.local / "annotation", url)


def _database_of_a_home(home: str | None, url: str | None) -> "Database":
    """For commands that begin nothing: a misspelt --home is no new home."""
    from annotation.storage.database import DATABASE_VARIABLE

    is_elsewhere = bool(url or os.environ.get(DATABASE_VARIABLE))
    where = places(home)
    return _database(where if is_elsewhere else existing_home(where), url)


@app.command()
@paragraphs
def serve(
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8400,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="YAML or JSON: product, live_models, …")
    ] = None,
    database: DatabaseOption = None,
    home: HomeOption = None,
) -> None:
    """Serve the page. Put a proxy with HTTPS before it where others use it."""
    from annotation.web.serving import listen
    from annotation.web.serving import serve as keep_serving

    with listen(host, port) as listener:  # first: who comes while all else is imported, waits
        make_app = _page(places(home), database, settings)
        typer.echo(f"http://{host}:{port}")
        keep_serving(make_app, listener)


def _page(where: Places, database: str | None, settings: Path | None) -> "Callable[[], FastAPI]":
    """What makes the page, its settings and its database found to be good."""
    from pydantic import ValidationError

    from annotation.settings import AnnotationSettings
    from annotation.web.app import create_app
    from annotation.web.visitors import Service

    given = {}
    if settings:  # a recipe's parser brings torch with it: the page comes back sooner without
        from flows.recipe import parse_file

        given = parse_file(settings)
    try:
        chosen = AnnotationSettings.model_validate(given)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise UserError(f"{settings} has no valid {fields}", "Correct these settings") from None
    _database(where, database).close()  # brought up to date, or refused
    return lambda: create_app(Service(_database(where, database), chosen))


@app.command()
@paragraphs
def invite(
    role: Annotated[str, typer.Option("--role", help="annotator, lead or admin.")] = "annotator",
    url: Annotated[str, typer.Option("--url", help="Where people reach the page.")] = (
        "http://127.0.0.1:8400"
    ),
    database: DatabaseOption = None,
    home: HomeOption = None,
) -> None:
    """Print a link with which one person makes an account. The first admin comes in this way."""
    from annotation.accounts import invite as make
    from annotation.storage.schema import Role

    if role not in list(Role):
        raise UserError(f"There is no role {role!r}", f"Use one of: {', '.join(Role)}")
    with _database(places(home), database).writing() as session:
        token = make(session, Role(role), datetime.now(UTC), None)
    typer.echo(f"{url.rstrip('/')}/invitations/{token}")


@app.command()
@paragraphs
def publish(
    week: WeekOption,
    comparisons: Annotated[
        Path | None,
        typer.Option("--comparisons", help="A comparisons table. Else the home's sample_pairs."),
    ] = None,
    overlap: Annotated[int, typer.Option("--overlap", min=1, help="Labels for each item.")] = 1,
    check_every: Annotated[
        int, typer.Option("--check-every", min=0, help="Every n-th is a gold or repeated item.")
    ] = 10,
    deadline: Annotated[
        datetime | None, typer.Option("--deadline", help="UTC; what is late goes out a week later.")
    ] = None,
    gold: Annotated[
        Path | None,
        typer.Option("--gold", help='JSON lines: {"comparison_id": …, "pick": "a" or "b"}.'),
    ] = None,
    database: DatabaseOption = None,
    home: HomeOption = None,
) -> None:
    """Put a week's comparisons up for labelling; doing it again adds only what is new.

    \b
    - `rlhf annotations publish --week 3 --overlap 2`
    """
    from annotation.batches import BatchPlan, items_named, refuse_other_texts
    from annotation.batches import publish as publish_rows
    from annotation.comparable import check_comparable
    from data_contracts.parquet import read_table
    from data_contracts.tables import COMPARISONS

    where = places(home)
    rows = read_table(comparisons or _sampled(where, week), COMPARISONS).to_pylist()
    check_comparable(rows)
    plan = BatchPlan(
        overlap=overlap,
        check_every=check_every,
        deadline=deadline and deadline.replace(tzinfo=deadline.tzinfo or UTC),
    )
    known_answers = _gold(gold, rows)
    with _database(where, database).writing() as session:
        refuse_other_texts(rows, items_named(session, [row["comparison_id"] for row in rows]))
        count = publish_rows(session, week, rows, plan, datetime.now(UTC), known_answers)
    typer.echo(f"Batch {week}: {count} new items of {len(rows)}")


def _sampled(where: Places, week: int) -> Path:
    """The comparisons that the stage sample_pairs made for a version of the home."""
    store, ledger = opened(where)
    key = ledger.head(week, "sample_pairs")
    manifest = store.manifest(key) if key else None
    if manifest is None:
        raise UserError(
            f"The home {where.home} has no comparisons for version {week}",
            f"Run `rlhf stage sample_pairs --version {week}`, or give --comparisons FILE",
        )
    return store.local(manifest.outputs["comparisons"])


def _gold(file: Path | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    from annotation.storage.schema import Pick

    if file is None:
        return {}
    answers = {}
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            answer = json.loads(line)
            answers[answer["comparison_id"]] = Pick(answer["pick"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{file}, line {number}: this is no gold answer",
                'Write one {"comparison_id": …, "pick": "a" or "b"} on each line',
            ) from None
    unknown = set(answers) - {row["comparison_id"] for row in rows}
    if unknown:
        raise UserError(
            f"{len(unknown)} gold answers are for comparisons that the batch has not",
            "Put their comparisons into the table, too",
        )
    return answers


@app.command()
@paragraphs
def export(
    week: WeekOption,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Default: where the home's recipe awaits it (collect_preferences.deliveries), "
            "else HOME/annotation/deliveries/vN.parquet.",
        ),
    ] = None,
    format_: FormatOption = "preferences",
    test_fraction: Annotated[
        float | None,
        typer.Option(
            "--test-fraction",
            min=0,
            max=1,
            help="Share of prompts held out. Default: the home's recipe's, else 0.1.",
        ),
    ] = None,
    database: DatabaseOption = None,
    home: HomeOption = None,
) -> None:
    """Close a week and write its labels as a preferences table; what comes later is for the next.

    Another --format writes the whole batch with its labels for another tool, and closes nothing.
    """
    from annotation.exchange import format_named, records
    from data_contracts.durable import write_durably
    from flows.label_weeks import deliver_labels

    where = places(home)
    if format_ != "preferences":
        wanted = format_named(format_)
        with _database_of_a_home(home, database).reading() as session:
            text = wanted.write(records(session, week))
        file = output or Path(f"batch-{week}.{_SUFFIXES[format_]}")
        write_durably(file, text.encode())
        typer.echo(str(file))
        return
    file = output or _awaited_file(where, week)
    held_out = _test_fraction(where) if test_fraction is None else test_fraction
    labels = _database_of_a_home(home, database)
    count = deliver_labels(labels, week, file, held_out)
    typer.echo(f"{file}: {count} preferences")


def _awaited_file(where: Places, week: int) -> Path:
    """Where the home's recipe awaits a week's labels, if it does, or else in the home."""
    from flows.label_weeks import delivery_file, out_of_reach
    from flows.occupied import remembered

    recipe = remembered(where)
    awaited = delivery_file(recipe, week) if recipe else None
    if recipe and awaited and (reason := out_of_reach(recipe, awaited)):
        raise UserError(f"The labels cannot be delivered: {reason}", "Or give --output")
    return awaited or where.local / "annotation" / "deliveries" / f"v{week}.parquet"


def _test_fraction(where: Places) -> float:
    """Share of prompts that the home's recipe holds out; a recipe's default without one."""
    from flows.occupied import remembered
    from stages.collect_preferences import CollectPreferencesSettings

    recipe = remembered(where)
    settings = recipe.collect_preferences if recipe else CollectPreferencesSettings()
    return settings.test_fraction


_SUFFIXES = {"jsonl": "jsonl", "csv": "csv", "label_studio": "json", "argilla": "json"}


@app.command(name="import")
@paragraphs
def import_(
    file: Annotated[Path, typer.Argument(help="What another tool, or `export`, wrote.")],
    week: WeekOption,
    format_: FormatOption,
    overlap: Annotated[int, typer.Option("--overlap", min=1, help="Labels for each item.")] = 1,
    database: DatabaseOption = None,
    home: HomeOption = None,
) -> None:
    """Bring in comparisons and labels of another tool; doing it again adds nothing."""
    from annotation.batches import BatchPlan
    from annotation.exchange import import_records, read_records

    given = read_records(_text(file), format_, str(file))
    with _database(places(home), database).writing() as session:
        num_items, num_labels = import_records(
            session, week, given, BatchPlan(overlap=overlap), datetime.now(UTC)
        )
    typer.echo(f"Batch {week}: {num_items} new items, {num_labels} new labels")


@app.command()
@paragraphs
def stats(
    week: WeekOption,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
    home: HomeOption = None,
) -> None:
    """Progress, agreement, distributions and Table 6 of a week; Table 26 of all deliveries."""
    from annotation import statistics
    from annotation.batches import all_delivered, delivered, preference_rows, progress, standing
    from annotation.consensus import agreement

    with _database_of_a_home(home, database).reading() as session:
        done = progress(session, week)
        labels = statistics.judgements(session, week)
        rows = preference_rows(delivered(session, week) + standing(session, week), week, 0.1)
        history = all_delivered(session, 0.1)
    figures = {
        "progress": {**asdict(done), "deadline": str(done.deadline or "")},
        "agreement": asdict(agreement(labels)),
        "rating": statistics.shares(labels, "rating"),
        "safety_label": statistics.shares(labels, "safety_label"),
        "annotators": [asdict(row) for row in statistics.by_annotator(labels)],
        "table_6": [asdict(row) for row in statistics.table_6(rows, "domain")],
        "table_26": [asdict(row) for row in statistics.table_6(history, "batch")],
    }
    if as_json:
        print_json(figures)
        return
    import yaml

    yaml.safe_dump(figures, sys.stdout, sort_keys=False)


@app.command()
@paragraphs
def simulate(
    url: Annotated[str, typer.Option("--url", help="Where the page is served.")] = (
        "http://127.0.0.1:8400"
    ),
    num_annotators: Annotated[int, typer.Option("--annotators", min=1, max=200)] = 5,
    num_labels: Annotated[
        int | None, typer.Option("--labels", help="Each; without it until nothing is left.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    database: DatabaseOption = None,
    home: HomeOption = None,
) -> None:
    """Let the sandbox's simulated annotators use the page, over HTTP."""
    from annotation.accounts import invite as make
    from annotation.simulation import simulate as run
    from annotation.storage.schema import Role
    from data_contracts.ratings import Domain
    from stages.sandbox.annotator import AnnotatorSettings

    now = datetime.now(UTC)
    with _database(places(home), database).writing() as session:
        tokens = [make(session, Role.annotator, now, None) for _ in range(num_annotators)]
    tallies = run(url, tokens, list(Domain), AnnotatorSettings(), seed, num_labels=num_labels)
    count = sum(len(tally.slots) for tally in tallies)
    skipped = sum(tally.num_skipped for tally in tallies)
    typer.echo(f"{count} labels, {skipped} skipped")


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")  # line ends in a CSV's texts stay as they are
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read: {type(error).__name__}", "Correct the path; files are UTF-8"
        ) from None
