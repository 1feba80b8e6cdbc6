"""Submit a job to a Ray cluster, follow its log, and end with its exit code.

    python jobs/submit.py jobs/pipeline.py --preset base corpora.root=s3://bucket/corpora storage.root=s3://bucket/out
    python jobs/submit.py --no-wait jobs/pretrain.py --preset small storage.root=/shared/out
    python jobs/submit.py --attach pipeline-1a2b3c4d5e           # follow it again
    python jobs/submit.py --stop pipeline-1a2b3c4d5e             # submitted again, it goes on where it stopped

Ctrl-C leaves the log and not the job. The cluster is that of RAY_API_SERVER_ADDRESS or --address; its token is taken
from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Passwords and keys are no settings: nodes have them in
their environment or in files.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # the checkout, not jobs/, whose tokenize.py would hide Python's own

from midibert_ray import cli
from midibert_ray.cli import submit as command


def main() -> None:
    sys.exit(command.main(__doc__))


if __name__ == "__main__":
    cli.run(main)
