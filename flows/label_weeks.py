"""An iteration's labels: its comparisons go up on the annotation page, its delivery comes back."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from annotation.batches import (
    BatchPlan,
    Progress,
    deliver,
    preference_rows,
    progress,
    publish,
)
from annotation.comparable import check_comparable
from annotation.refusals import NotThereError
from annotation.storage.database import Database, home_database
from data_contracts.durable import sync_folder
from data_contracts.errors import UserError
from data_contracts.parquet import read_table, write_table
from data_contracts.tables import COMPARISONS, PREFERENCES
from flows.environment import Places
from flows.graph import preference_nodes
from flows.node import NodeId, Output
from flows.recipe import Recipe
from flows.runner import Walk


def annotation_database(where: Places) -> Database:
    """The database of a home's labels."""
    return home_database(where.local / "annotation")


def delivery_file(recipe: Recipe, version: int) -> Path | None:
    """Where the labels of an iteration are expected; None when people do not label it."""
    for node in preference_nodes(recipe, version):
        if "delivery" in node.fixed:
            return Path(node.fixed["delivery"]["path"])
    return None


def out_of_reach(recipe: Recipe, file: Path) -> str:
    """Why a delivery that is written here would not be seen where the iteration runs, or ""."""
    data = recipe.data_dir.absolute() if recipe.data_dir else None
    if data is None or data.is_dir() or not file.is_relative_to(data):
        return ""
    return (
        f"{file} lies in the folder of the source files, which is not here. Name a folder of the "
        "home, with its whole path, in collect_preferences.deliveries"
    )


def publish_comparisons(walk: Walk, version: int, now: datetime) -> int:
    """Put what sample_pairs made up for labelling; returns how many items are new.

    Done again, it changes neither the batch nor its deadline.
    """
    ref = walk.resolve(Output(NodeId(version, "sample_pairs"), "comparisons"))
    rows = read_table(walk.store.local(ref), COMPARISONS).to_pylist()
    check_comparable(rows)
    settings = walk.recipe.labelling
    plan = BatchPlan(
        overlap=settings.overlap,
        check_every=settings.check_every,
        deadline=now + timedelta(days=settings.days),
        seed=walk.recipe.seed,
    )
    database = annotation_database(walk.where)
    try:
        with database.writing() as session:
            return publish(session, version, rows, plan, now)
    finally:
        database.close()


def progress_of(where: Places, version: int) -> Progress | None:
    """How far the labels of an iteration are; None when they have not been asked for."""
    database = annotation_database(where)
    try:
        with database.reading() as session:
            return progress(session, version)
    except NotThereError:
        return None
    finally:
        database.close()


def deliver_labels(database: Database, week: int, file: Path, test_fraction: float) -> int:
    """Close a week and write its labels; returns how many. What comes later is for the next.

    The rows are on the disk and checked before they count as delivered, and get their name only
    after that. Killed in between, there is no file, and doing it again writes the same rows; the
    other way round a file would hold labels that go out once more with the next week.

    Raises UserError, with nothing delivered, when the file is a folder.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder", f"Give a file, such as {file / f'v{week}.parquet'}")
    staged = file.with_name(f".{file.name}.staged")
    with database.writing() as session:
        rows = preference_rows(deliver(session, week, datetime.now(UTC)), week, test_fraction)
        write_table(staged, rows, PREFERENCES)
    os.replace(staged, file)
    sync_folder(file.parent)
    return len(rows)
