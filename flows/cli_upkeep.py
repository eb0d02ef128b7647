"""`rlhf history`, `rollback`, `fsck`, `gc` and `stop`: looking after a home."""

import errno
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

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
    from data_contracts.store import Store

_FINDINGS = 1
_LOOK_SECONDS = 0.3
_SHORT = 12
_RUNS = "runs"
"""The lock of a home's run; a stage's lock is its key."""
_STAGE_KEY = re.compile(r"[0-9a-f]{64}")

VersionOption = Annotated[
    int | None, typer.Option("--version", help="n of RLHF-Vn; 0 is the base.")
]
StageOption = Annotated[
    str | None,
    typer.Option("--stage", help="A stage (reward_model) or a node (reward_model-safety)."),
]


@paragraphs
def history(
    version: VersionOption = None,
    stage: StageOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List every result that a stage of a version has stood on, the newest last.

    \b
    - `rlhf history --version 3 --stage reward_model`
    """
    from flows.history import list_history
    from flows.node import version_label

    rows = list_history(opened(existing_home(places(home)))[0], version, stage)
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    table = Table(title=f"Home {places(home).home}")
    for header in ("version", "node", "since (UTC)", "key", "outputs", ""):
        table.add_column(header, no_wrap=header != "outputs")
    for row in rows:
        outputs = ", ".join(f"{role} {digest[:_SHORT]}" for role, digest in row.outputs.items())
        marks = ["head"] * row.is_head + ["rolled back"] * row.rolled_back
        since = row.at.split("+")[0]
        label = version_label(row.version)
        table.add_row(label, row.node, since, row.key[:_SHORT], outputs, ", ".join(marks))
    wide_console().print(table)


@paragraphs
def rollback(
    version: Annotated[int, typer.Option("--version", help="n of RLHF-Vn; 0 is the base.")],
    stage: Annotated[str, typer.Option("--stage", help="The stage or node to roll back.")],
    to: Annotated[
        str, typer.Option("--to", help="The beginning of an output's digest or of a key.")
    ],
    home: HomeOption = None,
) -> None:
    """Let a stage stand on an earlier result again. Nothing is deleted, and nothing is run.

    \b
    - `rlhf rollback --version 3 --stage reward_model --to DIGEST`

    It holds until the stage's settings or inputs change, or it is forced. `rlhf plan` says what
    has to run after it.
    """
    from flows.history import roll_back

    where = places(home)
    with _at_rest(where) as store:
        done = roll_back(store, version, stage, to)
        console = wide_console()
        for role, ref in done.now.outputs.items():
            before = done.before.outputs.get(role)
            was = f" (was {before.digest[:_SHORT]})" if before and before != ref else ""
            console.print(f"v{version}/{done.node}:{role} {ref.digest}{was}", soft_wrap=True)
        for node, reason in _stale(where, store).items():
            console.print(f"  stale: {node}, since {reason}", soft_wrap=True)
    console.print("`rlhf plan` says what would run; `rlhf run` runs it", soft_wrap=True)


def _stale(where: Places, store: "Store") -> dict[str, str]:
    """Finished nodes that stand on other inputs than the heads are now, with the reason."""
    from data_contracts.ledger import Ledger
    from flows.occupied import remembered
    from flows.planner import changed_downstream

    recipe = remembered(where)
    stale = changed_downstream(recipe, store, Ledger(store)) if recipe else {}
    return {str(node): reason for node, reason in stale.items()}


@paragraphs
def fsck(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check that ledger, manifests, objects and checkpoints agree; hashes every file.

    Each finding names the file and what to do. Exit code 1 when there is any. Changes nothing, so
    the home may be mounted read-only.
    """
    from flows.fsck import inspect

    where = places(home)
    with _at_rest(where, changes_nothing=True) as store:
        seen = inspect(store, where)
    if as_json:
        print_json(asdict(seen))
    else:
        for finding in seen.findings:
            typer.echo(f"{finding.file}: {finding.problem}. {finding.remedy}")
        typer.echo(
            f"{seen.num_heads} heads, {seen.num_manifests} manifests, {seen.num_objects} objects, "
            f"{seen.num_checkpoints} checkpoints: {len(seen.findings) or 'no'} findings"
        )
    if seen.findings:
        raise typer.Exit(_FINDINGS)


@paragraphs
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, remove nothing.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, help="Days that younger things are kept.")
    ] = 7,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished",
            help="Also what runs that stopped or failed would resume from, where the recipe's next "
            "run does not; without it that is kept for a week at least.",
        ),
    ] = False,
    home: HomeOption = None,
) -> None:
    """Remove what nothing needs: results without a version, old attempts, dead checkpoints.

    \b
    - `rlhf gc --dry-run`

    Kept is what a head, its history or a registered model needs, what the recipe's next run would
    resume from, and for a week what any other run would that stopped or failed: it is listed.
    Refuses while anybody is at work in the home.
    """
    from flows.garbage import find_garbage
    from flows.garbage import remove as remove_garbage
    from flows.server import use_standing
    from flows.tracking.registry import registered_digests

    where = places(home)
    use_standing(where)  # its MLflow may have another database than the home's
    with _at_rest(where, changes_nothing=dry_run) as store:
        registered = registered_digests(where)
        planned = _planned(where, store)
        found = find_garbage(store, registered, planned, older_than, unfinished)
        if not dry_run:
            remove_garbage(store, found.garbage)
    for item in found.garbage:
        typer.echo(f"{item.name}  {_megabytes(item.num_bytes)}  {item.reason}")
    for item in found.kept:
        typer.echo(f"{item.name}  {_megabytes(item.num_bytes)}  kept: {item.reason}")
    total = _megabytes(sum(item.num_bytes for item in found.garbage))
    typer.echo(f"{'would free' if dry_run else 'freed'} {total}")


