"""A week by command line: publish, label over HTTP, export, and the stage that takes it on."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from annotation_model import served
from annotation_world import comparison, comparisons
from typer.testing import CliRunner

from annotation.settings import AnnotationSettings
from annotation.storage.database import open_database, sqlite_url
from annotation.web.app import create_app
from annotation.web.visitors import Service
from data_contracts.errors import UserError
from data_contracts.parquet import read_table, write_table
from data_contracts.store import Store
from data_contracts.tables import COMPARISONS, PREFERENCES
from flows.cli import app as cli
from flows.graph import version_nodes
from flows.recipe import load_recipe
from stages.collect_preferences import Config, delivered
from stages.runtime.stage import run_stage


def rlhf(*words: object, home: Path):
    command = ["annotations", *map(str, words), "--home", str(home)]
    return CliRunner().invoke(cli, command)


def done(*words: object, home: Path) -> str:
    result = rlhf(*words, home=home)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [comparison(f"c{i}", response_b=f"Another {i}.") for i in range(6)]
    rows += comparisons(4, "safety")
    write_table(tmp_path / "comparisons.parquet", rows, COMPARISONS)
    return tmp_path / "comparisons.parquet"


def test_a_week_from_comparisons_to_the_stage(home, table, tmp_path):
    published = done("publish", "--week", 1, "--comparisons", table, "--overlap", 2, home=home)
    assert "10 new items of 10" in published
    database = open_database(sqlite_url(home / "annotation" / "annotation.db"))
    with served(create_app(Service(database, AnnotationSettings()))) as url:
        said = done("simulate", "--url", url, "--annotators", 3, home=home)
    database.close()
    assert int(said.split()[0]) >= 18

    figures = json.loads(done("stats", "--week", 1, "--json", home=home))
    assert figures["progress"]["num_done"] == figures["progress"]["num_wanted"] == 20
    assert figures["agreement"]["choice"]["num_subjects"] == 10

    exported = done("export", "--week", 1, home=home)
    file = home / "annotation" / "deliveries" / "v1.parquet"
    assert f"{file}: 20 preferences" in exported.replace("\n", "")
    rows = read_table(file, PREFERENCES).to_pylist()
    figures = json.loads(done("stats", "--week", 1, "--json", home=home))
    assert [(r["name"], r["num_comparisons"]) for r in figures["table_26"]] == [
        ("1", 20),
        ("total", 20),
    ]

    config = Config.model_validate(
        {
            "method": "annotations",
            "deliveries": file.parent,
            "delivery": {"path": file},
            "batch": 1,
            "test_fraction": 0.5,
        }
    )
    store = Store.open(home)
    manifest = run_stage("collect_preferences", config, store).manifest
    kept = read_table(store.local(manifest.outputs["preferences"]), PREFERENCES).to_pylist()
    assert [row["preference_id"] for row in kept] == [row["preference_id"] for row in rows]
    assert {row["split"] for row in kept} == {"train", "test"}
    assert manifest.metrics["num_comparisons"] == 20


def test_a_batch_moves_to_another_home_by_file(home, table, tmp_path):
    done("publish", "--week", 1, "--comparisons", table, home=home)
    file = tmp_path / "batch.json"
    done("export", "--week", 1, "--format", "argilla", "--output", file, home=home)
    said = done("import", file, "--week", 1, "--format", "argilla", home=tmp_path / "other")
    assert "10 new items, 0 new labels" in said


def test_a_csv_keeps_its_line_ends_and_may_have_been_in_a_spreadsheet(home, tmp_path):
    """Which puts a byte order mark before it."""
    rows = [comparison("c", response_a="One\r\ntwo\rthree\n", response_b="=1+1")]
    write_table(tmp_path / "c.parquet", rows, COMPARISONS)
    done("publish", "--week", 1, "--comparisons", tmp_path / "c.parquet", home=home)
    file = tmp_path / "batch.csv"
    done("export", "--week", 1, "--format", "csv", "--output", file, home=home)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    done("import", file, "--week", 1, "--format", "csv", home=tmp_path / "other")
    lines = tmp_path / "batch.jsonl"
    command = ["export", "--week", 1, "--format", "jsonl", "--output", lines]
    done(*command, home=tmp_path / "other")
    (found,) = map(json.loads, lines.read_text().splitlines())
    assert (found["response_a"], found["response_b"]) == ("One\r\ntwo\rthree\n", "=1+1")


@pytest.mark.parametrize("name", ["jsonl", "csv", "label_studio", "argilla"])
def test_a_file_may_have_been_in_an_editor_of_windows(home, table, tmp_path, name):
    """Which puts a byte order mark before it and ends its lines with CR LF."""
    done("publish", "--week", 1, "--comparisons", table, home=home)
    file = tmp_path / "batch"
    done("export", "--week", 1, "--format", name, "--output", file, home=home)
    lines = file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + lines)
    said = done("import", file, "--week", 1, "--format", name, home=home)
    assert "0 new items, 0 new labels" in said


@pytest.mark.parametrize(
    "line",
    ['{"pick": "a"}', '{"comparison_id": "c1", "pick": "c"}', "[" * 100_000, "3"],
    ids=["no-id", "no-pick", "deep", "number"],
)
def test_a_gold_answer_that_is_none_is_named_by_its_line(home, table, tmp_path, line):
    file = tmp_path / "gold.jsonl"
    file.write_bytes(f'{{"comparison_id": "c0", "pick": "a"}}\r\n\r\n{line}\r\n'.encode())
    result = rlhf("publish", "--week", 1, "--comparisons", table, "--gold", file, home=home)
    assert result.exit_code == 2
    assert f"{file.name}, line 3: this is no gold answer" in " ".join(result.output.split())


SLOW_TO_IMPORT = ("torch", "prefect", "mlflow", "numpy", "scipy", "pyarrow", "alembic", "httpx")


def test_the_page_comes_back_without_what_is_slow_to_import(tmp_path):
    """After a crash people wait for it; its database is as it left it."""
    url = sqlite_url(tmp_path / "annotation.db")
    open_database(url).close()
    code = f"""
