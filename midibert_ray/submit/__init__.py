"""Submitting a job: its command line is checked here, the code is sent, the log followed, the exit code passed on."""
