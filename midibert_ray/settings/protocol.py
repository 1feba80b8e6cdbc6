"""The settings `protocol.*`: every field of a protocol, to be switched alone."""

from dataclasses import dataclass, fields, make_dataclass
from typing import Any, ClassVar

from midibert_ray.music.protocol import Protocol
from midibert_ray.settings.validators import ConfigError

_Switches: Any = make_dataclass(
    "_Switches",
    [(item.name, item.type | None, None) for item in fields(Protocol) if item.metadata],  # type: ignore[operator]
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig(_Switches):
    """The fields of `music.protocol.Protocol`; None leaves one to `tokens.protocol`, and all names as they are."""

    documented_in: ClassVar[type] = Protocol
    """The class whose fields have the docstrings."""

    def upon(self, protocol: Protocol) -> Protocol:
        """A protocol with these fields switched.

        Raises:
            ConfigError: where a value is not allowed, or contradicts another.
        """
        changes = {name: value for name, value in vars(self).items() if value is not None}
        try:
            return protocol.switch(**changes)
        except ValueError as error:
            raise ConfigError(f"protocol.{error}") from None
