"""Finds mistakes in a cluster file that Ray and Kubernetes let pass, before they cost money. Needs no cluster or cloud.

    python cluster/check.py ~/.midibert/aws.yaml ~/.midibert/kuberay.yaml

Takes files of Ray's cluster launcher (AWS, Google Cloud) and KubeRay's manifests. Ray's own validator comes first; what
it does not see is checked here: misspelt keys, numbers that do not go together, a head that would compute, GPUs without
a fall-back, nodes that would start without a token. Exit code 1 where something is wrong.
"""

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

NODE_KEYS = {
    "aws": """BlockDeviceMappings CapacityReservationSpecification CpuOptions CreditSpecification DisableApiTermination
        EbsOptimized IamInstanceProfile ImageId InstanceInitiatedShutdownBehavior InstanceMarketOptions InstanceType
        KeyName LaunchTemplate MetadataOptions Monitoring NetworkInterfaces Placement SecurityGroupIds SubnetIds
        TagSpecifications UserData""",
    "gcp": """advancedMachineFeatures canIpForward confidentialInstanceConfig deletionProtection description disks
        guestAccelerators labels machineType metadata minCpuPlatform networkInterfaces networkPerformanceConfig
        reservationAffinity resourcePolicies scheduling serviceAccounts shieldedInstanceConfig sourceInstanceTemplate
        tags""",
}
"""Keys of a node's `node_config`: EC2's RunInstances and Compute Engine's instances.insert, as far as Ray has a use."""

STALE = {
    "min_workers": "write it for each group; here Ray drops it without a word",
    "initial_workers": "there is no such thing any more; min_workers of a group",
    "head_node": "write it as one of available_node_types, and its name as head_node_type",
    "worker_nodes": "write them as available_node_types",
    "autoscaling_mode": "there is no such thing any more; upscaling_speed",
    "target_utilization_fraction": "there is no such thing any more; upscaling_speed",
}
"""Keys of earlier versions of Ray, which many examples still have."""

PLACEHOLDER = re.compile(r"\b(REGISTRY|PROJECT|BUCKET|TRACKING)\b")
"""Words that our files leave to their user."""

REFUSALS = (ValidationError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError)
"""Errors that Ray's validators raise."""


class Group(NamedTuple):
    """A group of GPU nodes."""

    name: str
    spot: bool
    """True where the cloud may take its nodes back."""

    priority: int
    kind: Any
    """A value that is the same in two groups between which only priority decides."""


def check(path: Path) -> list[str]:
    """All that is wrong with a file; empty where it will do."""
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return [f"cannot be read: {' '.join(str(error).split())}"]
    words = sorted({word for document in documents for word in PLACEHOLDER.findall(yaml.safe_dump(document))})
    return [f"{word} has not been filled in" for word in words] + problems(documents)


def problems(documents: list[Any]) -> list[str]:
    """Problems of the documents of a file, whose words in capitals may still stand for something."""
    checks: dict[str, Callable[[dict[str, Any]], Iterable[str]]]
    checks = {"launcher": launcher, "RayCluster": ray_cluster, "RayJob": ray_job}
    found: list[str] = [] if documents else ["there is nothing in it"]
    for document in documents:
        keys = document if isinstance(document, dict) else {}
        kind = str(keys.get("kind", "launcher" if "provider" in keys else "neither"))
        found += checks[kind](document) if kind in checks else [f"{kind}: use a launcher file, RayCluster or RayJob"]
    return found


def launcher(config: dict[str, Any]) -> Iterator[str]:
    """Problems of a file for `ray up`."""
    yield from (f"{key}: {STALE[key]}" for key in STALE if key in config)
    try:
        full = prepare_config(deepcopy(config))
        validate_config(full)
    except REFUSALS as error:
        yield f"Ray refuses it: {getattr(error, 'json_path', '')} {getattr(error, 'message', error)}"
        return
    provider = full["provider"]["type"]
    if provider not in NODE_KEYS:
        yield f"provider.type {provider}: only {' and '.join(NODE_KEYS)} can be checked"
        return
    for key in ("setup_commands", "head_setup_commands"):
        if key not in config:
            yield f"{key} is missing, and Ray would fill in what installs other versions; write {key}: []"
    if provider == "aws" and full["provider"].get("cache_stopped_nodes", True):
        yield "provider.cache_stopped_nodes: write false; nodes that are only stopped go on costing their disks"
    types = dict(full["available_node_types"])
    yield from launcher_head(types.pop(full["head_node_type"]))
    yield from launcher_workers(provider, types, full["max_workers"])
    yield from launcher_commands(full)
    for name, node in full["available_node_types"].items():
        yield from unknown(f"{name}.node_config", node["node_config"], NODE_KEYS[provider].split())


