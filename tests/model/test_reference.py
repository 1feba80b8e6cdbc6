"""The authors' checkpoints in: every kind, odd ones and hostile ones."""

import pickle
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from midibert_ray.model.folder import ModelFileError
from midibert_ray.model.heads import MidiBertForNotes, MidiBertForSequences
from midibert_ray.model.midibert import MidiBertModel
from midibert_ray.model.reference import load_reference
from tests.reference import FF, HEADS, HIDDEN, LAYERS, LENGTH, reference_weights, write

QUERY = "bert.encoder.layer.0.attention.self.query.weight"
DISTANCES = "bert.encoder.layer.{}.attention.self.distance_embedding.weight"


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "midibert.module."])
@pytest.mark.parametrize("representation", ["cp", "remi"])
@pytest.mark.parametrize(
    ("kind", "model_class", "classes"),
    [
        ("encoder", MidiBertModel, None),
        ("notes", MidiBertForNotes, 7),
        ("sequences", MidiBertForSequences, 8),
    ],
)
def test_every_kind_loads_and_sizes_come_from_shapes(
    prefix: str, representation: str, kind: str, model_class: type, classes: int | None, tmp_path: Path
) -> None:
    weights = reference_weights(representation, kind, prefix)
    model, info = load_reference(write(tmp_path / "x.ckpt", weights, valid_acc=[0.9, 0.4]))
    assert type(model) is model_class and not model.training
    config = model.config
    assert (config.representation, config.num_classes, config.max_length) == (representation, classes, LENGTH)
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (HIDDEN, LAYERS, FF)
    assert (config.num_attention_heads, config.embedding_size) == (HEADS, 8)
    assert (info.kind, info.scores) == (kind, {"epoch": 3, "valid_acc": [0.9, 0.4]})
    assert len(info.dropped) == 5 and sum(p.numel() for p in model.parameters()) == sum(
        w.numel() for name, w in weights.items() if not any(d in name for d in info.dropped)
    )


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "created", tmp_path / "bomb.ckpt"
    document = {"state_dict": reference_weights(), "epoch": Bomb(target)}
    if legacy:
        path.write_bytes(pickle.dumps(document))
    else:
        torch.save(document, path)
    with pytest.raises(ModelFileError, match=r"bomb\.ckpt: refused, it holds more than tensors") as error:
        load_reference(path)
    assert not target.exists()
    assert_no_advice_of_torchs(error)


def assert_no_advice_of_torchs(error: pytest.ExceptionInfo[ModelFileError]) -> None:
    """Neither the message nor a traceback of it says how to read the file in spite of the refusal."""
    shown = "".join(traceback.format_exception(error.value))
    assert not any(word in shown for word in ("Weights only", "False", "arbitrary code", "add_safe_globals"))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_torch_will_not_read_is_refused_in_our_own_words(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "script.ckpt")
    refused = pytest.raises(ModelFileError, match=r"script\.ckpt: a TorchScript program, not a checkpoint; give")
    with warnings.catch_warnings(action="error"), refused as error:
        load_reference(tmp_path / "script.ckpt")
    assert_no_advice_of_torchs(error)
    path = write(tmp_path / "numpy.ckpt", reference_weights(), valid_acc=np.float64(0.5))
    with pytest.raises(ModelFileError, match=r"plain values \(numpy\.[\w.]+\).*save its state_dict anew") as error:
        load_reference(path)
    assert_no_advice_of_torchs(error)