def _planned(where: Places, store: "Store") -> set[str] | None:
    """Keys that the home's recipe would run next; None where a source file is not here to tell."""
    from data_contracts.ledger import Ledger
    from flows.occupied import remembered
    from flows.planner import plan

    recipe = remembered(where)
    steps = plan(recipe, store, Ledger(store)) if recipe else []
    if any(step.missing for step in steps):
        return None
    return {step.key for step in steps if step.action == "run" and step.key}


@paragraphs
def stop(
    wait_minutes: Annotated[
        float, typer.Option("--wait-minutes", min=0, help="How long to wait for the end.")
    ] = 30,
    home: HomeOption = None,
) -> None:
    """Stop the run in this home: the stage at work writes a checkpoint after its step, then ends.

    \b
    - `rlhf stop && rlhf run`

    The same command goes on from there. A stage that writes no checkpoints ends at once.
    """
    from stages.runtime import stopping

    store = opened(existing_home(places(home)))[0]
    deadline = time.monotonic() + 60 * wait_minutes
    found: dict[str, str] = {}
    while at_work := _at_work(store):
        found |= at_work
        # again at every look: the run may have come to the next stage in between
        stopping.ask(store.scratch)
        for name in at_work:
            if name != _RUNS:
                stopping.ask(store.work_folder(name))
        if time.monotonic() > deadline:
            raise UserError(
                f"{' and '.join(sorted(set(at_work.values())))} has not ended after "
                f"{wait_minutes:g} minutes",
                "It stops after the step at which it is; wait longer with --wait-minutes",
            )
        time.sleep(_LOOK_SECONDS)
    for owner in sorted(set(found.values())):
        typer.echo(f"stopped: {owner}")
    if not found:
        typer.echo(f"Nothing is at work in {store.home}")


def _at_work(store: "Store") -> dict[str, str]:
    """Owners of the locks of the home's run and of its stages, by the lock's name."""
    locks = store.held_locks().items()
    return {name: owner for name, owner in locks if name == _RUNS or _STAGE_KEY.fullmatch(name)}


@contextmanager
def _at_rest(where: Places, changes_nothing: bool = False) -> "Iterator[Store]":
    """The home's store, in which nobody else works during the block.

    What `changes_nothing` is let into a home that cannot be written, without its lock: whoever
    works there from another place is only seen at the beginning.

    Raises UserError that names the process when somebody does, or when there is no home.
    """
    from flows.occupied import occupied

    store = opened(existing_home(where))[0]
    with ExitStack() as held:
        is_locked = True
        try:
            held.enter_context(occupied(store))
        except UserError as error:
            if not (changes_nothing and _cannot_write(error)):
                raise
            is_locked = False
        for name, owner in _at_work(store).items():
            if name != _RUNS or not is_locked:
                raise UserError(
                    f"{owner[0].upper()}{owner[1:]} is at work on {name[:_SHORT]} in {store.home}",
                    "Wait until it ends, or end it with `rlhf stop`",
                )
        yield store


def _cannot_write(error: UserError) -> bool:
    """Whether a file could not be opened because nothing may be written there."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EROFS, errno.EACCES)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
