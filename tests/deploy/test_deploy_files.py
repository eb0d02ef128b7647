"""What deploy/ says is true: every file parses, and every option, variable and path exists."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
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


NAMES = [
    "rlhf-iteration/weekly",
    "rerun-stage/any",
    "watch-annotations/every-15-minutes",
    "gate-override/ask",
    "run-stage/a100",
]


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_a_deployment_loads_with_the_flow_parameters_it_names(place: int):
    from prefect.cli.deploy._models import PrefectYamlModel
    from prefect.flows import load_flow_from_entrypoint

    from flows.standing.deployments import deployments

    content = deployments(["a100"])
    deployment = PrefectYamlModel.model_validate(content).deployments[place]
    assert deployment.entrypoint is not None
    flow = load_flow_from_entrypoint(deployment.entrypoint, use_placeholder_flow=False)
    asked_of_the_caller = {
        "rerun-stage": {"iteration": 1, "stage": "ppo"},
        "gate-override": {"iteration": 1, "verdict": "0" * 16},
        "run-stage": {"iteration": 1, "node": "ppo", "key": "0" * 64, "force": False},
    }
    flow.validate_parameters(asked_of_the_caller.get(flow.name, {}) | deployment.parameters)
    assert f"{flow.name}/{deployment.name}" == NAMES[place]
    if flow.name == "run-stage":
        assert content["deployments"][place]["work_pool"] == {"name": "a100"}


def test_every_pool_has_a_worker():
    from flows.standing.deployments import FILE, deployments
    from flows.standing.programs import POOLS

    assert (DEPLOY / "prefect.yaml").resolve() == FILE
    assert {d["work_pool"]["name"] for d in deployments([])["deployments"]} == POOLS.keys()
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


def test_docker_accepts_the_compose_file(tmp_path: Path):
    """By Docker's own plugin, or else by Debian's package of the older program, offline both."""
    files = ["compose.yaml", "env.example", "databases.sql", "recipe.yaml", "nginx.conf"]
    for name in files:
        shutil.copy(DEPLOY / name, tmp_path)
    command = ["docker", "compose"]
    if _fails("docker", "compose", "version"):
        if _fails("docker-compose", "version"):
            pytest.skip("there is neither docker compose nor docker-compose here")
        command = ["docker-compose", "--project-name", "llama2-rlhf"]
        text = (tmp_path / "compose.yaml").read_text()
        # the older program takes the name as an option alone
        (tmp_path / "compose.yaml").write_text(text.replace("name: llama2-rlhf\n", "", 1))
    out = subprocess.run(
        [*command, "--file", "compose.yaml", "--env-file", "env.example", "config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert yaml.safe_load(out.stdout)["services"].keys() == compose()["services"].keys()


def _fails(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return True
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_only_pages_with_a_login_are_published_and_on_loopback():
    """MLflow's pages are reached through the proxy alone."""
    published = {n: s["ports"] for n, s in compose()["services"].items() if "ports" in s}
    assert published.keys() == {"prefect", "proxy", "annotation"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert "PREFECT_SERVER_API_AUTH_STRING" in compose()["services"]["prefect"]["environment"]
    assert "auth_basic_user_file /etc/nginx/htpasswd;" in (DEPLOY / "nginx.conf").read_text()


def test_every_setting_is_one_that_prefect_or_mlflow_reads():
    from mlflow import environment_variables
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    known = _get_valid_setting_names(Settings) | set(vars(environment_variables))
    command_line = find_spec("mlflow.cli")  # importing it takes long, and warns
    assert command_line is not None
    assert command_line.origin is not None
    known |= set(re.findall(r'envvar="(\w+)"', Path(command_line.origin).read_text()))
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
