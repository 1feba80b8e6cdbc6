"""Signals reach a job while Ray works for it: it ends in order, and the same command goes on."""

import os
import signal
import subprocess
import sys

import pytest

from midibert_ray.settings.config import Config
from tests.jobs.test_pipeline import ROOT, command


@pytest.mark.ray
@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_pre_training_leaves_no_crash_and_no_traceback(number: int, code: int, config: Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore Ctrl-C for what runs in the background
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    words = [sys.executable, "-u", *command("pipeline", config)[1:]]
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        output, line = "", ""
        while not line.startswith("step"):
            line = process.stdout.readline()
            assert line, output
            output += line
        process.send_signal(number)
        output += process.communicate(timeout=120)[0]
    assert process.returncode == code, output
    assert not any(word in output for word in ("Traceback", "error:", "Fatal", "stack trace", "majority class"))
