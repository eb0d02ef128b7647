"""`rlhf report`: the page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from data_contracts.durable import disk_error
from data_contracts.errors import UserError
from flows.cli_options import (
    HomeOption,
    ProductOption,
    check_product,
    exists,
    opened,
    paragraphs,
)
from flows.environment import places

PAGE = "index.html"


@paragraphs
def report(
    output: Annotated[
        Path, typer.Option("--output", help="Folder for index.html, or a file *.html.")
    ] = Path("report"),
    recipe: ProductOption = None,
    home: HomeOption = None,
) -> None:
    """Write one HTML page about the home's run: versions, figures, samples, gates, costs.

    \b
    - `rlhf report`
    - `rlhf report --home DIR --output DIR/report`

    The page needs nothing but itself: send it, print it, open it anywhere.
    """
    where = places(home)
    check_product(recipe, where)
    from flows.run_page import run_page
    from flows.run_record import RunRecord

    record = RunRecord(*opened(where)) if exists(where) else None
    if record is None or not any(record.nodes(version) for version in record.versions):
        raise UserError(f"Nothing has run in {where.home}", "Run `rlhf demo` first, or give --home")
    file = output if output.suffix == ".html" else output / PAGE
    page = run_page(record, _product(where.recipe), where)
    try:
        page.write(file)
    except OSError as error:
        raise disk_error("write", file, error) from error
    typer.echo(str(file))


def _product(file: Path) -> str:
    from flows.recipe import load_recipe

    return load_recipe(str(file)).product if file.is_file() else "run"
