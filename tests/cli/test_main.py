"""`midibert JOB` and `python jobs/JOB.py` as processes: quick help, clear ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midibert_ray.cli import signals
from midibert_ray.cli.commands import COMMANDS, find
from midibert_ray.cli.main import execute
from midibert_ray.settings.config import ConfigError

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("ray", "torch", "transformers", "mlflow", "deepspeed", "pandas", "pyarrow", "matplotlib")

LIGHT = f"""
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    loaded = sorted(set({FRAMEWORKS}) & set(sys.modules))
    sys.exit(f"loaded {{loaded}}" if loaded else stop.code)
"""
"""Runs a job's file, and complains of frameworks that it has imported."""


def run(*words: object, cwd: Path = ROOT, **changes: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | changes
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_job_needs_no_framework(name: str) -> None:
    shown = run(sys.executable, "-c", LIGHT, f"jobs/{name}.py", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert COMMANDS[name].description in shown.stdout
    assert shown.stdout.startswith(f"usage: midibert {name} ")


@pytest.mark.parametrize(
    "words", [("-c", "from midibert_ray.cli.main import main; main()"), ("-m", "midibert_ray.cli.main")]
)
def test_help_of_the_command_names_every_job(words: tuple[str, str]) -> None:
    shown = run(sys.executable, *words, "--help")
    assert shown.returncode == 0
    assert re.findall(r"^  (\w+) ", shown.stdout, re.MULTILINE) == list(COMMANDS)
    assert execute([]) == 2


def test_every_job_has_a_door_and_a_subcommand() -> None:
    doors = {path.stem for path in ROOT.glob("jobs/[a-z]*.py")}
    assert doors == set(COMMANDS) == {path.stem for path in ROOT.glob("midibert_ray/cli/jobs/[a-z]*.py")}
    with pytest.raises(ConfigError, match="'pipelin' is no job; did you mean 'pipeline'"):
        find("pipelin")


def test_mistakes_are_one_line_and_need_no_framework(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["study", "--optimizer.lr", "1e-4"]) == 2
    assert capsys.readouterr().err == "error: settings have no dashes; write optimizer.lr=1e-4\n"
    wrong = run(sys.executable, "-c", LIGHT, "jobs/study.py", "study.seed=3")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown setting 'study.seed'; did you mean 'study.seeds'")
    assert wrong.stderr.count("\n") == 1


def test_a_job_that_fails_says_so_without_a_place_in_the_code(tmp_path: Path) -> None:
    said = run(sys.executable, "jobs/download.py", "pop99", f"corpora.root={tmp_path}")
    assert said.returncode == 2
    assert said.stderr.startswith("error: ")
    assert not re.search(r"\.py:\d|Traceback|usage", said.stderr + said.stdout)


def test_a_python_without_the_packages_is_told_where_they_are(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    said = run(tmp_path / "bare/bin/python", "jobs/tokenize.py", "--preset", "debug", PYTHONPATH="")
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert re.match(r"error: .*bare/bin/python has no package '\w+'; activate .*`make demo`", line)


@pytest.mark.slow
def test_an_installed_command_runs_from_any_folder(tmp_path: Path) -> None:
    """The wheel holds the jobs; a checkout is not needed, and the data of the package comes along."""
    code = tmp_path / "code"
    shutil.copytree(ROOT, code, ignore=shutil.ignore_patterns(".*", "output", "tests", "benchmarks", "*.egg-info"))
    venv.create(tmp_path / "env", symlinks=True, with_pip=True)
    python = tmp_path / "env/bin/python"
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    for old in packages.glob("setuptools*"):
        shutil.rmtree(old)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "zz.pth").write_text("\n".join(others))
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "."]
    done = run(python, *pip, cwd=code, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(code)
    installed = packages / "midibert_ray"
    assert {path.relative_to(ROOT / "midibert_ray") for path in tracked()} <= {
        path.relative_to(installed) for path in installed.rglob("*")
    }
    midibert = tmp_path / "env/bin/midibert"
    planned = run(
        midibert, "tokenize", "--preset", "debug", "--dry-run", "storage.root=out", cwd=tmp_path, PYTHONPATH=""
    )
    assert planned.returncode == 0, planned.stderr
    assert f"tokens sample   {tmp_path}/out/tokens/sample-" in planned.stdout
    refused = run(midibert, "submit", "pipeline", "storage.root=/out", cwd=tmp_path, PYTHONPATH="")
    assert (refused.returncode, "ray job submit -- midibert pipeline storage.root=/out" in refused.stderr) == (2, True)


def tracked() -> list[Path]:
    """The files of the package, without what Python makes of them."""
    return [path for path in (ROOT / "midibert_ray").rglob("*") if path.is_file() and path.suffix != ".pyc"]


# ------------------------------------------------------------------------------------------- signals


@contextmanager
def importing(tmp_path: Path, mark: str) -> Iterator["subprocess.Popen[str]"]:
    """jobs/export.py, while it imports a package that takes its time."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore Ctrl-C for what runs in the background
    (tmp_path / "transformers").mkdir()
    slow = f"import pathlib, time\npathlib.Path({mark!r}).touch()\nfor _ in range(1000):\n    time.sleep(0.1)\n"
    (tmp_path / "transformers/__init__.py").write_text(slow)
    command = [sys.executable, "jobs/export.py", "output=/nowhere"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_importing_leaves_no_traceback(number: int, code: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with importing(tmp_path, str(mark)) as process:
        while not mark.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == code


WORK = """
import signal, sys, time
from midibert_ray.cli import signals

if "own" in sys.argv:
    def handler(number, frame):
        print("handled", flush=True)
        sys.exit(0)

def wait():  # a signal that comes just before a sleep begins is only seen after it
    print("ready", flush=True)
    for _ in range(1000):
        time.sleep(0.1)

class Half:  # what was never made whole complains in the end, as data sets of Ray do
    def __init__(self):
        wait()
        self.made = True

    def __del__(self):
        self.made


signals.leave_at_once()
with signals.in_order():
    try:
        if "own" in sys.argv:
            signal.signal(signal.SIGINT, handler)
        if "half made" in sys.argv:
            Half()
        wait()
    except KeyboardInterrupt:
        if "wrong" in sys.argv:
            raise ValueError("made of an interrupt")
        if "goes on" not in sys.argv:
            raise
    finally:
        print("tidied up", flush=True)
print("not reached", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("way", ["", "own", "wrong", "goes on", "half made"])
def test_work_is_ended_in_order_whatever_a_library_makes_of_the_signal(number: int, code: int, way: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-c", WORK, way]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        output, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")
    assert output == "handled\n" * (way == "own") + "tidied up\n"


def test_work_without_a_signal_ends_as_it_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals.in_order():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(ValueError, match="mine"), signals.in_order():
        raise ValueError("mine")


def test_a_process_does_not_look_for_garbage_on_its_way_out() -> None:
    program = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 1000)); import midibert_ray"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
