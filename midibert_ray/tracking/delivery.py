"""Records reach a tracking server: while a job runs, at its end, and afterwards."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext

from midibert_ray import storage
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.settings.overrides import replace
from midibert_ray.settings.presets import command_line
from midibert_ray.settings.text import counted
from midibert_ray.tracking.client import answers, connect
from midibert_ray.tracking.sender import PATIENCE_S, Sender
from midibert_ray.tracking.spool import RefusedError, Spool, UnreachableError, points
from midibert_ray.tracking.uris import TrackingUris, uris
from midibert_ray.tracking.writer import Writer

logger = logging.getLogger(__name__)
_SENDING: dict[TrackingUris, Sender] = {}
"""The senders of this process that are at work."""


@contextmanager
def recording(config: Config) -> Iterator[None]:
    """Send the records of a job's processes to the tracking server while the job runs in this context.

    Records that earlier jobs have left go first. The end waits until all have arrived, and gives up after half a minute
    without progress: then it says how many are left, and how they are sent. A database has all records at once.

    Raises:
        ConfigError: at once, where the server does not accept the account.
    """
    target = uris(config)
    with storage.owner_only(), _sending(config, target) if target.spool else nullcontext():
        yield


@contextmanager
def _sending(config: Config, target: TrackingUris) -> Iterator[None]:
    with closing(_sender(target)) as sender:
        try:
            _ask(target)
        except RefusedError as error:  # a wrong password is the user's to mend now, an outage is not
            raise ConfigError(str(error)) from error
        except UnreachableError as error:
            sender.fail(error)
        try:
            _SENDING[target] = sender
            with sender.running():
                yield
        finally:
            _SENDING.pop(target, None)
            if sender.drain(PATIENCE_S):
                logger.warning("%s; the next job sends them, or: %s", amount(target), flush_command(config))


def caught_up(target: TrackingUris) -> bool:
    """True where MLflow holds all records that there are now; waits for that as long as there is progress.

    An outage that `recording` has seen for long is waited for no longer.
    """
    if not target.spool:
        return True
    if target in _SENDING:
        return not _SENDING[target].drain(PATIENCE_S)
    with closing(_sender(target)) as sender:
        return not sender.drain(PATIENCE_S)


def flush(target: TrackingUris) -> None:
    """Send the records that jobs have left, and try again those that were set aside.

    Raises:
        UnreachableError: where the server does not take all of them.
    """
    if not target.spool:
        logger.info("%s is a database, which takes everything at once: nothing waits", target.uri)
        return
    spool = Spool(target.spool)
    spool.bring_back()
    left = spool.names()
    if left:
        _ask(target)
    if left and not caught_up(target):
        raise UnreachableError(f"{amount(target)}, as {target.uri} does not take them; try again when it does")
    logger.info("%s sent to %s", _amount(left), target.uri)


def amount(target: TrackingUris) -> str:
    """The number of records that have not been sent, in words."""
    left = Spool(target.spool).names() if target.spool else []
    return f"{_amount(left)} wait" + (f" in {target.spool}" if left else "")


def _amount(records: list[str]) -> str:
    return f"{counted(points(records), 'points of curves')} ({counted(len(records), 'records')})"


def flush_command(config: Config, *words: str) -> str:
    """The command that sends what is left; with the name of a study it makes its report as well."""
    absolute = replace(config, {"storage.root": storage.resolve(config.storage.root)})
    return command_line("report", absolute, *words, "--flush", only=("tracking.uri",))


def _ask(target: TrackingUris) -> None:
    with answers(target.uri):
        connect(target).search_experiments(max_results=1)


def _sender(target: TrackingUris) -> Sender:
    return Sender(Spool(target.spool), lambda: Writer(target), f"tracking.uri={target.uri}")
