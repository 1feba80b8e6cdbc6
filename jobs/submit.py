"""`midibert submit` from a checkout, installed or not; midibert_ray/cli/jobs/submit.py says what it does."""

from _checkout import run

if __name__ == "__main__":
    run("submit")
