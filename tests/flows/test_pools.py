"""Job templates for clusters, rendered by Prefect's own code, and the files that say what is deployed."""

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
RENDER = """
import asyncio, json, sys
from prefect.utilities.templating import apply_values
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration
template, values = json.load(sys.stdin)
if "job_manifest" in template["job_configuration"]:
    defaults = BaseJobConfiguration._get_base_config_defaults(template["variables"]["properties"])
    rendered = apply_values(template["job_configuration"], defaults | values)
else:
    coroutine = ProcessJobConfiguration.from_template_and_values(template, values, client=None)
    rendered = asyncio.run(coroutine).model_dump(mode="json")
print(json.dumps(rendered))
"""


def rendered(pool: str, **values: Any) -> dict[str, Any]:
    template = json.loads((ROOT / "flows" / "pools" / f"{pool}.json").read_text())
    required = template["variables"]["required"]
    assert set(required) <= values.keys()
    done = subprocess.run(
        [sys.executable, "-c", RENDER],
        input=json.dumps([template, values]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = done.stdout.splitlines()[-1]
    assert "{{" not in text, "a placeholder without a variable"
    return json.loads(text)


@pytest.mark.parametrize("pool", ["slurm", "kubernetes"])
def test_every_variable_is_used(pool: str) -> None:
    template = json.loads((ROOT / "flows" / "pools" / f"{pool}.json").read_text())
    text = json.dumps(template["job_configuration"])
    assert all(f"{{{{ {name} }}}}" in text for name in template["variables"]["properties"])


def test_slurm_job(tmp_path: Path) -> None:
    job = rendered("slurm", working_dir=str(tmp_path), gpus=4, time="3-00:00:00")
    words = shlex.split(job["command"])
    assert words[0] == "srun" and words[-3:] == ["python", "-m", "prefect.engine"]
    assert {"--gres=gpu:4", "--time=3-00:00:00", "--partition=gpu", "--export=ALL"} <= set(words)
    assert job["working_dir"] == str(tmp_path)


def test_kubernetes_job() -> None:
    job = rendered("kubernetes", image="registry.local/steermoe:1", claim="project", gpus=2)
    manifest = job["job_manifest"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    assert manifest["spec"]["backoffLimit"] == 0  # Prefect repeats, not Kubernetes
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.local/steermoe:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "project"}
    assert container["env"] == {"STEERMOE_ROOT": "/project"}  # the worker makes a list of it
    assert pod["terminationGracePeriodSeconds"] > 60  # longer than a supervisor's own


def test_deployments_name_flows_that_are_there() -> None:
    declared = YAML(typ="safe").load(ROOT / "prefect.yaml")
    source = (ROOT / "flows" / "experiments.py").read_text()
    flows = set()
    for deployment in declared["deployments"]:
        path, _, flow = deployment["entrypoint"].partition(":")
        assert (
            path == "flows/experiments.py" and f"def {flow}(" in source and f'@flow(name="{flow}"' in source
        )
        flows.add(flow)
    assert flows == {"reproduce", "ablations", "experiment", "evaluate"}
    names = [(d["entrypoint"], d["name"]) for d in declared["deployments"]]
    assert len(names) == len(set(names))
    for file in ("prefect.yaml", "prefect.toml"):
        assert (
            str(Path.home()) not in (ROOT / file).read_text() and str(ROOT) not in (ROOT / file).read_text()
        )


def test_prefect_stays_on_this_machine() -> None:
    settings = tomllib.loads((ROOT / "prefect.toml").read_text())
    assert settings["api"]["url"].startswith("http://127.0.0.1:")
    assert settings["server"]["analytics_enabled"] is False


def test_stages_that_flows_name_are_in_the_pipeline() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    toy = YAML(typ="safe").load(ROOT / "tests" / "flows" / "toy" / "dvc.yaml")["stages"]
    code = "from flows import experiments as e; print(*e.VARIANT, *e.BASELINES, *e.COMPARISON, *e.DATA)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    named = set(done.stdout.split())
    assert named <= stages.keys() and named <= toy.keys()
    outs = json.dumps(stages["ablate"]["outs"])
    assert "reports/${item.profile}/comparison" in outs  # where flows find the table