def test_files_that_are_not_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "noise.ckpt").write_bytes(b"MThd" + bytes(100))
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.ckpt")
    write(tmp_path / "numbers.ckpt", {"a": 1})
    for name in ("noise", "empty", "list", "numbers"):
        with pytest.raises(ModelFileError, match=rf"{name}\.ckpt: "):
            load_reference(tmp_path / f"{name}.ckpt")
    with pytest.raises(FileNotFoundError):
        load_reference(tmp_path / "absent.ckpt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damage_is_said_in_one_line(zipped: bool, tmp_path: Path) -> None:
    path, draw = tmp_path / "x.ckpt", np.random.default_rng(0)
    torch.save({"state_dict": reference_weights()}, path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for place in draw.integers(0, 4000, 4):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            load_reference(path)  # damage within a tensor cannot be told from other weights
        except ModelFileError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 50


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.ckpt", reference_weights())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelFileError, match=r"cut\.ckpt: "):
        load_reference(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bert.something.weight": torch.zeros(1)}, "unknown tensor 'bert.something.weight'"),
        ({"bert.encoder.layer.1.output.dense.bias": None}, "do not make a complete model"),
        ({"bert.encoder.layer.0.attention.self.distance_embedding.weight": None}, "distance_embedding"),
        ({"word_emb.2.lut.weight": torch.zeros(90, 8)}, r"\(4, 18, 90, 66\) ids"),
        ({"bert.encoder.layer.1.output.dense.bias": None}, "no tensor 'bert.encoder.layer.1.output.dense.bias'"),
        ({"bert.encoder.layer.3.output.dense.bias": torch.zeros(HIDDEN)}, "layer.2.attention.self.query.weight"),
        ({"in_linear.weight.weight": torch.zeros(3)}, "'in_linear.weight.weight' has no place"),
        ({"in_linear.bias": torch.zeros(3)}, r"'in_linear.bias' has shape \(3,\); expected \(24,\)"),
        ({QUERY: torch.zeros(24, 16)}, rf"'{QUERY}' has shape \(24, 16\); expected \(24, 24\).* 3 heads"),
        ({DISTANCES.format(0): torch.zeros(31, 7)}, r"0\S+' has shape \(31, 7\);.*divisor of the hidden size 24"),
        ({DISTANCES.format(0): torch.zeros(30, 8)}, r"0\S+' has shape \(30, 8\);.*an odd number"),
        ({DISTANCES.format(0): torch.zeros(31)}, r"0\S+' has shape \(31,\); expected a matrix"),
        ({DISTANCES.format(1): torch.zeros(29, 8)}, r"1\S+' has shape \(29, 8\); expected \(31, 8\).* length 16"),
        ({"word_emb.2.lut.weight": torch.zeros(88, 9)}, r"'word_emb.2.lut.weight' has shape \(88, 9\)"),
        ({"module.in_linear.bias": torch.zeros(HIDDEN)}, "'in_linear.bias' is there twice"),
    ],
)
def test_weights_of_another_model_are_refused(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    weights = {name: w for name, w in (reference_weights() | change).items() if w is not None}
    with pytest.raises(ModelFileError, match=message):
        load_reference(write(tmp_path / "x.ckpt", weights))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(HIDDEN, dtype=torch.complex64), "is torch.complex64; weights must be .*floating-point dtype"),
        (torch.zeros(HIDDEN, dtype=torch.int64), "is torch.int64; weights must be"),
        (torch.zeros(HIDDEN).to_sparse(), r"torch.float32 \(torch.sparse_coo on cpu\); weights must be dense"),
        (torch.zeros(HIDDEN, device="meta"), r"\(torch.strided on meta\).*on the CPU"),
        (torch.zeros(1).expand(10**12), r"\(expanded from fewer numbers\)"),
        (
            torch.full((HIDDEN,), float("nan")),
            r"\(torch.float32\) has 24 values of 24 that are infinite or not",
        ),
        (torch.tensor([1e300, *range(HIDDEN - 1)], dtype=torch.float64), r"\(torch.float64\) has 1 values of 24"),
    ],
)
def test_weights_that_are_no_finite_real_numbers_are_refused(value: torch.Tensor, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.ckpt", reference_weights() | {"in_linear.bias": value})
    with pytest.raises(ModelFileError, match=rf"x\.ckpt: tensor 'in_linear.bias' .*{message}"):
        load_reference(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_layouts_of_memory_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {name: value.to(dtype) for name, value in reference_weights().items()}
    weights[QUERY] = weights[QUERY].T.contiguous().T
    model, _ = load_reference(write(tmp_path / "x.ckpt", weights))
    assert torch.equal(model.layers[0].attention.query.weight, weights[QUERY].float())


@pytest.mark.corpora
class TestParity:
    """What the authors' code computed on transformers 4.40 from these very files."""

    @pytest.fixture(scope="class")
    def folder(self, corpora_root: Path) -> Path:
        folder = corpora_root / "golden" / "reference_checkpoint"
        if not folder.is_dir():
            pytest.skip(f"no golden checkpoints in {folder}")
        return folder

    @pytest.mark.parametrize(
        ("file", "kind", "key"),
        [
            ("pretrain_model", "encoder", "last_hidden_state"),
            ("melody_model_best", "notes", "melody_logits"),
            ("composer_model_best", "sequences", "composer_logits_all_ones_mask"),
        ],
    )
    def test_outputs_equal_the_authors(self, folder: Path, file: str, kind: str, key: str) -> None:
        with np.load(folder / "expected.npz") as arrays:
            tokens = torch.from_numpy(arrays["tokens"].astype(np.int64))
            mask, expected = torch.from_numpy(arrays["attention_mask"]), torch.from_numpy(arrays[key])
        model, info = load_reference(folder / f"{file}.ckpt")
        assert info.kind == kind
        with torch.no_grad():
            actual = model(tokens, torch.ones_like(mask) if kind == "sequences" else mask)
        actual = actual.last_hidden_state if kind == "encoder" else actual.logits
        if kind != "sequences":
            actual, expected = actual[mask.bool()], expected[mask.bool()]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
