"""In which order the addresses of one endpoint are connected to."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["DEFAULT_ORDER", "MAX_DIALS", "DialOrder"]

MAX_DIALS = 16
"""Addresses of one endpoint that are tried; a connection attempt has a few seconds, and 250 ms lie between two of them."""


@dataclass(frozen=True, slots=True)
class DialOrder:
    """Which addresses come first (`happy_eyeballs_config`).

    Attributes:
        version: 4 or 6, of the addresses tried first where there are such; None: that of the endpoint's first address.
        count: So many of them are tried, then one of the other family, and so on. At least 1.
    """

    version: int | None = None
    count: int = 1

    def of(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return addresses (`ip:port`) in the order in which they are tried.

        Source: RFC 8305, section 4; Envoy 1.40, `HappyEyeballsConnectionProvider`.
        """
        given = tuple(addresses)
        if not given:
            return ()
        is_six_first = given[0].startswith("[") if self.version is None else self.version == 6
        ours = [address for address in given if address.startswith("[") is is_six_first]
        others = [address for address in given if address.startswith("[") is not is_six_first]
        found: list[str] = []
        while ours or others:
            found += ours[: self.count]
            found += others[:1]
            del ours[: self.count], others[:1]
        return tuple(found)


DEFAULT_ORDER = DialOrder()
