"""A job's demand beside the nodes of Ray: said at once, and every minute while nodes may still come."""

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midibert_ray.settings.compute import ComputeConfig
from midibert_ray.settings.config import ConfigError

logger = logging.getLogger(__name__)

LOCAL_CPUS = max(4, os.cpu_count() or 1)
"""Logical CPUs of a Ray on this machine: two pre-training workers must leave room for the processes that drive them."""

REMIND_S = 60.0
"""Seconds between two lines that say what is waited for."""

MONITOR_S = 8.0
"""How long the monitor of a cluster that has just started may take to say of what kind its nodes are."""

_ACCELERATOR = "accelerator_type:"

Resources = Mapping[str, float]
"""Amounts by Ray's names: `CPU`, `GPU`, `accelerator_type:H100`."""


@dataclass(frozen=True)
class Request:
    """Equal bundles of resources that are held at the same time."""

    what: str
    count: int
    bundle: Resources
    placement: str = "PACK"
    """As `compute.placement`."""
    settings: str = "compute.*"
    """Names of what a user may lower."""

    def fits(self, nodes: Sequence[Resources]) -> bool:
        """Tell whether the nodes could hold all bundles if nothing else ran on them."""
        needs = {name: amount for name, amount in self.bundle.items() if amount > 0}
        room = [int(min(node.get(name, 0) / amount for name, amount in needs.items())) for node in nodes]
        if self.placement == "STRICT_PACK":
            return max(room, default=0) >= self.count
        return sum(map(bool, room) if self.placement == "STRICT_SPREAD" else room) >= self.count

    def __str__(self) -> str:
        where = {"STRICT_PACK": ", all on one node", "STRICT_SPREAD": ", each on a node of its own"}
        return f"{self.what} asks for {self.count} x ({_words(self.bundle)}){where.get(self.placement, '')}"


def requests(compute: ComputeConfig, *, pretraining: bool, trials: bool = False) -> list[Request]:
    """The resources that the open parts of a job ask for."""
    worker = {"CPU": float(compute.cpus_per_worker), "GPU": float(compute.gpu)}
    if compute.accelerator:
        worker[_ACCELERATOR + compute.accelerator] = 0.001  # as Ray Train asks: it only tells the node
    trial = {"CPU": compute.cpus_per_trial, "GPU": compute.gpus_per_trial}
    needed = [Request("pre-training", compute.workers, worker, compute.placement)] if pretraining else []
    return needed + ([Request("a trial", 1, trial)] if trials else [])


def shortage(needed: Sequence[Request], nodes: Sequence[Resources]) -> str:
    """The requests that cannot be met, beside the resources of the nodes; empty where everything fits."""
    missing = [str(request) for request in needed if not request.fits(nodes)]
    there: Counter[str] = Counter(CPU=0, GPU=0)
    for node in nodes:
        there.update({name: amount for name, amount in node.items() if name in there or _ACCELERATOR in name})
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    return f"{', '.join(missing)}; there are {_words(there)} on {count}" if missing else ""


def lacks_here(needed: Sequence[Request], gpus: int) -> str:
    """The line of a dry run on what this machine, with so many GPUs, lacks; empty where another one runs the job."""
    here = {"CPU": LOCAL_CPUS, "GPU": gpus}
    missing = "" if os.environ.get("RAY_ADDRESS") else shortage(needed, [here])
    return f"not enough on this machine: {missing}" if missing else ""


def _words(amounts: Resources) -> str:
    """`2 CPUs, 1 GPU, H100`."""
    kinds = [name.removeprefix(_ACCELERATOR) for name in amounts if name.startswith(_ACCELERATOR)]
    counts = [f"{amounts[name]:g} {name}{'' if amounts[name] == 1 else 's'}" for name in ("CPU", "GPU")]
    return ", ".join([*counts, *kinds])


def require(needed: Sequence[Request], *, local: bool) -> None:
    """See that the nodes of Ray, which has been started, can hold what is asked for, or that more may come.

    Raises:
        ConfigError: where something does not fit, and no autoscaler can bring it.
    """
    missing = shortage(needed, _nodes())
    if not missing:
        return
    if local or not _may_grow():
        names = ", ".join(dict.fromkeys(request.settings for request in needed))
        raise ConfigError(f"{missing}, and no more can come; ask for less ({names}), or let RAY_ADDRESS name a cluster")
    threading.Thread(target=_remind, args=(needed,), daemon=True).start()


def _remind(needed: Sequence[Request]) -> None:
    import ray

    while ray.is_initialized() and (missing := shortage(needed, _nodes())):
        logger.warning("waiting for nodes: %s", missing)
        time.sleep(REMIND_S)


def _nodes() -> list[Resources]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _may_grow() -> bool:
    """True where an autoscaler may bring nodes: it knows kinds of nodes, a monitor without one calls each by its id.

    Where no monitor says anything, there may be an autoscaler that does not run on the head.
    """
    deadline = time.monotonic() + MONITOR_S
    while not (kinds := _kinds()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return not kinds or not all(kind.startswith("node_") for kind in kinds)


def _kinds() -> set[str]:
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2(fetch_from_server=True):
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return {node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)}
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    return {*(report.get("active_nodes") or ()), *(report.get("idle_nodes") or ())}
