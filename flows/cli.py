"""The `rlhf` command line. Modules with torch, Prefect or MLflow behind them are imported by the
command that needs them, so that `--help` answers at once."""

import gc
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from data_contracts.errors import UserError
from flows import (
    cli_annotations,
    cli_chat,
    cli_evaluation,
    cli_report,
    cli_serve,
    cli_up,
    cli_upkeep,
    cli_views,
)
from flows.cli_options import (
    DataOption,
    ForceNodesOption,
    HomeOption,
    ProcessesOption,
    RecipeOption,
    SeedOption,
    SetOption,
    VersionsOption,
    chosen_recipe,
    exists,
    opened,
    paragraphs,
    wide_console,
)
from flows.environment import places, prepare

if TYPE_CHECKING:
    from flows.cascade import Rerun
    from flows.gates import Verdict
    from flows.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""The Llama 2 pipeline, from raw text to RLHF-Vn, as stages that can be re-run one by one.

Try `rlhf demo`: a world of its own, no network, no GPU, about ten minutes on two cores.
Then look: `rlhf status`, `rlhf models`, `rlhf plan`.

On your own data: `rlhf run --recipe my.yaml --data DIR`, where my.yaml says `extends: real` and
what differs. `rlhf plan --recipe my.yaml` says beforehand what would run, and why.""",
)


app.add_typer(cli_annotations.app, name="annotations")
app.add_typer(cli_evaluation.app, name="evaluation")

_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Python's 700 would look for garbage all the time while torch, Prefect and MLflow are imported,
where there is none: a fifth of what that takes."""


