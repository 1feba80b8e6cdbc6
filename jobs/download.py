"""`midibert download` from a checkout, installed or not; midibert_ray/cli/jobs/download.py says what it does."""

from _checkout import run

if __name__ == "__main__":
    run("download")
