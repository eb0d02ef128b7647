"""The Job template and the chart's values, against what Prefect's Kubernetes worker expects.

Prefect ships the worker's own default template (for `--base-job-template` and the UI); the rules
of the worker itself are repeated here, since it is a package of its own.
"""

import json
import re
from pathlib import Path
from typing import Any

import prefect.server.api.collections_data as collections
import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values, find_placeholders

from stages.runtime.supervisor import GRACE_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"
TEMPLATE = json.loads((DEPLOY / "kubernetes" / "a100-job-template.json").read_text())
METADATA = Path(next(iter(collections.__path__)), "views", "aggregate-worker-metadata.json")
DEFAULT = json.loads(METADATA.read_text())["prefect-kubernetes"]["kubernetes"][
    "default_base_job_configuration"
]
REQUIRED = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"labels": {}},
    "spec": {
        "template": {
            "spec": {
                "parallelism": 1,
                "completions": 1,
                "restartPolicy": "Never",
                "containers": [{"name": "prefect-job"}],
            }
        }
    },
}
"""What the worker refuses a manifest without."""


def filled(**chosen: Any) -> dict[str, Any]:
    """The configuration of a run with the variables' defaults, as the worker fills it."""
    properties = TEMPLATE["variables"]["properties"]
    values = {name: p["default"] for name, p in properties.items() if "default" in p} | chosen
    return apply_values(TEMPLATE["job_configuration"], values)


def pod(**chosen: Any) -> dict[str, Any]:
    return filled(**chosen)["job_manifest"]["spec"]["template"]["spec"]


def test_prefect_takes_the_template_for_a_kubernetes_pool() -> None:
    pool = WorkPoolCreate(name="rlhf", type="kubernetes", base_job_template=TEMPLATE)
    assert pool.base_job_template == TEMPLATE
    Draft202012Validator.check_schema(TEMPLATE["variables"])


def test_every_variable_is_used_and_every_placeholder_is_a_variable() -> None:
    used = {placeholder.name for placeholder in find_placeholders(TEMPLATE["job_configuration"])}
    assert used == set(TEMPLATE["variables"]["properties"])


def test_the_configuration_is_the_workers() -> None:
    assert TEMPLATE["job_configuration"].keys() == DEFAULT["job_configuration"].keys()
    shared = TEMPLATE["variables"]["properties"].keys() & DEFAULT["variables"]["properties"].keys()
    for name in shared - {"cluster_config"}:
        own, theirs = (t["variables"]["properties"][name] for t in (TEMPLATE, DEFAULT))
        assert own["type"] == theirs["type"], name
    assert {"name", "env", "command", "labels", "namespace", "image"} <= shared


def assert_holds(value: Any, required: Any, where: str = "") -> None:
    if isinstance(required, dict):
        for key, item in required.items():
            assert key in value, f"{where}/{key}"
            assert_holds(value[key], item, f"{where}/{key}")
    elif isinstance(required, list):
        for i, item in enumerate(required):
            assert_holds(value[i], item, f"{where}/{i}")
    else:
        assert value == required, where


def test_the_manifest_has_what_the_worker_requires() -> None:
    assert_holds(filled(name="a-run")["job_manifest"], REQUIRED)


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_own_schemas_take_job_and_volumes(version: str) -> None:
    """Strictly: a key that Kubernetes does not know, or misspells, is an error."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = filled(name="a-run")["job_manifest"]
    for misplaced in ("parallelism", "completions"):
        # Prefect's worker insists on them here; Kubernetes drops them, and has the same defaults
        assert job["spec"]["template"]["spec"].pop(misplaced) == 1
    claims = yaml.safe_load_all((DEPLOY / "kubernetes" / "volumes.yaml").read_text())
    for manifest in (job, *claims):
        kubernetes_validate.validate(manifest, version, strict=True)
    job["spec"]["backofLimit"] = 0
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(job, version, strict=True)


def test_a_pod_gets_its_gpus_shared_memory_time_and_no_second_start() -> None:
    job = filled(gpus=4)["job_manifest"]["spec"]
    assert job["backoffLimit"] == 0  # a second start would be a second run beside Prefect's own
    spec = job["template"]["spec"]
    (container,) = spec["containers"]
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    assert limits["nvidia.com/gpu"] == 4
    assert limits["memory"] == requests["memory"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes.keys() == set(mounts.values())
    shared = volumes[mounts["/dev/shm"]]["emptyDir"]
    assert shared["medium"] == "Memory"
    assert re.fullmatch(r"\d+Gi", shared["sizeLimit"])
    assert spec["terminationGracePeriodSeconds"] >= GRACE_SECONDS + 15
    minimum = TEMPLATE["variables"]["properties"]["grace_seconds"]["minimum"]
    assert minimum >= GRACE_SECONDS + 15  # Prefect ends its own process, too
    assert "A100" in spec["nodeSelector"]["nvidia.com/gpu.product"]


def test_the_pod_is_the_images_user_and_its_folders() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"--uid {pod()['securityContext']['runAsUser']}" in dockerfile
    environment = {e["name"]: e for e in pod()["containers"][0]["env"]}
    home = environment["RLHF_HOME"]["value"]
    assert f"RLHF_HOME={home}" in dockerfile
    mounts = [m["mountPath"] for m in pod()["containers"][0]["volumeMounts"]]
    assert any(home.startswith(f"{mount}/") for mount in mounts)


def test_values_template_and_volumes_speak_of_the_same_things() -> None:
    values = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
    config = values["worker"]["config"]
    deployments = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())["deployments"]
    assert config["workPool"] in {d["work_pool"]["name"] for d in deployments}
    assert (config["type"], config["jobNamespace"]) == ("kubernetes", filled()["namespace"])
    secret = values["worker"]["selfHostedServerApiConfig"]["basicAuth"]["existingSecret"]
    environment = {e["name"]: e for e in pod()["containers"][0]["env"]}
    reference = environment["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": secret, "key": "auth-string"}  # the chart reads that key
    claims = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "volumes.yaml").read_text()))
    used = {
        v["persistentVolumeClaim"]["claimName"]
        for v in pod()["volumes"]
        if "persistentVolumeClaim" in v
    }
    assert {claim["metadata"]["name"] for claim in claims} == used


def test_deepspeed_reads_the_hostfile() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        from deepspeed.launcher.runner import fetch_hostfile

    hosts = fetch_hostfile(str(DEPLOY / "hostfile.example"))
    assert dict(hosts) == {"node-01.example": 8, "node-02.example": 8}