def launcher_head(head: Mapping[str, Any]) -> Iterator[str]:
    """The head drives: it computes nothing, and is no spot node."""
    if head["resources"].get("CPU") != 0:
        yield "the head's resources: write CPU: 0, or trials and tasks run beside the drivers"
    if has_gpu(head):
        yield f"the head has a GPU ({machine(head)}), which would stand idle"
    if is_spot(head["node_config"]):
        yield "the head is a spot node: with it goes the whole cluster"


def launcher_workers(provider: str, types: Mapping[str, Any], limit: int) -> Iterator[str]:
    """All from zero, numbers that go together, a fall-back for spot nodes."""
    for name, node in types.items():
        if node["min_workers"]:
            yield f"{name}.min_workers is {node['min_workers']}, and costs while nothing runs; write 0"
        if provider == "gcp" and not node["resources"].get("CPU"):
            yield f"{name}.resources: write CPU (and GPU) of {machine(node)}; Ray does not ask Google"
    total = sum(node["max_workers"] for node in types.values())
    if total > limit:
        yield f"max_workers is {limit}, but the groups together have {total}: what comes last may never start"
    gpus = {name: node for name, node in types.items() if has_gpu(node)}
    yield from fall_back(
        [
            Group(name, is_spot(node["node_config"]), node.get("priority", 0), (machine(node), node["resources"]))
            for name, node in gpus.items()
        ]
    )


def fall_back(groups: list[Group]) -> Iterator[str]:
    """Spot groups that nothing stands in for, or that are not asked first."""
    for group in groups:
        others = [other for other in groups if not other.spot and other.kind == group.kind]
        if group.spot and not others:
            yield f"{group.name} has no fall-back: add a group of the same machines and resources that is not spot"
        for other in others:
            if group.spot and group.priority <= other.priority:
                yield f"{group.name}.priority must be above that of {other.name}, or spot is not asked first"


def launcher_commands(config: Mapping[str, Any]) -> Iterator[str]:
    """Every node starts with the token, and the dashboard listens on loopback."""
    mounted = {path.replace("~", "$HOME", 1) for path in config["file_mounts"]}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = [command for command in config[key] if "ray start" in command]
        if not commands:
            yield f"{key} has no `ray start`"
        for command in commands:
            if "RAY_AUTH_MODE=token" not in command:
                yield f"{key}: `ray start` without RAY_AUTH_MODE=token lets everybody in who reaches its ports"
            token = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+?)[;\s]", command)
            if not token or token[1].replace("~", "$HOME", 1) not in mounted:
                yield f"{key}: RAY_AUTH_TOKEN_PATH must name a file that file_mounts brings to the node"
            host = re.search(r"--dashboard-host[= ](\S+)", command)
            if host and host[1] not in ("127.0.0.1", "localhost"):
                yield f"{key}: --dashboard-host={host[1]} shows the dashboard and the job API to others; use 127.0.0.1"


def machine(node: Mapping[str, Any]) -> str:
    """The instance type of a launcher's node type."""
    return str(node["node_config"].get("InstanceType") or node["node_config"].get("machineType"))


def has_gpu(node: Mapping[str, Any]) -> bool:
    """True where a launcher's node type has GPUs; AWS's families with them begin with g or p."""
    return bool(node["resources"].get("GPU")) or bool(re.match(r"[gp]\d", machine(node)))


def is_spot(node_config: Mapping[str, Any]) -> bool:
    """True where the cloud may take the node back."""
    scheduling = node_config.get("scheduling", {})
    if isinstance(scheduling, list):  # Ray's examples write Google's object so
        scheduling = {key: value for part in scheduling for key, value in part.items()}
    return (
        node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or scheduling.get("provisioningModel") == "SPOT"
        or bool(scheduling.get("preemptible"))
    )


