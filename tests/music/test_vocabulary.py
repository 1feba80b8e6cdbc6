from __future__ import annotations

import dataclasses
import json
from importlib import resources

import pytest

from midibert_ray.music import vocabulary
from midibert_ray.music.vocabulary import CP, REMI, vocabularies_json, vocabulary_digest


def test_cp_ids():
    assert vocabulary.FAMILIES == tuple(CP.families) == ("Bar", "Position", "Pitch", "Duration")
    assert vocabulary.CP.sizes == (4, 18, 88, 66)
    assert sum(CP.sizes) == 176
    assert CP.pad == (2, 16, 86, 64)
    assert CP.mask == (3, 17, 87, 65)
    assert CP.families["Bar"] == ("Bar New", "Bar Continue", "Bar PAD", "Bar MASK")
    assert CP.families["Position"][0] == "Position 1/16"
    assert CP.families["Position"][15:] == ("Position 16/16", "Position PAD", "Position MASK")
    assert CP.families["Pitch"][0] == "Pitch 22"
    assert CP.families["Pitch"][85:] == ("Pitch 107", "Pitch PAD", "Pitch MASK")
    assert CP.families["Duration"][63:] == ("Duration 63", "Duration PAD", "Duration MASK")


def test_remi_ids():
    names = REMI.families["Token"]
    assert vocabulary.REMI.sizes[0] == len(names) == 169
    assert (names[0], names[1], names[16]) == ("Bar", "Position 1/16", "Position 16/16")
    assert (names[17], names[102]) == ("Pitch 22", "Pitch 107")
    assert (names[103], names[166]) == ("Duration 0", "Duration 63")
    assert names[167:] == ("PAD", "MASK")
    assert (vocabulary.REMI_PAD, vocabulary.REMI.mask[0]) == (167, 168)


@pytest.mark.parametrize("vocab", [CP, REMI])
def test_json_holds_all_of_it(vocab):
    document = json.loads(vocab.to_json())
    assert document.pop("families") == {family: list(names) for family, names in vocab.families.items()}
    assert document == {"name": vocab.name, "pad": list(vocab.pad), "mask": list(vocab.mask)}


def test_digest_is_of_the_content():
    other = dataclasses.replace(CP, families=CP.families | {"Bar": ("Bar Old", *CP.families["Bar"][1:])})
    assert other.digest() != CP.digest()
    assert vocabulary_digest() == "38baec9f550d1b387c524b2fc45fe963958dc077402e085ac37ece5bb98571cc"


def test_the_shipped_json_holds_both_tables_and_their_digest():
    text = resources.files("midibert_ray.music").joinpath("vocabulary.json").read_text(encoding="utf-8")
    assert text == vocabularies_json()
    document = json.loads(text)
    assert document.pop("digest") == vocabulary_digest()
    assert list(document.values()) == [json.loads(vocab.to_json()) for vocab in (CP, REMI)]
