"""Make a home's MLflow database before a server opens it: `python -m flows.standing.database`."""

from flows.environment import places, prepare
from flows.tracking.access import ensure_database

if __name__ == "__main__":
    where = places(None)
    prepare(where)
    ensure_database(where.mlflow_database)
