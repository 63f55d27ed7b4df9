"""Bearer tokens that tell the server which service account a client is: JWTs, signed with a key of the server's own."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from xds_server.identity import Identity
from xds_server.private_files import create_private

ISSUER = "meshlib-xds-server"
AUDIENCE = "xds-server"
_ALGORITHM = "ES256"
_LEEWAY_S = 5.0


class TokenRefused(Exception):
    """A token that is not accepted; the text says why, and never quotes it."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What an accepted token says."""

    identity: Identity
    expires_in_s: float


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Tokens:
    """Makes and verifies tokens.

    Args:
        wall_clock: Tokens carry calendar time.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, *, wall_clock: Callable[[], datetime] = _utc_now) -> None:
        self._key = key
        self._public_key = key.public_key()
        self._wall_clock = wall_clock

    @classmethod
    def open(cls, state_dir: Path, *, wall_clock: Callable[[], datetime] = _utc_now) -> "Tokens":
        """Load the key of a state directory; the first use makes it (`token.key`, mode 0600).

        Raises:
            ValueError: The file holds no such key.
            OSError: It cannot be read or made.
        """
        path = state_dir / "token.key"
        pem = create_private(path, _new_key_pem)
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} holds no private key in PEM") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError(f"{path} must hold a P-256 key")
        return cls(key, wall_clock=wall_clock)

    def issue(self, identity: Identity, ttl: timedelta) -> str:
        """Return a token for an identity.

        Raises:
            ValueError: The lifetime is not positive, or ends after the last date that there is.
        """
        if ttl <= timedelta(0):
            raise ValueError("a token's lifetime must be positive")
        now = self._wall_clock()
        try:
            expires_at = now + ttl
        except OverflowError:
            raise ValueError(f"a token's lifetime of {ttl.days} days ends after the year 9999") from None
        claims = {"iss": ISSUER, "aud": [AUDIENCE], "sub": identity.subject, "iat": now, "exp": expires_at}
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)

    def verify(self, token: str) -> Claims:
        """Check signature, issuer, audience and lifetime.

        Raises:
            TokenRefused: Any of them is wrong.
        """
        now = self._wall_clock().timestamp()
        try:
            claims = jwt.decode(
                token,
                self._public_key,
                algorithms=[_ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                # Times are checked below: PyJWT reads the system's clock.
                options={
                    "require": ["exp", "sub", "iss", "aud"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
            expires_at = float(claims["exp"])
            if float(claims.get("nbf", claims.get("iat", now))) > now + _LEEWAY_S:
                raise TokenRefused("the token is not valid yet")
            identity = Identity.from_subject(claims["sub"])
        except jwt.InvalidTokenError as error:
            raise TokenRefused(f"the token is not accepted: {error}") from error
        except (TypeError, ValueError) as error:
            raise TokenRefused(f"the token's claims cannot be used: {error}") from error
        if expires_at <= now:
            raise TokenRefused("the token has expired")
        return Claims(identity, expires_at - now)

    def verify_header(self, authorization: str) -> Claims:
        """Check the value of an `authorization` header, `Bearer <token>`.

        Raises:
            TokenRefused: It is no such header, or the token is refused.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise TokenRefused("authorization must be `Bearer <token>`")
        return self.verify(token.strip())


def _new_key_pem() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
