"""`rlhf serve`: a model of the home behind an OpenAI-compatible endpoint."""

from pathlib import Path
from typing import Annotated

import typer

from data_contracts.errors import UserError
from flows.cli_options import HomeOption, exists, opened, paragraphs
from flows.environment import places


@paragraphs
def serve(
    version: Annotated[
        str | None, typer.Option("--version", help="V2, v2 or 2: the policy; sft: version 0.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Any folder in Hugging Face layout instead.")
    ] = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8001,
    home: HomeOption = None,
) -> None:
    """Serve a policy as POST /v1/chat/completions, streaming and batching concurrent requests.

    \b
    - `rlhf serve --version V2`
    - `rlhf serve --model FOLDER --port 8002`

    The annotation page's live responses (`live_models` in its settings) and any OpenAI client
    can use it.
    """
    folder, name = (model, model.name) if model else chosen_policy(version, home)
    import uvicorn

    from annotation.model_server.app import create_model_app
    from annotation.model_server.engine import Engine
    from stages.models.folders import load_policy_folder

    engine = Engine(*load_policy_folder(folder))
    typer.echo(f"{name}: http://{host}:{port}/v1")
    uvicorn.run(create_model_app(engine, name), host=host, port=port, log_level="warning")


def chosen_policy(version: str | None, home: str | None) -> tuple[Path, str]:
    """Folder and name of the home's policy of a version, the newest one when none is named.

    Raises UserError, with the versions that there are, when it has none.
    """
    from flows.models import list_models, version_number

    where = places(home)
    rows = list_models(*opened(where)) if exists(where) else []
    found = {row.version: row for row in rows if row.name in ("sft", "policy")}
    wanted = version_number(version) if version else max(found, default=None)
    if wanted is None or wanted not in found:
        have = ", ".join(f"V{number}" if number else "sft" for number in sorted(found)) or "none"
        raise UserError(
            f"The home {where.home} has no policy {version or ''}; it has: {have}",
            "Choose one of them, or give a folder with --model",
        )
    return Path(found[wanted].path), f"rlhf-v{wanted}"