def main() -> None:
    """Entry point of the console script."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    app()


@app.command()
@paragraphs
def demo(
    set_: SetOption = None,
    home: HomeOption = None,
    seed: SeedOption = None,
    versions: VersionsOption = None,
    num_processes: ProcessesOption = None,
) -> None:
    """Run the embedded sandbox from raw text to RLHF-V5.

    Its prompts, demonstrations and annotators are generated, and a gold judge that no training
    sees says whether RLHF worked. Run it again and everything is reused:

    \b
    - `rlhf demo && rlhf demo && rlhf plan`
    """
    _run(chosen_recipe("demo", set_, places(home), None, seed, versions, num_processes), home, [])


@app.command()
@paragraphs
def run(
    recipe: RecipeOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
    data: DataOption = None,
    seed: SeedOption = None,
    versions: VersionsOption = None,
    num_processes: ProcessesOption = None,
    force: ForceNodesOption = None,
) -> None:
    """Run a recipe; what is done already is reused.

    \b
    - `rlhf run --recipe real --data DIR`
    - `rlhf run --recipe my.yaml --set pretrain.learning_rate=1e-3 --versions 3`

    Killed half way? The same command goes on. With PREFECT_API_URL and MLFLOW_TRACKING_URI set it
    reports to those servers, else to databases in the home.
    """
    chosen = chosen_recipe(recipe, set_, places(home), data, seed, versions, num_processes)
    _run(chosen, home, force or [])


def _run(recipe: "Recipe", home: str | None, force: list[str]) -> None:
    where = places(home)
    from flows.occupied import occupied, refuse_other_product
    from flows.planner import refuse_unknown
    from flows.report import print_report
    from flows.server import begin_api, server_errors_explained

    refuse_unknown(recipe, force)
    store, ledger = opened(where)
    with occupied(store):
        refuse_other_product(where, recipe)
        prepare(where)
        api = begin_api(where)
        from flows.pipeline import rlhf_run
        from flows.tracking.access import load_mlflow

        load_mlflow(where)
        api.wait()
        with server_errors_explained(where):
            rlhf_run(recipe.model_dump(mode="json"), where.home, force)
        print_report(recipe, store, ledger, where, api.place, wide_console())


@app.command()
@paragraphs
def stage(
    name: Annotated[str, typer.Argument(help="A stage (ppo) or a node (reward_model-safety).")],
    version: Annotated[int | None, typer.Option("--version", help="n of RLHF-Vn.")] = None,
    domain: Annotated[
        str | None, typer.Option("--domain", help="helpfulness or safety, for reward_model.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it again.")] = False,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Then whatever stands on older outputs of it.")
    ] = False,
    recipe: RecipeOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
    data: DataOption = None,
    seed: SeedOption = None,
    num_processes: ProcessesOption = None,
) -> None:
    """Run one stage alone, on the inputs that its version was begun with.

    \b
    - `rlhf stage reward_model --version 2 --force`
    - `rlhf stage reward_model --version 2 --force --cascade`
    - `rlhf stage reward_model --version 2 --domain safety --set safety_rm.num_epochs=2`
    - `rlhf stage pretrain --num-processes 2`

    Needs no Prefect server. Says whether the result is the same as before, and if not, which
    finished stages now stand on old inputs.
    """
    where = places(home)
    chosen = chosen_recipe(recipe, set_, where, data, seed, None, num_processes)
    from flows.cascade import rerun
    from flows.gates import settle
    from flows.numbering import LAST_STAGE
    from flows.occupied import claim, occupied
    from flows.planner import as_far_as_begun
    from flows.runner import Walk, find_nodes
    from flows.server import use_standing

    use_standing(where)
    if exists(where):
        chosen = as_far_as_begun(chosen, opened(where)[1])
    wanted = find_nodes(chosen, f"{name}-{domain}" if domain else name, version)
    with occupied(opened(where)[0]):
        claim(where, chosen, keep=True)
        prepare(where)
        walk = Walk(chosen, where)
        with walk.tracker:
            for done in rerun(wanted, walk, force=force, cascade=cascade):
                _print_rerun(done)
                if done.result.node.stage == LAST_STAGE:
                    _print_verdict(settle(walk, done.result.node.id.version))


def _print_rerun(done: "Rerun") -> None:
    console = Console(highlight=False)
    for role, ref in done.result.manifest.outputs.items():
        console.print(f"{done.result.node.id}:{role} {ref.digest}", soft_wrap=True)
    if done.before is not None and not done.result.reused:
        console.print(f"  {_compared(done)}")
    for node, reason in done.stale.items():
        console.print(f"  stale: {node}, since {reason}", soft_wrap=True)


def _compared(done: "Rerun") -> str:
    if not done.is_same:
        return "not the digests of before"
    # what an earlier command left stale, is
    valid = "" if done.stale else ": everything downstream stays valid"
    return f"the same digests as before{valid}"


def _print_verdict(verdict: "Verdict") -> None:
    console = Console(highlight=False)
    passed = ", ".join(verdict.promoted()) or "none"
    console.print(f"Gates of v{verdict.version} passed by: {passed}", soft_wrap=True)
    for gate in verdict.failed():
        console.print(f"  failed: {gate}", soft_wrap=True)


@app.command()
@paragraphs
def ingest(
    file: Annotated[Path, typer.Argument(help="Text or JSON lines, plain or gzipped.")],
    role: Annotated[
        str,
        typer.Option(
            "--role", help="documents, demonstrations, prompts, preferences or open_preferences."
        ),
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="text, jsonl_text, alpaca, qa, chat, prompts, hh, alpaca_eval, pairs."
        ),
    ],
    domain: Annotated[
        str | None, typer.Option("--domain", help="helpfulness or safety, where rows do not say.")
    ] = None,
    skip_empty: Annotated[
        bool, typer.Option("--skip-empty", help="Leave out rows with empty text.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Read one of your files as a source, to see what becomes of it.

    \b
    - `rlhf ingest hh.jsonl.gz --role preferences --format hh --domain safety`

    Prints what was kept, what was dropped and why, and where the table is. A run reads its
    sources from the recipe; `rlhf stage ingest` does that alone.
    """
    from pydantic import ValidationError

    from stages.ingest import Config
    from stages.runtime.stage import run_stage

    source = {
        "name": re.sub(r"[^A-Za-z0-9_-]+", "_", file.name.split(".")[0]) or "file",
        "path": file,
        "role": role,
        "format": format_,
        "domain": domain,
        "skip_empty": skip_empty,
    }
    try:
        config = Config.model_validate({"sources": [source]})
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())
        raise UserError(f"{file} cannot be a source: {problems}", "Correct the options") from None
    store, _ = opened(places(home))
    manifest = run_stage("ingest", config, store).manifest
    for name, count in manifest.metrics.items():
        typer.echo(f"{name}: {count:,.0f}")
    typer.echo(f"{role}: {store.local(manifest.outputs[role])}")


for command in (
    cli_chat.chat,
    cli_serve.serve,
    cli_report.report,
    cli_up.up,
    cli_up.down,
    cli_up.deploy,
):
    app.command()(command)
for view in (cli_views.plan, cli_views.status, cli_views.models, cli_views.check):
    app.command()(view)
for name in ("history", "rollback", "fsck", "gc", "stop"):
    app.command()(getattr(cli_upkeep, name))


if __name__ == "__main__":
    main()
