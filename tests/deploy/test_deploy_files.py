"""What deploy/ says is true: every file parses, and every option, variable and path exists."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
SERVICE_KEYS = {
    "build",
    "command",
    "depends_on",
    "deploy",
    "environment",
    "healthcheck",
    "image",
    "ports",
    "restart",
    "shm_size",
    "stop_grace_period",
    "volumes",
}
"""Those of the Compose specification that are used; a misspelt one is not among them."""


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def commands() -> list[list[str]]:
    """Every command of Prefect or MLflow, in the compose file and in the systemd unit."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    unit.read(DEPLOY / "rlhf-worker.service")
    found = [s["command"] for s in compose()["services"].values() if "command" in s]
    started = unit["Service"]["ExecStart"].split()
    return [*found, [Path(started[0]).name, *started[1:]]]


@pytest.mark.parametrize("place", range(3), ids=["weekly", "any", "every-15-minutes"])
def test_a_deployment_loads_with_the_flow_parameters_it_names(place: int):
    from prefect.cli.deploy._models import PrefectYamlModel
    from prefect.flows import load_flow_from_entrypoint

    content = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())
    deployment = PrefectYamlModel.model_validate(content).deployments[place]
    assert deployment.entrypoint is not None
    flow = load_flow_from_entrypoint(deployment.entrypoint, use_placeholder_flow=False)
    asked_of_the_user = {"rerun-stage": {"iteration": 1, "stage": "ppo"}}
    flow.validate_parameters(asked_of_the_user.get(flow.name, {}) | deployment.parameters)
    names = ["rlhf-iteration/weekly", "rerun-stage/any", "watch-annotations/every-15-minutes"]
    assert f"{flow.name}/{deployment.name}" == names[place]


def test_every_pool_has_a_worker():
    from flows.standing.deployments import FILE
    from flows.standing.programs import POOLS

    assert (DEPLOY / "prefect.yaml").resolve() == FILE
    content = yaml.safe_load(FILE.read_text())
    assert {d["work_pool"]["name"] for d in content["deployments"]} == POOLS.keys()
    commands = [" ".join(service.get("command", ())) for service in compose()["services"].values()]
    assert all(f"worker start --pool {pool} --type" in " ".join(commands) for pool in POOLS)


def test_the_compose_file_is_whole():
    content = compose()
    assert content.keys() == {"name", "x-image", "services", "volumes"}
    for name, service in content["services"].items():
        assert service.keys() <= SERVICE_KEYS, name
        assert service.get("depends_on", {}).keys() <= content["services"].keys()
        for volume in service.get("volumes", ()):
            source = volume.removesuffix(":ro").rpartition(":")[0]
            is_known = source in content["volumes"] or source.startswith("${")
            assert is_known or (DEPLOY / source).is_file(), source


def test_every_variable_of_the_compose_file_has_an_example():
    wanted = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    given = re.findall(r"^(\w+)=", (DEPLOY / "env.example").read_text(), re.MULTILINE)
    assert wanted == set(given)


def test_docker_accepts_the_compose_file():
    if shutil.which("docker") is None:
        pytest.skip("there is no docker here")
    if subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("docker has no compose here")
    out = subprocess.run(
        ["docker", "compose", "--file", "compose.yaml", "--env-file", "env.example", "config"],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr


def test_every_setting_is_one_that_prefect_or_mlflow_reads():
    from mlflow import environment_variables
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    known = _get_valid_setting_names(Settings) | set(vars(environment_variables))
    text = "".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())
    used = set(re.findall(r"\b(?:PREFECT|MLFLOW)_[A-Z_]+\b", text))
    assert used - {"PREFECT_AUTH"} <= known  # that one is the compose file's own


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_option_is_one_of_the_program(command: list[str]):
    of_the_program = [word for word in command if word != "--no-prompt"]
    program = list(takewhile(lambda word: not word.startswith("-"), of_the_program))
    out = subprocess.run(
        [BIN / program[0], *program[1:], "--help"], capture_output=True, text=True, check=True
    )
    options = {word.split("=")[0] for word in of_the_program if word.startswith("--")}
    assert options
    assert not [option for option in options if not re.search(rf"{option}\b", out.stdout)]


def test_the_image_holds_the_packages_and_an_extra_that_exist():
    text = (DEPLOY / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in names)
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} <= names
    (extra,) = re.findall(r'"\.\[(\w+)\]"', text)
    assert extra in project["project"]["optional-dependencies"]
    assert re.search(r"^USER (?!root)\w+$", text, re.MULTILINE)


def test_systemd_accepts_the_unit(tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd here")
    unit = (DEPLOY / "rlhf-worker.service").read_text()
    copy = tmp_path / "rlhf-worker.service"
    copy.write_text(unit.replace("/opt/rlhf/bin/prefect", str(BIN / "prefect")))
    out = subprocess.run(
        ["systemd-analyze", "verify", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "rlhf-worker.service" not in out.stderr, out.stderr
