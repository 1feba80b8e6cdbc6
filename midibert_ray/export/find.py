"""Find a checkpoint to export by the name of its run, or by its URI."""

import difflib
import re
from pathlib import Path

from midibert_ray import storage
from midibert_ray.settings.config import Config
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.validators import require_address
from midibert_ray.studies import result as results
from midibert_ray.training.runs import finished

_HASH = re.compile(r"-[0-9a-f]{10}$")


def find(config: Config, run: str) -> str:
    """The URI of the checkpoint that `run` names.

    It is a trial's name as the tables print it, a key of a trial or pre-training run below the storage root, or the URI
    of a checkpoint, of a trial's folder or of a finished run's.

    Raises:
        ConfigError: for a URI that cannot be used.
        FileNotFoundError: where nothing fits, or the trial or run has not finished.
        ValueError: for a name that several trials have.
    """
    if "/" not in run and not Path(run).exists():
        return _checkpoint(_named(config, run))
    require_address("run", run)
    uri = storage.resolve(run)
    if not storage.exists(uri):
        raise FileNotFoundError(f"run={run}: there is no such folder{_there_is(run, _known(config))}")
    return _checkpoint(uri)


def _named(config: Config, name: str) -> str:
    """The folder of the trial or run with a key, or with a key of which only the hash is left out."""
    known = _known(config)
    fits = [uri for key, uri in known if name in (key, _HASH.sub("", key))]
    if not fits:
        raise FileNotFoundError(f"run={name}: no trial or pre-training run has this name{_there_is(name, known)}")
    if len(fits) > 1:
        raise ValueError(f"run={name} names {len(fits)} of them: {', '.join(fits)}; give one of these folders")
    return fits[0]


def _known(config: Config) -> list[tuple[str, str]]:
    """Key and folder of all pre-training runs and trials below the storage root."""
    studies = storage.root.studies(config.storage.root)
    folders = [storage.join(studies, study) for study in storage.names(studies)]
    folders = [storage.root.runs(config.storage.root), *folders]
    return [
        (key, storage.join(folder, key)) for folder in folders for key in storage.names(folder) if _HASH.search(key)
    ]


def _there_is(name: str, known: list[tuple[str, str]]) -> str:
    """The names that could have been meant, as the end of a message."""
    names = list(dict.fromkeys(key if key.startswith("pretrain-") else _HASH.sub("", key) for key, _ in known))
    if not names:
        return "; nothing has been trained below storage.root: give that of the run, or the run's folder"
    near = difflib.get_close_matches(storage.basename(name), names, n=1, cutoff=0.0)[0]
    return f"; did you mean {near!r}? Below storage.root there are: {', '.join(names)}"


def _checkpoint(uri: str) -> str:
    """The checkpoint behind a folder: a trial's with its result, a finished run's best, or the folder itself."""
    if storage.exists(storage.join(uri, results.OUTCOME)):
        return uri
    if name := results.newest(uri):
        found = storage.join(uri, name)
        if storage.exists(storage.join(found, results.OUTCOME)):
            return found
        raise FileNotFoundError(
            f"the trial in {uri} has not finished: no whole checkpoint in it holds {results.OUTCOME}; start its "
            "study again, with the same settings, which goes on where it stopped"
        )
    root, key, rest = run_of(uri)
    done = finished(replace(Config(), {"storage.root": root}), key) if key and not rest else None
    return done.checkpoint if done else uri


def run_of(uri: str) -> tuple[str, str, str]:
    """Storage root and key of the run that `{root}/runs/<key>` or a checkpoint in it belongs to, and what follows.

    All are empty where the URI is of another form.
    """
    path = storage.without_query(uri)
    found = re.fullmatch(r"(.+)/runs/([\w.-]+)(?:/([^/]+))?/?", path)
    return (found[1] + uri.removeprefix(path), found[2], found[3] or "") if found else ("", "", "")
