"""The command line: `midibert JOB ...`, and `python jobs/JOB.py ...` from a checkout."""
