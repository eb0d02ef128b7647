"""The commands that look and change nothing: plan, status, models, check."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.capacity.options import CardOptions
from flows.cli_options import (
    AssumeOption,
    CarbonOption,
    DataOption,
    ForceNodesOption,
    GpuOption,
    GpusOption,
    HomeOption,
    JsonOption,
    MfuOption,
    ProductOption,
    PueOption,
    RecipeOption,
    SeedOption,
    SetOption,
    VersionsOption,
    WattsOption,
    check_product,
    chosen_recipe,
    exists,
    opened,
    paragraphs,
    print_json,
    wide_console,
)
from flows.environment import Places, places

if TYPE_CHECKING:
    from flows.capacity.view import CapacityReport
    from flows.planner import Step
    from flows.recipe import Recipe


@paragraphs
def plan(
    recipe: RecipeOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
    data: DataOption = None,
    seed: SeedOption = None,
    versions: VersionsOption = None,
    force: ForceNodesOption = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="Print every stage's settings, too.")
    ] = False,
    as_json: JsonOption = False,
    gpus: GpusOption = None,
    gpu: GpuOption = None,
    mfu: MfuOption = None,
    watts: WattsOption = None,
    pue: PueOption = None,
    kgco2_per_kwh: CarbonOption = None,
    assume: AssumeOption = None,
) -> None:
    """Say for every stage whether it would be reused or run, and why. Runs nothing.

    \b
    - `rlhf plan --recipe 70b --settings`
    - `rlhf plan --set ppo.kl_beta=0.02`
    - `rlhf plan --recipe 7b --gpus 8 --gpu a100-80gb`

    With --gpus and --gpu also: the memory of a rank at every ZeRO stage, time, energy and carbon of
    every training stage. What does not fit is refused, with the change that would make it fit.
    """
    where = places(home)
    chosen = chosen_recipe(recipe, set_, where, data, seed, versions, None)
    cards = CardOptions(gpus, gpu, mfu, watts, pue, kgco2_per_kwh, tuple(assume or ()))
    from flows.planner import plan as planned

    store, ledger = opened(where) if exists(where) else (None, None)
    steps = planned(chosen, store, ledger, force or [])
    capacity = _capacity(chosen, cards) if cards.is_given else None
    if as_json:
        content = {
            "recipe": chosen.model_dump(mode="json"),
            "home": where.home,
            "steps": [step.as_json() for step in steps],
        }
        print_json(content | ({"capacity": capacity.as_json()} if capacity else {}))
    else:
        _print_plan(chosen, where, steps, settings)
        if capacity:
            capacity.print(wide_console())
    if capacity:
        capacity.refuse()


def _capacity(recipe: "Recipe", cards: CardOptions) -> "CapacityReport":
    from flows.capacity.assessment import assess
    from flows.capacity.view import CapacityReport

    return CapacityReport(assess(recipe, cards))


def _print_plan(recipe: "Recipe", where: Places, steps: "list[Step]", settings: bool) -> None:
    console = wide_console()
    table = Table(title=f"{recipe.name}: {recipe.description}")
    table.add_column("node", no_wrap=True)
    table.add_column("plan")
    table.add_column("why")
    for step in steps:
        table.add_row(str(step.node.id), step.action, step.reason)
    console.print(table)
    if settings:
        import yaml

        shown: dict[str, Any] = {}
        for step in steps:
            dumped = step.node.settings.model_dump(mode="json")
            if dumped not in shown.values():
                shown[str(step.node.id)] = dumped
        console.print(yaml.safe_dump(shown, sort_keys=False), markup=False, soft_wrap=True)
    changed = dict.fromkeys(step.node.stage for step in steps if step.code_changed)
    if changed:
        console.print(
            f"Note: the code behind {', '.join(changed)} has changed since their results were "
            "made. They are reused as long as the stage's VERSION is the same; --force NODE makes "
            "one again.",
            soft_wrap=True,
        )
    for missing in dict.fromkeys(step.missing for step in steps if step.missing):
        console.print(f"To supply: {missing}", markup=False, soft_wrap=True)
    num_runs = sum(step.action == "run" for step in steps)
    console.print(
        f"{len(steps) - num_runs} of {len(steps)} reused, {num_runs} to run, home {where.home}"
    )


@paragraphs
def status(
    recipe: ProductOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="The board of stages and versions, until Ctrl-C.")
    ] = False,
) -> None:
    """Show what every version of the home stands on: stages, times, digests.

    \b
    - `rlhf status --json`
    - `rlhf status --watch`
    """
    where = places(home)
    check_product(recipe, where)
    if watch:
        _watch(where)
        return
    from flows.models import list_status

    rows = list_status(*opened(where)) if exists(where) else []
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    from flows.node import version_label
    from flows.progress import duration

    table = Table(title=f"Home {where.home}")
    for header in ("version", "node", "state", "time", "finished (UTC)", "key"):
        table.add_column(header, no_wrap=header != "state")
    for row in rows:
        table.add_row(
            version_label(row.version),
            row.node,
            row.state,
            duration(row.seconds),
            row.finished_at.split("+")[0],
            row.key[:12],
        )
    console = wide_console()
    console.print(table)
    if not rows:
        console.print("Nothing has run here yet. Try: rlhf demo")


def _watch(where: Places) -> None:
    from flows.live_status import Board
    from flows.live_status import watch as show

    chosen = chosen_recipe(None, None, where, None, None, None, None)
    with suppress(KeyboardInterrupt):
        show(Board(chosen, *opened(where)), wide_console())


@paragraphs
def models(
    recipe: ProductOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """List the models of the home: name, version, digest, path.

    Each folder is in Hugging Face layout: transformers, vLLM and lm-eval load it as it is.

    \b
    - `rlhf models --json`
    """
    where = places(home)
    check_product(recipe, where)
    from flows.models import list_models

    rows = list_models(*opened(where)) if exists(where) else []
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    console = wide_console()
    for row in rows:
        console.print(
            f"{row.name:<15} v{row.version:<3} {row.digest[:12]}  {row.path}", soft_wrap=True
        )
    if not rows:
        console.print("No model yet. Try: rlhf demo")


@paragraphs
def check(
    file: Annotated[Path, typer.Argument(help="A Parquet file or a folder of them.")],
    contract: Annotated[str, typer.Option("--contract", help="e.g. preferences")],
) -> None:
    """Check a table against its contract: schema, every row, page checksums.

    \b
    - `rlhf check preferences.parquet --contract preferences`
    """
    from data_contracts.parquet import check_file

    typer.echo(f"{file}: {check_file(file, contract):,} rows satisfy {contract}")