import sys, uvicorn
import flows.cli, flows.cli_annotations
from annotation.settings import AnnotationSettings
from annotation.storage.database import open_database
from annotation.web.app import create_app
from annotation.web.visitors import Service
create_app(Service(open_database({url!r}), AnnotationSettings()))
assert not set({SLOW_TO_IMPORT}) & set(sys.modules)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


def test_an_invitation_is_printed(home):
    said = done("invite", "--role", "admin", "--url", "https://label.example/", home=home)
    assert said.startswith("https://label.example/invitations/")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "--week", "3"], "There is no batch 3"),
        (["publish", "--week", "3"], "no comparisons for version 3"),
        (["invite", "--role", "boss"], "no role 'boss'"),
        (["export", "--week", "1", "--format", "xml"], "no format 'xml'"),
        (["stats", "--week", "1", "--database", "mysql://x"], "annotation database"),
    ],
)
def test_what_cannot_be_done_is_one_paragraph(home, words, message):
    home.mkdir()
    result = rlhf(*words, home=home)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_delivery_of_another_week_is_refused(tmp_path):
    row = {
        **{name: comparison("c")[name] for name in ("prompt_id", "domain", "category", "messages")},
        "preference_id": "p",
        "source": "annotation",
        "batch": 2,
        "split": "train",
        "annotator": "annotator-1",
        "chosen": "one",
        "rejected": "two",
        "rating": "better",
        "safety_label": None,
    }
    file = tmp_path / "v2.parquet"
    write_table(file, [row], PREFERENCES)
    given = {"method": "annotations", "deliveries": tmp_path, "delivery": {"path": file}}
    config = Config.model_validate({**given, "batch": 3})
    with pytest.raises(UserError, match="weekly batch 3 holds rows of another batch"):
        delivered(config, read_table(file, PREFERENCES))


def test_a_recipe_takes_each_week_from_its_own_file(tmp_path):
    settings = ["collect_preferences.method=annotations"]
    with pytest.raises(UserError, match="needs deliveries"):
        load_recipe("demo", settings)
    recipe = load_recipe("demo", [*settings, f"collect_preferences.deliveries={tmp_path}"])
    for version in (1, 2):
        names = [node.id.name for node in version_nodes(recipe, version)]
        assert names[:2] == ["sample_pairs", "collect_preferences"]
        node = version_nodes(recipe, version)[1]
        assert node.fixed["delivery"] == {"path": tmp_path / f"v{version}.parquet"}
        assert node.upstream == ()


@pytest.mark.slow
def test_a_connection_outlives_the_pause_between_two_labels(home: Path):
    """uvicorn's own 5 seconds are over, and the same connection still answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["flows.cli", "annotations", "serve", "--port", str(port), "--home", str(home)]
    server = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL)
    try:
        with contextlib.closing(first_connection(port)) as connection:
            for pause in (7, 0):
                connection.request("GET", "/healthz")
                with connection.getresponse() as answer:
                    assert answer.read()
                    assert (answer.status, answer.will_close) == (200, False)
                time.sleep(pause)
    finally:
        server.kill()
        server.wait()


def first_connection(port: int) -> http.client.HTTPConnection:
    """A connection that does not open itself again, once the server is there."""
    deadline = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.auto_open = 0
        try:
            connection.connect()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)
        else:
            return connection


@pytest.mark.parametrize("command", ["stats", "export"])
def test_a_misspelt_home_is_no_new_home(home, command):
    result = rlhf(command, "--week", 1, home=home)
    assert result.exit_code == 2
    assert f"There is no home at {home}" in result.output.replace("\n", "")
    assert not home.exists()


@pytest.mark.parametrize("folder", [".", "out"])
def test_labels_are_not_delivered_to_a_folder(home, table, tmp_path, monkeypatch, folder):
    """And the week stays open."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    done("publish", "--week", 1, "--comparisons", table, home=home)
    result = rlhf("export", "--week", 1, "--output", folder, home=home)
    assert result.exit_code == 2
    assert f"{folder} is a folder. Give a file, such as" in result.output.replace("\n", " ")
    figures = json.loads(done("stats", "--week", 1, "--json", home=home))
    assert figures["progress"]["state"] == "open"
