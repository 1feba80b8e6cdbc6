"""The tokens that a run or study was started on, so that it never goes on with others of the same address."""

import json
from collections.abc import Iterable

from midibert_ray import storage
from midibert_ray.data.format import read_manifest

INPUTS = "inputs.json"


def pin(folder: str, stores: Iterable[str]) -> None:
    """Note the digests of token stores in a run's folder, or compare them with those noted before.

    A token store is made anew at its address when the files of its corpus change.

    Args:
        folder: address of the run or study.
        stores: addresses of its token stores.

    Raises:
        ValueError: where one of them holds other tokens than at the first start.
    """
    found = {storage.basename(store): read_manifest(store)["digest"] for store in stores}
    place = storage.join(folder, INPUTS)
    if not storage.exists(place):
        storage.write_bytes(place, json.dumps(found, indent=1).encode())
        return
    noted = json.loads(storage.read_bytes(place))
    for name, digest in found.items():
        if noted.get(name, digest) != digest:
            raise ValueError(
                f"{folder} was started on other tokens: those of {name} had digest {noted[name][:16]} and have "
                f"{digest[:16]} now, as files of the corpus have changed; bring the old files back and tokenize again, "
                "or remove that folder to start from the beginning"
            )
