"""`midibert embed` from a checkout, installed or not; midibert_ray/cli/jobs/embed.py says what it does."""

from _checkout import run

if __name__ == "__main__":
    run("embed")
