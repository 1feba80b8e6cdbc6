"""A run never goes on with other tokens than those that it was started on."""

from pathlib import Path

import pytest

from midibert_ray.training.runs import INPUTS, pin
from tests.stores import Piece, write_store


def test_other_tokens_at_the_same_address_are_refused(sample_pieces: list[Piece], tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    store = write_store(tmp_path / "tokens" / "sample-1", sample_pieces[:2])
    pin(run, [store])
    noted = Path(run, INPUTS).read_bytes()
    pin(run, [store])
    same = write_store(tmp_path / "moved" / "sample-1", sample_pieces[:2])
    pin(run, [same])
    other = write_store(tmp_path / "changed" / "sample-1", sample_pieces[1:3])
    with pytest.raises(
        ValueError, match=r"run was started on other tokens: those of sample-1 had digest .*remove that"
    ):
        pin(run, [other])
    assert Path(run, INPUTS).read_bytes() == noted
