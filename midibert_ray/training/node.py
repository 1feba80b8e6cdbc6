"""The machine that a worker runs on: its hardware, and how busy it is."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import torch

HARDWARE = "hardware"
"""Key of a report for a description of the worker's hardware."""


def usage(worker: int = 0) -> dict[str, float]:
    """Load of this node since the last call, in MLflow's names of system metrics: per cent, MB, of the node as a whole.

    GPU metrics are those of this process's own device.
    """
    memory, network = psutil.virtual_memory(), psutil.net_io_counters()
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "network_receive_megabytes": network.bytes_recv / 1e6,
        "network_transmit_megabytes": network.bytes_sent / 1e6,
    }
    if torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        found["gpu_memory_usage_megabytes"] = (total - free) / 1e6
        found["gpu_memory_usage_percentage"] = 100 * (total - free) / total
        with suppress(ModuleNotFoundError, RuntimeError):  # it needs NVIDIA's library of management
            found["gpu_utilization_percentage"] = float(torch.cuda.utilization())
    return {f"system/worker_{worker}/{name}": value for name, value in found.items()}


@cache
def hardware() -> str:
    """The node in words: its GPUs, CPUs and memory."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    kinds = [f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)]
    memory = psutil.virtual_memory().total / 2**30
    return ", ".join([*kinds, f"{os.cpu_count()} CPUs ({_processor()})", f"{memory:.0f} GiB"])


def _processor() -> str:
    names: list[str] = []
    with suppress(OSError):  # only Linux has it
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine
