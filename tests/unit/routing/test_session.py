import base64

import pytest

from meshlib.model.endpoint import Endpoint
from meshlib.model.request import Headers, RequestHead
from meshlib.model.session import (
    MadeCookie,
    SessionCookie,
    SessionEnvelope,
    SessionHeader,
    SessionPolicy,
    SessionState,
)
from meshlib.routing.session import Session, SessionMark, as_session

HERE = Endpoint("10.0.0.1:80")
NOTHING = SessionMark()
WALL = 1_795_000_000.5
COOKIE = SessionCookie("s", MadeCookie(60, "/shop"))
# What Envoy 1.40 sets for 10.0.0.1:80 (field 1) that ends at 1795000060 (field 2).
FROM_ENVOY = base64.b64encode(b"\x0a\x0b10.0.0.1:80\x10\xfc\x8d\xf6\xd7\x06").decode()


def session(state: SessionState = COOKIE) -> Session:
    return Session(SessionPolicy(state))


def request(*headers: tuple[str, str], path: str = "/shop/cart", is_grpc: bool = False) -> RequestHead:
    return RequestHead("GET", "shop", path, Headers(headers), is_grpc=is_grpc)


def b64(value: bytes | str) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def read(state: SessionState, *headers: tuple[str, str], is_grpc: bool = False) -> SessionMark:
    return session(state).read(request(*headers, is_grpc=is_grpc), WALL)


def marked(
    state: SessionState, mark: SessionMark = NOTHING, *headers: tuple[str, str], is_grpc: bool = False
) -> Headers:
    return session(state).marked(Headers(headers), mark, HERE, "shop|v1", WALL, is_grpc=is_grpc)


def test_cookie_is_written_as_envoy_does() -> None:
    assert f's="{FROM_ENVOY}"; Max-Age=60; Path=/shop; HttpOnly' == marked(COOKIE).get("set-cookie")


def test_cookie_without_a_time_does_not_end() -> None:
    state = SessionCookie("s", MadeCookie(attributes=(("SameSite", "Lax"), ("Secure", ""))))
    line = marked(state).get("set-cookie")
    message = b64(b"\x0a\x0b10.0.0.1:80")
    assert f's="{message}"; SameSite=Lax; Secure; HttpOnly' == line


def test_cookie_of_envoy_is_read_until_it_ends() -> None:
    head = request(("cookie", f'other=1; s="{FROM_ENVOY}"'))
    assert SessionMark((HERE.address,)) == session().read(head, WALL)
    assert SessionMark((HERE.address,)) == session().read(head, 1_795_000_060.9)
    assert SessionMark() == session().read(head, 1_795_000_061.0)


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        (b"127.0.0.1:80", ("127.0.0.1:80",)),  # the older form
        (b"9.9.9.9:1", ()),  # parses as a message without an address
        (b"\x0a\x0b10.0.0.1:80\x1a\x01x", (HERE.address,)),  # with a field that nobody knows
        (b"\x0a\x0b10.0.0.1:8", ("\n\x0b10.0.0.1:8",)),  # cut off: no message, so an address that nobody has
        (b"\x0a\x02\xff\xfe", ("\n\x02��",)),  # no text
        (b"\x0a\x00", ()),
        (b"\x0a\x05/sock", ("unix:/sock",)),
        (b"", ()),
    ],
)
def test_cookies_of_all_kinds(value: bytes, addresses: tuple[str, ...]) -> None:
    assert SessionMark(addresses) == read(COOKIE, ("cookie", f"s={b64(value)}"))


@pytest.mark.parametrize("value", ["", "!", "MTA=x", "Ck", '""'])
def test_what_is_no_base64_asks_for_nothing(value: str) -> None:
    assert SessionMark() == read(COOKIE, ("cookie", f"s={value}"))


@pytest.mark.parametrize(
    ("path", "below", "expected"),
    [
        ("/shop", "/shop", True),
        ("/shop?x=1", "/shop", True),
        ("/shop/cart", "/shop", True),
        ("/shopping", "/shop", False),
        ("/shop", "/shop/", False),
        ("/shop/cart", "/shop/", True),
        ("/other", "", True),
        ("/other", "/", True),
    ],
)
def test_cookie_concerns_requests_below_its_path(path: str, below: str, expected: bool) -> None:
    state = SessionCookie("s", MadeCookie(path=below))
    assert expected is session(state).concerns(request(path=path))


def test_nothing_is_set_while_the_session_stays() -> None:
    headers = Headers((("a", "1"),))
    assert headers is session().marked(headers, SessionMark((HERE.address,)), HERE, "c", WALL, is_grpc=False)
    assert "set-cookie" in marked(COOKIE, SessionMark(("10.0.0.2:80",)))


def test_header_holds_the_address() -> None:
    state = SessionHeader("x-session")
    assert SessionMark((HERE.address,)) == read(state, ("x-session", b64(HERE.address)))
    assert SessionMark() == read(state)
    assert (b64(HERE.address),) == marked(state, SessionMark(), ("x-session", "old")).all("x-session")


def test_envelope_holds_the_service_s_own_value() -> None:
    state = SessionEnvelope("x-session")
    made = marked(state, SessionMark(), ("x-session", "own"))
    value = made.get("x-session")
    assert f"{b64(HERE.address)};UV:{b64('own')}" == value
    head = request(("x-session", value or ""))
    assert SessionMark((HERE.address,)) == session(state).read(head, WALL)
    assert "own" == session(state).opened(head).headers.get("x-session")
    plain = request(("x-session", "own"))
    assert SessionMark() == session(state).read(plain, WALL)
    assert plain is session(state).opened(plain)
    assert "x-session" not in marked(state), "a service that sets no value has no session"


def test_cookie_of_a_grpc_call_names_the_cluster() -> None:
    line = marked(COOKIE, is_grpc=True).get("set-cookie")
    assert line is not None
    assert line.startswith(f's="{b64("10.0.0.1:80;shop|v1")}"')
    mark = read(COOKIE, ("cookie", f"s={b64('10.0.0.1:80,10.0.0.2:80;shop|v1')}"), is_grpc=True)
    assert SessionMark(("10.0.0.1:80", "10.0.0.2:80"), "shop|v1") == mark
    assert SessionMark(("10.0.0.1:80",)) == read(COOKIE, ("cookie", f"s={b64('10.0.0.1:80')}"), is_grpc=True)
    assert "set-cookie" not in marked(COOKIE, SessionMark(("10.0.0.1:80",), "shop|v1"), is_grpc=True)
    assert "set-cookie" in marked(COOKIE, SessionMark(("10.0.0.1:80",), "shop|v2"), is_grpc=True)


def test_no_state_is_no_session() -> None:
    assert as_session(None) is None
    assert as_session(SessionPolicy()) is None
    assert as_session(SessionPolicy(COOKIE, is_strict=True)) is not None
