"""Tokens: what is accepted and why the rest is not."""

import stat
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from xds_server.identity import Identity
from xds_server.private_files import write_atomically
from xds_server.tokens import AUDIENCE, ISSUER, TokenRefused, Tokens

NOW = datetime(2030, 1, 1, tzinfo=UTC)
IDENTITY = Identity("default", "checkout")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def tokens(key, clock) -> Tokens:
    return Tokens(key, wall_clock=clock)


def signed(key, algorithm: str = "ES256", **changes) -> str:
    claims = {
        "iss": ISSUER,
        "aud": [AUDIENCE],
        "sub": IDENTITY.subject,
        "exp": NOW + timedelta(hours=1),
        **changes,
    }
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm=algorithm)


def test_token_tells_its_identity_and_its_remaining_lifetime(tokens, clock):
    token = tokens.issue(IDENTITY, timedelta(hours=1))
    clock.now += timedelta(minutes=20)
    claims = tokens.verify(token)
    assert (IDENTITY, 2400.0) == (claims.identity, claims.expires_in_s)


def test_expired_token_is_refused(tokens, clock):
    token = tokens.issue(IDENTITY, timedelta(seconds=10))
    clock.now += timedelta(seconds=10)
    with pytest.raises(TokenRefused, match="expired"):
        tokens.verify(token)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iss": "someone"}, "issuer"),
        ({"aud": ["other"]}, "(?i)audience"),
        ({"sub": "alice"}, "claims cannot be used"),
        ({"sub": "system:serviceaccount:Default:x"}, "claims cannot be used"),
        ({"sub": "system:serviceaccount:a:b:c"}, "claims cannot be used"),
        ({"exp": None}, "exp"),
        ({"sub": None}, "sub"),
        ({"nbf": NOW + timedelta(minutes=5)}, "not valid yet"),
    ],
)
def test_wrong_claim_is_named(tokens, key, changes, said):
    with pytest.raises(TokenRefused, match=said):
        tokens.verify(signed(key, **changes))


def test_another_key_is_refused(tokens):
    with pytest.raises(TokenRefused, match="not accepted"):
        tokens.verify(signed(ec.generate_private_key(ec.SECP256R1())))


def test_unsigned_token_is_refused(tokens):
    with pytest.raises(TokenRefused, match="not accepted"):
        tokens.verify(signed(None, algorithm="none"))


def test_symmetric_signature_is_refused(tokens):
    with pytest.raises(TokenRefused, match="not accepted"):
        tokens.verify(signed("secret" * 8, algorithm="HS256"))


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "abc"])
def test_header_without_a_bearer_token_is_refused(tokens, header):
    with pytest.raises(TokenRefused, match="must be `Bearer <token>`"):
        tokens.verify_header(header)


def test_scheme_is_read_in_any_case(tokens):
    token = tokens.issue(IDENTITY, timedelta(hours=1))
    assert IDENTITY == tokens.verify_header(f"bearer {token}").identity


def test_refusal_does_not_quote_the_token(tokens, key):
    token = signed(key, iss="someone")
    with pytest.raises(TokenRefused) as refused:
        tokens.verify(token)
    assert token not in str(refused.value)


def test_lifetime_must_be_positive(tokens):
    with pytest.raises(ValueError, match="positive"):
        tokens.issue(IDENTITY, timedelta(0))


def test_lifetime_has_an_end(tokens):
    with pytest.raises(ValueError, match="after the year 9999"):
        tokens.issue(IDENTITY, timedelta(days=4_000_000))


def test_key_file_is_made_once_and_private(tmp_path, clock):
    token = Tokens.open(tmp_path, wall_clock=clock).issue(IDENTITY, timedelta(hours=1))
    assert IDENTITY == Tokens.open(tmp_path, wall_clock=clock).verify(token).identity
    assert 0o600 == stat.S_IMODE((tmp_path / "token.key").stat().st_mode)


def test_damaged_key_file_is_named(tmp_path):
    write_atomically(tmp_path / "token.key", b"x")
    with pytest.raises(ValueError, match=r"token\.key holds no private key"):
        Tokens.open(tmp_path)