def unknown(where: str, keys: Mapping[str, Any], allowed: list[str]) -> Iterator[str]:
    """Keys that nobody reads, with what may have been meant."""
    for key in keys:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            yield f"{where}.{key} is not known" + (f"; did you mean {near[0]}?" if near else "")


def ray_cluster(manifest: dict[str, Any]) -> list[str]:
    """Problems of a RayCluster."""
    found = list(misspelt("RayCluster", manifest, "RayCluster"))
    return found or [*cluster_spec(manifest.get("spec", {}), manifest.get("metadata", {}))]


def ray_job(manifest: dict[str, Any]) -> list[str]:
    """Problems of a RayJob; of its cluster as well, where it brings one."""
    found = list(misspelt("RayJob", manifest, "RayJob"))
    spec = manifest.get("spec") or {}
    if ("clusterSelector" in spec) == ("rayClusterSpec" in spec):
        found.append("spec: write either clusterSelector (a cluster that is there) or rayClusterSpec (one of its own)")
    if not spec.get("entrypoint"):
        found.append("spec.entrypoint is missing")
    if "rayClusterSpec" in spec and not found:
        found += cluster_spec(spec["rayClusterSpec"], {"name": "job"})
    return found


def misspelt(where: str, value: Any, kind: str) -> Iterator[str]:
    """Keys that Kubernetes would drop, at any depth that kuberay-keys.yaml describes."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from misspelt(f"{where}[{index}]", item, kind)
        return
    if not isinstance(value, dict):
        yield f"{where} must be a mapping"
        return
    known = dict(word.partition("=")[::2] for word in kuberay_keys()[kind].split())
    yield from unknown(where, value, list(known))
    for key, inner in value.items():
        if known.get(key):
            yield from misspelt(f"{where}.{key}", inner, known[key])


def kuberay_keys() -> dict[str, str]:
    """Type -> its keys."""
    return dict(yaml.safe_load(Path(__file__).with_name("kuberay-keys.yaml").read_text()))


def cluster_spec(spec: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the spec of a RayCluster whose keys are right."""
    named = {"metadata": {"namespace": "default"} | dict(metadata), "spec": deepcopy(spec)}
    try:
        types = _derive_autoscaling_config_from_ray_cr(named)["available_node_types"]
    except REFUSALS as error:
        yield f"Ray refuses it: {getattr(error, 'message', error)}"
        return
    if str(spec.get("rayVersion")) != ray.__version__:
        yield f"spec.rayVersion is {spec.get('rayVersion')}; here Ray is {ray.__version__}"
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "spec.authOptions: write mode: token, or everybody in Kubernetes may submit jobs"
    if not spec.get("enableInTreeAutoscaling") or spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield "spec: write enableInTreeAutoscaling: true and autoscalerOptions.version: v2"
    head = types.pop("headgroup")
    if head["resources"]["CPU"] != 0 or head["resources"].get("GPU"):
        yield 'spec.headGroupSpec: write rayStartParams num-cpus: "0", and no GPU: the head only drives'
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for name, group in groups.items():
        if group["minReplicas"] or group.get("replicas"):
            yield f"{name}: minReplicas and replicas cost while nothing runs; write 0"
        for container in group["template"]["spec"]["containers"]:
            resources = container.get("resources", {})
            if resources.get("limits") != resources.get("requests"):
                yield f"{name}: requests must equal limits, as Ray counts with limits and Kubernetes with requests"
    yield from fall_back(
        [
            Group(name, pods_on_spot(groups[name]), node.get("priority", 0), node["resources"])
            for name, node in types.items()
            if node["resources"].get("GPU")
        ]
    )


def pods_on_spot(group: Mapping[str, Any]) -> bool:
    """True where a worker group asks for spot nodes, in Google's, Karpenter's or EKS's words."""
    wanted = group["template"]["spec"].get("nodeSelector", {})
    return any(key.endswith("gke-spot") or str(value).lower() == "spot" for key, value in wanted.items())


def main(paths: list[str]) -> int:
    """Print the problems of all files; 1 where there are any."""
    if not paths:
        print(__doc__)
        return 1
    found = {path: check(Path(path)) for path in paths}
    for path, lines in found.items():
        print("\n".join(f"{path}: {line}" for line in lines or ["no problem found"]))
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
