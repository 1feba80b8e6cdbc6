"""The content of token stores, as it has been since their digests were first written down here.

A digest that changes is another corpus to every run and study. Where that is meant, `FORMAT_VERSION` counts up, and the
new digests stand here.
"""

from pathlib import Path
from typing import Any

import pytest

from midibert_ray.music.protocol import PROTOCOLS
from midibert_ray.tokenizing.tokenize import tokenize_corpora

pytestmark = pytest.mark.usefixtures("tasks")

SAMPLE = {
    "paper": "06949a7f634795abf5eda164263962b9306b00683d3754b18254ac5df168cce4",
    "clean": "16881c1f2f384bc30c7ee65a1fabc3ee3a070071165165766adb463036f18062",
}

LABELLED = {
    "paper": {
        "pop909": "d294b1ffe89b1085fd490844b9dfb12a58a20f613353e1e06794e8c59fe2a552",
        "pop1k7": "93644b1173d3a86f43ba4803ebd0f887ec9d03d6b8c2b0d6d592ccf6c6f16094",
        "asap": "75eb4f3a8a874e116b6e54f923ea3f4a6515e59e37ff5a7daf7b9e4957793b05",
        "pianist8": "6bc8965204468feb0f6733a98c1c4b70ad50edd070f2e3f1fabc988c60f89da6",
        "emopia": "d47a0a3265b3c3cc745ed38012bd48925ccbd95fe81c8c8dc609e18f1e6a020d",
    },
    "clean": {
        "pop909": "96f31638202aa2d745570a381dbdddcfc4e83aea932a8b6654b3ebcda91ff16f",
        "pop1k7": "0280048c105a08cc92a7804bd1c737670b317b49f7d3676ecf7d582156a34ecc",
        "asap": "94daf25977486ebad5bff20e62891e47d76a32a81f4071dce84f8f219f07947c",
        "pianist8": "947b9f1bd1e0fbb399835ed5a4ec287c6a1eeb36d8e193b221c9427ee5c46362",
        "emopia": "a644174e720389856f05fc93db3c363fa906980f62429389b782a756eb8d5dd4",
    },
}


PIECES = {"pop909": 865, "pop1k7": 1747, "asap": 65, "pianist8": 411, "emopia": 1078}


def made(names: list[str], protocol: str, corpora_root: str, root: Path) -> list[dict[str, Any]]:
    """The manifests of token stores."""
    settings = {"corpora_root": corpora_root, "storage_root": str(root), "protocol": PROTOCOLS[protocol]}
    return [summary.manifest for summary in tokenize_corpora(names, **settings)]


def digests(manifests: list[dict[str, Any]]) -> dict[str, str]:
    return {manifest["corpus"]: manifest["digest"] for manifest in manifests}


@pytest.mark.parametrize("protocol", SAMPLE)
def test_the_sample_has_the_content_that_it_had(protocol: str, tmp_path: Path) -> None:
    assert digests(made(["sample"], protocol, "", tmp_path)) == {"sample": SAMPLE[protocol]}


@pytest.mark.corpora
@pytest.mark.parametrize("name", PIECES)
def test_the_five_corpora_are_whole_and_have_the_content_that_they_had(
    name: str, corpora_root: Path, tmp_path: Path
) -> None:
    """Under the clean protocol; `tests/data/test_parity.py` has the others of the paper's, made with Ray."""
    (clean,) = made([name], "clean", str(corpora_root), tmp_path)
    assert (clean["digest"], clean["counts"]["pieces"]) == (LABELLED["clean"][name], PIECES[name])
    assert not clean["quarantined"]


@pytest.mark.corpora
def test_the_largest_corpus_has_the_content_that_it_had_under_the_papers_protocol(
    corpora_root: Path, tmp_path: Path
) -> None:
    """No array of it is published, which the others are compared with."""
    assert digests(made(["pop1k7"], "paper", str(corpora_root), tmp_path)) == {"pop1k7": LABELLED["paper"]["pop1k7"]}
