"""Job templates for clusters, rendered by Prefect's own code, and the files that say what is deployed."""

import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import deployments, slots

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
    assert pod["terminationGracePeriodSeconds"] > 30  # longer than what flows give a trainer


def test_deployments_name_flows_that_are_there() -> None:
    declared = YAML(typ="safe").load(ROOT / "prefect.yaml")
    entrypoints = {deployment["entrypoint"] for deployment in declared["deployments"]}
    flows = {"reproduce", "ablations", "experiment", "evaluate"}
    assert entrypoints == {f"flows/deployments.py:{flow}" for flow in flows}
    for flow in flows:
        assert getattr(deployments, flow).name == flow
    (step,) = declared[
        "pull"
    ]  # of the worker that takes the run: machines with their own clones share a server
    assert {"directory": "{{ $STEERMOE_ROOT }}"} in step.values()


def test_stages_that_flows_name_are_in_the_pipeline() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    toy = YAML(typ="safe").load(ROOT / "tests" / "flows" / "toy" / "dvc.yaml")["stages"]
    d = deployments
    assert {*d.VARIANT, *d.BASELINES, *d.COMPARISON, *d.DATA} <= stages.keys() & toy.keys()
    assert "reports/${item.profile}/comparison" in json.dumps(stages["ablate"]["outs"])  # which flows publish


@pytest.mark.parametrize(
    ("chosen", "visible", "number", "held", "expected"),
    [
        ("", "4,7", 2, [1], {"CUDA_VISIBLE_DEVICES": "7"}),
        ("", "4,7", 2, [0, 1], {"CUDA_VISIBLE_DEVICES": "4,7"}),
        ("4", "4,7", 4, [0, 2], {"CUDA_VISIBLE_DEVICES": "4"}),  # more slots than GPUs share them
        ("1", "", 1, [0], {}),  # no GPU: the one slot has all cores
        ("4", "", 4, [0, 1], {"OMP_NUM_THREADS": "4"}),
    ],
)
def test_share_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, chosen: str, visible: str, number: int, held: list[int], expected: dict
) -> None:
    monkeypatch.setenv(slots.SETTING, chosen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert slots.count() == number
    assert slots.environment(held) == expected


def test_slots_are_taken_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(slots.SETTING, "2")
    never, cancelled = threading.Event(), threading.Event()
    with slots.acquire(tmp_path, 1, never) as held, slots.acquire(tmp_path, 1, never) as other:
        assert held + other == [0, 1]
        threading.Timer(0.1, cancelled.set).start()
        with slots.acquire(tmp_path, 1, cancelled) as none:
            assert none == []
    with slots.acquire(tmp_path, 2, never) as held:
        assert held == [0, 1]
    with pytest.raises(ValueError, match="found 3; legal: 1 to 2"), slots.acquire(tmp_path, 3, never):
        pass
    monkeypatch.setenv(slots.SETTING, "two")
    with pytest.raises(ValueError, match="found 'two'; legal: "):
        slots.count()
