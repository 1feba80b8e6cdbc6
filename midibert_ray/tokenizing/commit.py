"""A token store appears whole or not at all, on a disk as in a bucket.

A job holds the lease of the store's folder and writes its shards there under names that carry its mark, and then the
manifest, which names them: one file, in one step, which makes a store of them, or puts the new store in the place of
the old one. Shards that no manifest names are removed after that. The claim of a job that was killed stays beside
what it has left, by which the next job finds it.
"""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from midibert_ray import storage
from midibert_ray.data.format import SHARDS, read_manifest, write_manifest
from midibert_ray.storage.lease import Lease, LeaseLostError, abandoned, lease

logger = logging.getLogger(__name__)

_OWN = re.compile(r"\.?part-")  # with a dot: what a killed process was about to rename


@contextlib.contextmanager
def work(uri: str, what: str) -> Iterator[Lease]:
    """Hold the lease of a store, and remove what belongs to no store before and after."""
    with lease(uri, what=what, report=logger.info) as held:
        _remove_unnamed(uri)
        try:
            yield held
        finally:
            with contextlib.suppress(LeaseLostError):  # what is there is another's now
                held.check()
                _remove_unnamed(uri)


def publish(held: Lease, manifest: dict[str, Any], shards: Iterable[str]) -> None:
    """Make some shards the store, in the place of the one that may stand there.

    Raises:
        LeaseLostError: where another job has taken over.
    """
    sizes = storage.sizes(held.uri)
    held.check()
    write_manifest(held.uri, {**manifest, SHARDS: {name: sizes[name] for name in sorted(shards)}})


def remove_leftovers(parent: str) -> None:
    """Remove what killed jobs have left in the stores below a folder."""
    for uri in abandoned(parent):
        with work(uri, f"removing what was left in {uri}"):
            pass


def _remove_unnamed(uri: str) -> None:
    """Remove the shards that the manifest does not name; needs the lease."""
    try:
        named = read_manifest(uri)[SHARDS]
    except (FileNotFoundError, storage.DamagedError):
        named = {}
    except ValueError:
        return  # of another version of this package, which looks after it
    removed = [name for name in storage.sizes(uri) if _OWN.match(name) and name not in named]
    if removed:
        logger.info("removing %d files of %s that belong to no store, such as %s", len(removed), uri, removed[0])
    for name in removed:
        storage.remove(storage.join(uri, name))
