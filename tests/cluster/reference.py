"""What one process without Ray makes of the same work, for comparison."""

from pathlib import Path

from midibert_ray.data.format import store_digest
from midibert_ray.music.protocol import CLEAN
from midibert_ray.tokenizing.plan import plan_corpus
from midibert_ray.tokenizing.shard import make_shard


def digest(corpus: str, folder: Path) -> str:
    """The content digest of a corpus that one process tokenizes."""
    plan = plan_corpus(corpus, corpora_root="", storage_root=str(folder), protocol=CLEAN)
    Path(plan.uri).mkdir(parents=True)
    shards = plan.shards("here-1-00000000")
    return store_digest((report["piece"], report["digest"]) for shard in shards for report in make_shard(shard))
