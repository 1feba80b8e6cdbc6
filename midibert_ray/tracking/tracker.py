"""The runs of a server or database: opened to be written to, and found again."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from midibert_ray.settings.secrets import is_server
from midibert_ray.tracking.client import Run, answers, connect, experiment_id, find, search
from midibert_ray.tracking.runs import PARENT, RunLog, study_experiment
from midibert_ray.tracking.spool import RejectedError, Spool, UnreachableError
from midibert_ray.tracking.uris import TrackingUris
from midibert_ray.tracking.writer import Writer

LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` answers."""


class Tracker:
    """Opens and finds runs; its questions raise UnreachableError where a server does not answer."""

    def __init__(self, uris: TrackingUris) -> None:
        self.uris = uris
        self._client = connect(uris)
        self._write = Spool(uris.spool).extend if uris.spool else Writer(uris)

    def open(
        self,
        experiment: str,
        key: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, object],
        parent: str = "",
    ) -> RunLog:
        """The run of a key, made if there is none and set to running again if there is; a deleted one is restored.

        Params of a run that is there stay as they were. `parent` is the key of a trial's study.
        """
        log = self.log(experiment, key)
        log.open(name, params, tags, parent)
        return log

    def log(self, experiment: str, key: str) -> RunLog:
        """The run of a key that has been opened before, to be written to as it stands."""
        return RunLog(self._write, experiment, key)

    def find(self, experiment: str, key: str) -> Run | None:
        """The run of a key, or None."""
        with answers(self.uris.uri):
            return next(iter(find(self._client, self._id(experiment), key)), None)

    def browse(self, experiment: str) -> str:
        """How to look at the runs of an experiment: a link to them, behind the command that starts MLflow's pages.

        Without a server's answer the link leads to its list of experiments.
        """
        known = None
        with suppress(UnreachableError, RejectedError), answers(self.uris.uri):
            known = self._id(experiment)
        server = self.uris.uri.rstrip("/") if is_server(self.uris.uri) else LOCAL
        # Without the last part the pages show an experiment's traces of language models, of which there are none.
        link = f"{server}/#/experiments{f'/{known}/runs' if known else ''}?workflowType=machine_learning"
        return link if is_server(self.uris.uri) else f"{self.uris.command()}\nthen open {link}"

    def children(self, experiment: str, parent: str) -> list[Run]:
        """The runs of a study's trials, oldest first, by the id of the study's run."""
        with answers(self.uris.uri):
            runs = search(self._client, self._id(experiment), f"tags.`{PARENT}` = '{parent}'")
            return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_name))  # two may start at once

    def studies(self) -> list[str]:
        """Names of the studies that have an experiment."""
        prefix = study_experiment("")
        with answers(self.uris.uri):
            names = [item.name for item in self._client.search_experiments()]
        return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    def parents(self, experiment: str) -> list[Run]:
        """The runs of an experiment that are no child, newest first."""
        with answers(self.uris.uri):
            runs = [run for run in search(self._client, self._id(experiment)) if PARENT not in run.data.tags]
        return sorted(runs, key=lambda run: -run.info.start_time)

    def curve(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Points (step, value) of one metric, by step."""
        with answers(self.uris.uri):
            return sorted((point.step, point.value) for point in self._client.get_metric_history(run_id, key))

    def artifact(self, run_id: str, name: str) -> bytes | None:
        """Content of an artifact, or None where there is none."""
        folder = name.rpartition("/")[0]
        with answers(self.uris.uri), tempfile.TemporaryDirectory() as scratch:
            if name not in [item.path for item in self._client.list_artifacts(run_id, folder or None)]:
                return None
            return Path(self._client.download_artifacts(run_id, name, scratch)).read_bytes()

    def _id(self, experiment: str) -> str | None:
        return experiment_id(self._client, experiment)
