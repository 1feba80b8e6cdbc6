"""What a worker says of its own node."""

import os

import psutil

from midibert_ray.training import node


def test_a_worker_says_how_busy_its_node_is_and_what_it_has() -> None:
    node.usage(3)
    deadline = psutil.cpu_times()
    while sum(psutil.cpu_times()) - sum(deadline) < 0.2:  # CPU time of this node
        sum(range(10_000))
    found = node.usage(3)
    assert {name.rpartition("/")[0] for name in found} == {"system/worker_3"}
    values = {name.rpartition("/")[2]: value for name, value in found.items()}
    assert 0 < values["cpu_utilization_percentage"] <= 100
    memory = psutil.virtual_memory()
    assert 0 < values["system_memory_usage_megabytes"] < memory.total / 1e6
    assert abs(values["system_memory_usage_percentage"] - memory.percent) < 20
    assert f"{os.cpu_count()} CPUs (" in node.hardware() and " GiB" in node.hardware()
