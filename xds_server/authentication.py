"""Who is on the other end of the secure listener: the identity of its token."""

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from xds_server.identity import Identity
from xds_server.snapshot import TypeState
from xds_server.stream import StreamRefused
from xds_server.tokens import TokenRefused, Tokens


class SecretSource(Protocol):
    """Secrets by identity; `acquire` and `release` pair up. `now` is monotonic seconds."""

    def acquire(self, identity: Identity, now: float) -> TypeState: ...

    def release(self, identity: Identity) -> None: ...


@dataclass(frozen=True, slots=True)
class Authentication:
    """What a secure listener needs to know its clients."""

    tokens: Tokens
    secrets: SecretSource

    def identify(self, context: Any) -> tuple[Identity | None, float | None]:
        """Return identity and expiry (loop time) of a call's token; nothing without a token.

        Raises:
            StreamRefused: The token is not good.
        """
        authorization = dict(context.invocation_metadata() or ()).get("authorization")
        if authorization is None:
            return None, None
        if isinstance(authorization, bytes):
            authorization = authorization.decode("latin-1")
        try:
            claims = self.tokens.verify_header(authorization)
        except TokenRefused as refused:
            raise StreamRefused("UNAUTHENTICATED", str(refused)) from refused
        return claims.identity, asyncio.get_running_loop().time() + claims.expires_in_s

    def require(self, context: Any) -> Identity:
        """Return the identity of a call that nobody may make without one.

        Raises:
            StreamRefused: It has none.
        """
        identity, _ = self.identify(context)
        if identity is None:
            raise StreamRefused("UNAUTHENTICATED", "this needs a token, made by `xds-server token`")
        return identity
