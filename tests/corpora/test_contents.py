"""The table of what each corpus contains."""

from pathlib import Path

import pytest

from midibert_ray.corpora.catalogue import CORPORA
from midibert_ray.corpora.contents import PUBLISHED, Contents, Difference, compare, measure, published
from midibert_ray.corpora.labels import list_pieces
from midibert_ray.music.protocol import CLEAN


def test_every_listed_piece_is_in_it() -> None:
    numbers = {"pop909": 1730, "asap": 65, "pop1k7": 1747, "pianist8": 411, "emopia": 1078}
    assert {name: len(published(name).files) for name in PUBLISHED} == numbers
    for name in PUBLISHED:
        files = published(name).files
        assert list(files) == sorted(files) and all(len(digest) == 32 for digest in files.values())
        listed = {file for piece in list_pieces(CORPORA[name], dict.fromkeys(files, 0), CLEAN) for file in piece.files}
        assert listed == set(files)


def test_the_sample_is_of_the_published_pop909() -> None:
    found = measure(CORPORA["pop909"], Path(CORPORA["sample"].folder))
    assert len(found.files) == 64 and found.files.items() <= published("pop909").files.items()


def test_a_difference_names_the_first_of_each_kind(tmp_path: Path) -> None:
    corpus = CORPORA["pop1k7"]
    for name in ("src_001/0.mid", "src_001/1.mid", "src_002/0.MIDI", "src_002/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = measure(corpus, tmp_path)
    assert sorted(found.files) == ["src_001/0.mid", "src_001/1.mid", "src_002/0.MIDI"] and found.bytes == 40
    assert not compare(found, found)
    other = {"src_001/0.mid": found.files["src_001/0.mid"], "src_001/1.mid": "0" * 32, "src_009/0.mid": "0" * 32}
    difference = compare(Contents(digest="", bytes=0, files=other), found)
    assert difference == Difference(missing=("src_009/0.mid",), changed=("src_001/1.mid",), unknown=("src_002/0.MIDI",))
    assert str(difference) == (
        "1 missing, first src_009/0.mid; 1 changed, first src_001/1.mid; 1 unknown, first src_002/0.MIDI"
    )


@pytest.mark.corpora
@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_what_the_corpora_contain(name: str, corpora_root: Path) -> None:
    found = measure(CORPORA[name], corpora_root / CORPORA[name].folder)
    assert not compare(published(name), found), str(compare(published(name), found))
    assert found == published(name)
