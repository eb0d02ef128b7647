"""Where a home keeps its databases, and the variables that Prefect and MLflow read on import.

Both libraries fix their settings when they are imported, so `prepare` comes before either; a
variable that the user has set wins. Nothing is reported to anyone outside.
"""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from data_contracts.durable import disk_error
from data_contracts.errors import UserError

HOME_VARIABLE = "RLHF_HOME"
DEFAULT_HOME = "rlhf_home"


@dataclass(frozen=True)
class Places:
    """Where things are for one home."""

    home: str
    """Folder or fsspec URL of the store."""
    local: Path
    """Folder for the databases: the home itself when it is a local folder."""

    @property
    def mlflow(self) -> str:
        """MLflow's tracking URI."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.mlflow_database}"

    @property
    def mlflow_database(self) -> Path:
        """The home's own MLflow database, used when no server is named."""
        return self.local.resolve() / "mlflow" / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> str:
        """Where the built-in MLflow store keeps files."""
        return (self.local.resolve() / "mlflow" / "artifacts").as_uri()

    @property
    def recipe(self) -> Path:
        """The recipe of the newest run, which `stage`, `plan` and `status` take by default."""
        return self.local / "recipe.json"

    @property
    def prefect_home(self) -> Path:
        """Folder of Prefect's settings and of the built-in server's database."""
        return Path(os.environ.get("PREFECT_HOME") or self.local.resolve() / "prefect")


def places(home: str | None) -> Places:
    """The places of a home: --home, else RLHF_HOME, else ./rlhf_home."""
    chosen = home or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME
    if "://" not in chosen:
        return Places(chosen, _expanded(chosen))
    if chosen.startswith("file://"):
        return Places(chosen, Path(chosen.removeprefix("file://")))
    # a bucket holds no databases
    return Places(chosen, Path(DEFAULT_HOME))


def _expanded(home: str) -> Path:
    try:
        return Path(home).expanduser()
    except RuntimeError:
        raise UserError(
            f"{home} begins with no user of this machine", "Write the whole path of the home"
        ) from None


def prepare(where: Places) -> None:
    """Set what Prefect and MLflow read when they are imported, and make their folders.

    Raises UserError when the home cannot be written.
    """
    try:
        (where.local / "mlflow").mkdir(parents=True, exist_ok=True)
        where.prefect_home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("make folders in the home", where.local, error) from error
    for name, value in {
        "PREFECT_HOME": str(where.prefect_home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        # errors reach the user as one paragraph; the API keeps the whole log
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        # a dead MLflow server would hold one call for four minutes
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    }.items():
        os.environ.setdefault(name, value)
    # a log line that a server does not take is no message to the user
    logging.raiseExceptions = False
    # prints the traceback of what it also raises, which the tracker tells in one sentence; a level
    # and no variable, since MLflow's own server is to keep it in its log
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # told by libraries about each other; a user can do nothing about them
    for module in ("prefect", "mlflow", "sqlalchemy", "alembic", "pydantic"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
