"""The command lines of the jobs: what is understood, what is shown, what is refused."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from midibert_ray.cli.arguments import Args, parse
from midibert_ray.cli.commands import COMMANDS, Command
from midibert_ray.cli.driver import anchor
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import flatten, replace
from midibert_ray.settings.presets import PRESETS, command_line, preset

PLAIN = Command(name="pipeline", settings=("seed", "model", "storage.root"))
STUDY = Command(name="report", settings=(), words="STUDY")


def understood(*words: str, command: Command = PLAIN) -> Args:
    return parse(command, words)


def help_of(command: Command, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(command, ["--help", *more])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_command_line() -> None:
    args = understood("--preset", "debug", "optimizer.lr=3e-4", "--dry-run", "corpora.names=asap,folder:/a b/c")
    assert args.dry_run
    assert args.preset == "debug"
    assert args.config.optimizer.lr == 3e-4
    assert args.config.corpora.names == ("asap", "folder:/a b/c")
    assert understood("again", "seed=1", command=STUDY).words == ("again",)


def test_a_job_may_have_settings_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"output": "Folder to write.", "reference": "File to read."}
    command = Command(name="export", settings=("optimizer",), extra=extra)
    args = understood("output=a=b", "seed=7", "--preset", "debug", command=command)
    assert args.extra == {"output": "a=b"}
    assert args.config.seed == 7
    assert understood(command=command).extra == {}
    wrong = {"output=": "output= has no value", "outptu=x": "did you mean 'output'", "sed=1": "unknown setting 'sed'"}
    for argument, message in wrong.items():
        with pytest.raises(ConfigError, match=message):
            understood(argument, command=command)
    with pytest.raises(ConfigError):
        understood("output=x")
    shown = help_of(command, capsys)
    assert all(word in shown for word in (*extra, *extra.values(), "optimizer.lr"))


def test_a_job_may_have_switches_of_its_own() -> None:
    command = Command(name="report", settings=(), flags={"flush": "send it", "loud": "say so"})
    args = understood("seed=3", "--flush", command=command)
    assert (args.flags, args.config.seed) == (("flush",), 3)
    with pytest.raises(ConfigError, match="--flush"):
        understood("--flush")


def test_a_word_may_stand_for_settings_that_others_overrule() -> None:
    command = Command(
        name="study", settings=(), words="sweep", extra={"task": "A task."}, kinds={"sweep": {"study.draws": 24}}
    )
    args = understood("sweep", "task=composer", "storage.root=out", "--preset", "small", command=command)
    assert (args.preset, args.words, args.extra, args.dry_run) == ("small", ("sweep",), {"task": "composer"}, False)
    assert args.flags == ()
    assert args.config == replace(preset("small"), {"study.draws": 24, "storage.root": "out"})
    assert understood("sweep", "study.draws=3", command=command).config.study.draws == 3
    with pytest.raises(ConfigError, match=r"'swep' is not a setting; write section\.key=value, or one of sweep"):
        understood("swep", command=command)


def test_relative_folders_are_those_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = anchor(understood("storage.root=out", "corpora.root=s3://bucket/x", "tracking.uri=sqlite:///a.db").config)
    assert config.storage.root == str(tmp_path / "out")
    assert config.corpora.root == "s3://bucket/x"
    assert config.storage.cache.startswith("~")
    assert config.tracking.uri == f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize("words", [["optimizer.lrr=1"], ["word"], ["--preset", "huge"], ["--preset"], ["--forse"]])
def test_errors_are_one_line_without_usage(words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        understood(*words)
    assert "usage" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "word",
    [
        "tracking.uri=http://user:hunter2@host:5000",
        "tracking.uri=HTTPS://hunter2@host",
        "tracking.uri=postgresql+psycopg2://user:hunter2@host/db",
        "storage.root=s3://KEY:hunter2@bucket/out",
        "storage.root=s3://KEY:hun/ter2@bucket/out",
        "storage.root=s3://bucket/out?region=x&access_key=A&secret_key=hunter2",
        "storage.root=s3://bucket/out?secret%5Fkey=hunter2",
        "storage.root=abfs://c@a.dfs.core.windows.net/out?sig=hunter2",
        "corpora.names=asap,folder:s3://KEY:hunter2@bucket/music",
        "run=s3://KEY:hunter2@bucket/runs/x",
        "http://user:hunter2@host/?a=b",
        "--preset=http://user:hunter2@host",
        "nonsense.key=http://user:hunter2@host",
    ],
)
def test_a_password_in_a_setting_is_refused_and_not_repeated(word: str) -> None:
    with pytest.raises(ConfigError, match="password or a key") as error:
        understood(word, command=Command(name="export", settings=(), words="STUDY", extra={"run": "A run."}))
    assert "ter2" not in str(error.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(error.value)


# ------------------------------------------------------------------------------------------- what --help shows


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "submit"])
def test_help_shows_what_the_job_reads_and_on_demand_the_rest(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    keys = {key: f"\n    {key}" for key in flatten(Config())}
    read = {key for key in keys if {key, key.split(".")[0]} & set(command.settings)}
    assert set(command.settings) <= keys.keys() | {key.split(".")[0] for key in keys}
    shown = help_of(command, capsys)
    assert command.description in shown
    assert {key for key, line in keys.items() if any(line + end in shown for end in ("* [", " ["))} == read
    assert ("`--help all`" in shown) == (len(read) < len(keys))
    everything = help_of(command, capsys, "all")
    assert all(line in everything for line in keys.values())


# ------------------------------------------------------------------------------------------- what to write instead


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["--optimizer.lr", "1e-4"], "optimizer.lr=1e-4"),
        (["--optimizer.lr=1e-4"], "optimizer.lr=1e-4"),
        (["--optimizer.weight-decay", "0"], "optimizer.weight_decay=0"),
        (["-seed", "3"], "seed=3"),
        (["optimizer.lr", "=", "1e-4"], "optimizer.lr=1e-4"),
        (["optimizer.lr", "=1e-4"], "optimizer.lr=1e-4"),
        (["optimizer.lr=", "1e-4"], "optimizer.lr=1e-4"),
        (["optimizer.lr", "1e-4"], "optimizer.lr=1e-4"),
        (["optimizer.lr"], "optimizer.lr=VALUE"),
        (["study.tasks=[melody,velocity]"], "study.tasks=melody,velocity"),
        (["study.tasks=['melody', 'velocity']"], "study.tasks=melody,velocity"),
        (["study.tasks=(melody,)"], "study.tasks=melody,"),
        (["study.tasks=melody,", "velocity"], "study.tasks=melody,velocity"),
        (["storage.root=/my", "data"], "'storage.root=/my data'"),
        (
            ["seed=1", "storage.root=~/my", "data", "of", "mine/out", "--dry-run"],
            "'storage.root=~/my data of mine/out'",
        ),
        (["corpora.names=folder:/a", "b"], "'corpora.names=folder:/a b'"),
        (["corpora.names=pop909,folder:/a,b/c"], "corpora.names=folder:/a-b/c"),
        (["corpora.names=folder:/a b,c"], "'corpora.names=folder:/a b-c'"),
        (["corpora.names=folder:/a b,c"], "ln -s '/a b,c' '/a b-c'"),
    ],
)
def test_common_mistakes_are_answered_by_what_to_write(words: list[str], instead: str) -> None:
    with pytest.raises(ConfigError) as error:
        understood(*words)
    assert instead in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["corpora.names=folder:/a,pop909,folder:/b,sample"],
        ["storage.root=/a,b"],
        ["storage.root=/a=b", "storage.cache=/my data"],
        ["corpora.root=", "--dry-run"],
        ["study.tables=", "seed=1"],
    ],
)
def test_what_only_looks_like_a_mistake_passes(words: list[str]) -> None:
    understood(*words)


# ------------------------------------------------------------------------------------------- what is suggested


def read_back(text: str) -> tuple[str, Sequence[str]]:
    program, file, *words = shlex.split(text)
    assert program == "python"
    return Path(file).stem, words


@pytest.mark.parametrize("name", PRESETS)
def test_a_suggested_command_makes_the_same_configuration(name: str) -> None:
    changes = {
        "storage.root": "/my data/it's",
        "corpora.names": ("folder:/a b", "sample"),
        "model.dropout": 0.3,
        "compute.packing": False,
        "finetune.lr": 3e-7,
    }
    config = replace(preset(name), changes)
    job, words = read_back(command_line("tokenize", config))
    assert (job, len([word for word in words if "=" in word])) == ("tokenize", len(changes))
    assert parse(COMMANDS[job], words).config == config
    assert words[:2] == ["--preset", name]
    assert "storage.root=~/midibert" in command_line("tokenize", preset(name))
