"""What is recorded reaches a tracking server: while a job runs, at its end, and afterwards."""

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from midibert_ray import storage
from midibert_ray.settings.config import Config, ConfigError
from midibert_ray.tracking.address import Address, address
from midibert_ray.tracking.client import answers, connect
from midibert_ray.tracking.sender import PATIENCE_S, Send, Sender
from midibert_ray.tracking.spool import Record, RejectedError, Spool, UnreachableError, points
from midibert_ray.tracking.writer import Writer

logger = logging.getLogger(__name__)


@contextmanager
def recording(config: Config) -> Iterator[None]:
    """What a job is wrapped in: what its processes record is sent to the tracking server in the meantime.

    What earlier jobs have left goes first. The end waits for what is still on its way, and gives up when nothing has
    gone for half a minute: then it says how much is left, and how it is sent. Does nothing for a database.

    Raises:
        ConfigError: at once, where the server does not accept the account.
    """
    where = address(config)
    if not where.spool:
        yield
        return
    sender = _sender(where)
    _greet(where, sender)
    try:
        with sender.running():
            yield
    finally:
        left = sender.drain(PATIENCE_S)
        sender.close()
        if left:
            logger.warning("%s; the next job sends them, or: %s", amount(where), flush_command(config))


def _greet(where: Address, sender: Sender) -> None:
    """Ask the server something: a wrong password is the user's to mend now, an outage is not."""
    try:
        _ask(where)
    except UnreachableError as error:
        if error.refused:
            raise ConfigError(str(error)) from error
        sender.fail(error)


def caught_up(where: Address) -> bool:
    """Whether MLflow holds all that has been recorded by now; waits for that as long as something is being sent."""
    if not where.spool:
        return True
    sender = _sender(where)
    try:
        return not sender.drain(PATIENCE_S)
    finally:
        sender.close()


def _ask(where: Address) -> None:
    with answers(where):
        connect(where).search_experiments(max_results=1)


def flush(where: Address) -> None:
    """Send what jobs have left, and try again what was set aside.

    Raises:
        UnreachableError: where the server does not take all of it.
    """
    if not where.spool:
        logger.info("%s is a database, which takes everything at once: nothing waits", where.uri)
        return
    spool = Spool(where.spool)
    spool.bring_back()
    left = spool.names()
    if left:
        _ask(where)
    if left and not caught_up(where):
        raise UnreachableError(f"{amount(where)}, as {where.uri} does not take them; try again when it does")
    logger.info("%s points of curves (%d records) sent to %s", f"{points(left):,}", len(left), where.uri)


def amount(where: Address) -> str:
    """How much has not been sent, in words."""
    left = Spool(where.spool).names() if where.spool else []
    return f"{points(left):,} points of curves ({len(left)} records) wait" + (f" in {where.spool}" if left else "")


def flush_command(config: Config, *words: str) -> str:
    """The command that sends what is left; with the name of a study it makes its report as well."""
    root = storage.resolve(config.storage.root)
    settings = (f"storage.root={root}", f"tracking.uri={config.tracking.uri}")
    return shlex.join(["python", "jobs/report.py", *words, "--flush", *settings])


def _sender(where: Address) -> Sender:
    client = connect(where)

    def fresh() -> Send:
        writer = Writer(client, where.artifacts)

        def send(records: Sequence[Record]) -> None:
            try:
                with answers(where):
                    writer(records)
            except (UnreachableError, RejectedError, OSError):
                raise
            except Exception as error:  # such as a library that an artifact store needs and that is not there
                raise RejectedError(f"{type(error).__name__}: {error}") from error

        return send

    return Sender(Spool(where.spool), fresh, f"tracking.uri={where.uri}")
