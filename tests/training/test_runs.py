"""A run never goes on with other tokens than those that it was started on."""

import json
from pathlib import Path

import pytest

from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.training.runs import INPUTS, RESULT_FILE, finish, finished, pin
from tests.stores import Piece, write_store
from tests.training.test_checkpoints import written


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
    more = write_store(tmp_path / "tokens" / "more-2", sample_pieces[3:4])
    pin(run, [store, more])
    assert list(json.loads(Path(run, INPUTS).read_bytes())) == ["sample-1", "more-2"]
    with pytest.raises(ValueError, match="those of more-2 had digest"):
        pin(run, [write_store(tmp_path / "changed" / "more-2", sample_pieces[4:5])])


@pytest.mark.parametrize("content", ["", '{"sample-1": "0a', "[]", "{}"])
def test_files_that_were_cut_off_are_named_and_made_again(
    sample_pieces: list[Piece], tmp_path: Path, tiny: Config, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, key = replace(tiny, {"storage.root": str(tmp_path)}), "pretrain-a"
    run = tmp_path / "runs" / key
    store = write_store(tmp_path / "tokens" / "sample-1", sample_pieces[:2])
    pin(str(run), [store])
    written(run / "step_000000010", run=key)
    inputs, done = (run / INPUTS).read_bytes(), finish(config, key)
    for name in (INPUTS, RESULT_FILE):
        (run / name).write_text(content)
    pin(str(run), [store])
    assert (run / INPUTS).read_bytes() == inputs
    assert finished(config, key) is None
    assert f"{run}/{RESULT_FILE} is " in caplog.text
    assert f"{run}/{INPUTS} is " in caplog.text or content == "{}"
    assert finish(config, key) == finished(config, key) == done
