"""cluster/check.py sees what Ray's validator and Kubernetes let pass: every rule, on a file that breaks it."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import check

CLUSTER = Path(__file__).parents[2] / "cluster"
TYPES = "available_node_types"


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def at(tree: Any, path: str) -> tuple[Any, Any]:
    """The mapping or list at the end of a path, and the last key."""
    *way, last = [int(word) if word.isdigit() else word for word in path.split("/")]
    for word in way:
        tree = tree[word]
    return tree, last


def put(path: str, value: Any) -> Callable[[Any], None]:
    """A change: something else at a path."""

    def change(tree: Any) -> None:
        place, last = at(tree, path)
        place[last] = value

    return change


def drop(path: str) -> Callable[[Any], None]:
    """A change: nothing at a path."""

    def change(tree: Any) -> None:
        place, last = at(tree, path)
        del place[last]

    return change


def edit(path: str, old: str, new: str) -> Callable[[Any], None]:
    """A change: another word in a text."""

    def change(tree: Any) -> None:
        place, last = at(tree, path)
        assert old in place[last]
        place[last] = place[last].replace(old, new)

    return change


LAUNCHER = [
    ("aws.yaml", put("min_workers", 0), "min_workers: write it for each group"),
    ("aws.yaml", put("initial_workers", 2), "initial_workers: there is no such thing"),
    ("aws.yaml", put("head_node", {"InstanceType": "m5.large"}), "head_node: write it as one of"),
    ("aws.yaml", put("worker_nodes", {}), "worker_nodes: write them as"),
    ("aws.yaml", put("target_utilization_fraction", 0.8), "target_utilization_fraction"),
    ("aws.yaml", put("autoscaling_mode", "default"), "autoscaling_mode"),
    ("aws.yaml", put("idle_timeout", 5), "'idle_timeout' was unexpected"),
    ("aws.yaml", put("head_node_type", "haed"), "Ray refuses it"),
    ("aws.yaml", put(f"{TYPES}/cpu/resources", {"CPU": -1}), "Ray refuses it"),
    ("aws.yaml", put("provider", {"type": "nowhere"}), "Ray refuses it"),
    ("aws.yaml", drop("setup_commands"), "setup_commands is missing"),
    ("aws.yaml", drop("head_setup_commands"), "head_setup_commands is missing"),
    ("aws.yaml", drop("provider/cache_stopped_nodes"), "cache_stopped_nodes: write false"),
    ("aws.yaml", put("max_workers", 8), "max_workers is 8, but the groups together have 10"),
    ("aws.yaml", put(f"{TYPES}/cpu/min_workers", 1), "cpu.min_workers is 1"),
    ("aws.yaml", put(f"{TYPES}/head/resources", {}), "the head's resources: write CPU: 0"),
    ("aws.yaml", put(f"{TYPES}/head/node_config/InstanceType", "g5.xlarge"), "the head has a GPU (g5.xlarge)"),
    (
        "aws.yaml",
        put(f"{TYPES}/head/node_config/InstanceMarketOptions", {"MarketType": "spot"}),
        "the head is a spot node",
    ),
    ("aws.yaml", drop(f"{TYPES}/gpu_on_demand"), "gpu_spot has no fall-back"),
    ("aws.yaml", put(f"{TYPES}/gpu_on_demand/node_config/InstanceType", "g5.xlarge"), "gpu_spot has no fall-back"),
    ("aws.yaml", drop(f"{TYPES}/gpu_spot/priority"), "gpu_spot.priority must be above that of gpu_on_demand"),
    ("aws.yaml", put(f"{TYPES}/cpu/node_config/InstanceTyp", "x"), "cpu.node_config.InstanceTyp is not known; did you"),
    ("aws.yaml", drop("worker_start_ray_commands"), "worker_start_ray_commands: `ray start` without RAY_AUTH_MODE"),
    ("aws.yaml", put("head_start_ray_commands", []), "head_start_ray_commands has no `ray start`"),
    ("aws.yaml", edit("head_start_ray_commands/1", "RAY_AUTH_MODE=token", ""), "without RAY_AUTH_MODE=token"),
    ("aws.yaml", edit("head_start_ray_commands/1", ".ray/auth_token", "t"), "RAY_AUTH_TOKEN_PATH must name a file"),
    ("aws.yaml", put("file_mounts", {}), "RAY_AUTH_TOKEN_PATH must name a file"),
    ("aws.yaml", edit("head_start_ray_commands/1", "127.0.0.1", "0.0.0.0"), "--dashboard-host=0.0.0.0 shows"),
    ("gcp.yaml", put(f"{TYPES}/cpu/resources", {}), "cpu.resources: write CPU (and GPU) of n2-standard-32"),
    ("gcp.yaml", put(f"{TYPES}/gpu_spot/node_config/schedulling", {}), "did you mean scheduling?"),
    (
        "gcp.yaml",
        put(f"{TYPES}/gpu_on_demand/node_config/scheduling", [{"preemptible": True}]),
        "gpu_on_demand has no fall-back",
    ),
    ("gcp.yaml", put(f"{TYPES}/gpu_on_demand/resources", {"CPU": 48, "GPU": 4}), "gpu_spot has no fall-back"),
]

HEAD, GROUPS = "spec/headGroupSpec", "spec/workerGroupSpecs"
KUBERAY = [
    (
        "kuberay-cluster.yaml",
        put("spec/authOption", {}),
        "RayCluster.spec.authOption is not known; did you mean authOptions?",
    ),
    ("kuberay-cluster.yaml", put(f"{GROUPS}/0/minReplica", 0), "workerGroupSpecs[0].minReplica is not known"),
    ("kuberay-cluster.yaml", put(f"{GROUPS}/1/template/spec/toleration", []), "did you mean tolerations?"),
    ("kuberay-cluster.yaml", put(f"{GROUPS}/1/template/spec/containers/0/envfrom", []), "did you mean envFrom?"),
    ("kuberay-cluster.yaml", put(f"{GROUPS}/0/template", None), "template must be a mapping"),
    ("kuberay-cluster.yaml", drop("spec/authOptions"), "spec.authOptions: write mode: token"),
    ("kuberay-cluster.yaml", put("spec/rayVersion", "2.9.0"), "spec.rayVersion is 2.9.0; here Ray is"),
    ("kuberay-cluster.yaml", put("spec/autoscalerOptions/version", "v1"), "autoscalerOptions.version: v2"),
    ("kuberay-cluster.yaml", put("spec/enableInTreeAutoscaling", False), "enableInTreeAutoscaling: true"),
    ("kuberay-cluster.yaml", put(f"{HEAD}/rayStartParams", {}), "the head only drives"),
    ("kuberay-cluster.yaml", put(f"{GROUPS}/0/minReplicas", 1), "cpu: minReplicas and replicas cost"),
    ("kuberay-cluster.yaml", put(f"{GROUPS}/0/replicas", 1), "cpu: minReplicas and replicas cost"),
    ("kuberay-cluster.yaml", drop(f"{GROUPS}/0/maxReplicas"), "Ray refuses it: 'maxReplicas'"),
    (
        "kuberay-cluster.yaml",
        put(f"{GROUPS}/0/template/spec/containers/0/resources/requests", {"cpu": "1"}),
        "cpu: requests must equal limits",
    ),
    ("kuberay-cluster.yaml", drop(f"{GROUPS}/1/priority"), "gpu-spot.priority must be above that of gpu-on-demand"),
    ("kuberay-cluster.yaml", drop(f"{GROUPS}/2"), "gpu-spot has no fall-back"),
    ("kuberay-cluster.yaml", put(f"{GROUPS}/2/resources", {}), "gpu-spot has no fall-back"),
    ("kuberay-job.yaml", drop("spec/clusterSelector"), "write either clusterSelector"),
    ("kuberay-job.yaml", put("spec/rayClusterSpec", {}), "write either clusterSelector"),
    ("kuberay-job.yaml", drop("spec/entrypoint"), "spec.entrypoint is missing"),
    ("kuberay-job.yaml", put("spec/entryPoint", "x"), "did you mean entrypoint?"),
]


@pytest.mark.parametrize(("name", "change", "message"), LAUNCHER + KUBERAY)
def test_every_mistake_is_named(name: str, change: Callable[[Any], None], message: str) -> None:
    config = deepcopy(load(name))
    change(config)
    found = check.problems([config])
    assert any(message in line for line in found), found


def test_a_job_with_a_cluster_of_its_own_has_both_checked() -> None:
    job, cluster = load("kuberay-job.yaml"), load("kuberay-cluster.yaml")
    del job["spec"]["clusterSelector"]
    job["spec"]["rayClusterSpec"] = cluster["spec"]
    assert check.problems([job]) == []
    cluster["spec"]["workerGroupSpecs"][0]["minReplicas"] = 3
    assert check.problems([job]) == ["cpu: minReplicas and replicas cost while nothing runs; write 0"]


def test_files_of_another_kind_are_not_passed() -> None:
    assert check.problems([{"kind": "Deployment"}]) == ["Deployment: use a launcher file, RayCluster or RayJob"]
    assert len(check.problems([{"services": {}}])) == 1
    other = {"cluster_name": "x", "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": []}}
    assert any("provider" in line or "Ray refuses" in line for line in check.problems([other]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("", "there is nothing in it"),
        ("words", "use a launcher file"),
        ("- kind: RayJob", "use a launcher file"),
        ("kind: RayCluster", "Ray refuses it"),
        ("kind: RayJob\nspec:", "spec must be a mapping"),
    ],
)
def test_what_is_no_such_file_at_all(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert any(message in line for line in check.check(tmp_path / "x.yaml"))
    assert "cannot be read" in check.check(tmp_path / "none.yaml")[0]


def test_usage_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 1
    assert "python cluster/check.py" in capsys.readouterr().out
