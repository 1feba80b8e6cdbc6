"""A share of a GPU is a bound of memory, and the message says so where it is too little."""

import pytest
import torch

from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.studies.trial import _reason, own_device


def test_a_trial_with_a_share_of_a_gpu_says_what_it_had() -> None:
    config = replace(Config(), {"compute.gpus_per_trial": 0.25})
    said = _reason(torch.OutOfMemoryError("tried to allocate 2 GiB"), config)
    assert said == (
        "out of GPU memory within a trial's share, compute.gpus_per_trial=0.25: tried to allocate 2 GiB; "
        "give a trial more (compute.gpus_per_trial), or lower finetune.batch"
    )
    assert "share" not in _reason(torch.OutOfMemoryError("full"), replace(config, {"compute.gpus_per_trial": 1}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_share_of_a_gpu_bounds_a_trial() -> None:
    device = own_device(replace(Config(), {"compute.gpus_per_trial": 0.25}))
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.3 * total), dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
