"""A checkpoint of one number of workers, made readable for another.

ZeRO spreads the optimizer's state over the workers, and DeepSpeed reads a checkpoint only with as many
workers as wrote it, except in its universal form: one folder a parameter. We make that form when it is
needed, in a temporary folder of each node.
"""

import contextlib
import io
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from pyarrow import fs

from midibert_ray.training.checkpoints import listed_files

UNIVERSAL_FOLDER = "universal"


@contextmanager
def universal(folder: Path, tag: str) -> Iterator[Path]:
    """A temporary folder that holds a checkpoint's universal form in `universal/`; every worker must enter.

    The first worker of each node converts the DeepSpeed shards in `folder/tag/`, the others of that node wait for it;
    about as much disk as twice the checkpoint is taken while it lasts.
    """
    rank, local_rank = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    with contextlib.ExitStack() as stack:
        mine = ""
        if local_rank == 0:
            mine = stack.enter_context(tempfile.TemporaryDirectory(prefix="midibert-"))
            _convert(folder, tag, Path(mine))
        places = [""] * dist.get_world_size()
        dist.all_gather_object(places, mine)
        # Ray Train numbers the workers node by node.
        yield Path(places[rank - local_rank])
        dist.barrier()


def _convert(folder: Path, tag: str, scratch: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    source = scratch / tag
    source.mkdir()
    # Only what belongs to the checkpoint: the converter takes every shard that it finds.
    for name in listed_files(fs.LocalFileSystem(), str(folder)):
        if name.startswith(f"{tag}/"):
            (scratch / name).symlink_to(folder.absolute() / name)
    settings = Namespace(
        input_folder=str(source),
        output_folder=str(scratch / UNIVERSAL_FOLDER),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # Stages 1 and 2 are refused without it, as only Megatron's checkpoints carry that state.
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(settings)
