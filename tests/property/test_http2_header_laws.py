"""Header blocks of HTTP/2: what goes out is what h2 would make of it, and what comes in is refused where h2 refuses it."""

from contextlib import suppress

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httpcore
import pytest
from h2.utilities import HeaderValidationFlags, normalize_outbound_headers, validate_headers, validate_outbound_headers
from hpack import NeverIndexedHeaderTuple
from hypothesis import example, given
from hypothesis import strategies as st

from meshlib.clients.http2 import H2_CONFIG
from meshlib.clients.http2_headers import check_fields, receive, request_fields

Pairs = list[tuple[bytes, bytes]]

# Any character at either end and in the middle, and what the rules speak of.
some = st.binary(max_size=3) | st.integers(0, 255).map(lambda code: bytes([code]))
names = st.sampled_from(
    [b"x-user", b"te", b"connection", b"upgrade", b"cookie", b"keep-alive", b"X-Upper"]
) | st.builds(lambda start, end: start + b"x" + end, some, some)
values = st.sampled_from([b"", b"trailers", b"Trailers", b"close", b"a=b"]) | st.builds(
    lambda start, end: start + b"x" + end, some, some
)
pseudo = st.sampled_from([b":status", b":status", b":path", b":method", b":protocol", b":other", b":", b""])
response_fields = st.lists(st.tuples(names | pseudo, values), max_size=4).flatmap(
    lambda rest: st.sampled_from([rest, [(b":status", b"200"), *rest], [(b":status", b"200"), *rest]])
)


@given(response_fields, st.booleans())
@example([(b":status", b"200"), (b"a:b", b"")], False)
@example([(b"x", b"1"), (b":status", b"200")], False)
def test_what_comes_in_is_refused_where_h2_refuses_it(fields: Pairs, is_trailer: bool) -> None:
    flags = HeaderValidationFlags(
        is_client=True, is_trailer=is_trailer, is_response_header=not is_trailer, is_push_promise=False
    )
    try:
        list(validate_headers(fields, flags))
        is_good = True
    except (h2.exceptions.ProtocolError, IndexError):
        is_good = False
    try:
        check_fields(fields, is_trailer=is_trailer)
        assert is_good
    except h2.exceptions.ProtocolError:
        assert not is_good


sent_names = st.sampled_from(
    [b"x-user", b"X-Upper", b" x-blank ", b"te", b"connection", b"proxy-connection", b"keep-alive", b"upgrade"]
) | st.sampled_from(
    [b"authorization", b"proxy-authorization", b"cookie", b"content-length", b"transfer-encoding", b"host", b":path"]
)
sent_values = st.sampled_from([b"", b"1", b" b ", b"trailers", b"Trailers", b"v" * 200, b"c" * 19, b"c" * 20])


@given(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"CONNECT"]),
    st.sampled_from([b"/", b"/a?b=c", b" /x ", b"", b"*"]),
    st.lists(st.tuples(sent_names, sent_values), max_size=5),
)
def test_what_goes_out_is_what_h2_makes_of_it(method: bytes, path: bytes, headers: Pairs) -> None:
    headers = [(b"host", b"a"), *headers]
    request = httpcore.Request(method, "http://a/", headers=headers)
    request.url.target = path
    flags = HeaderValidationFlags(is_client=True, is_trailer=False, is_response_header=False, is_push_promise=False)
    block = [(b":method", method), (b":authority", b"a"), (b":scheme", b"http"), (b":path", path)]
    # As httpcore has it.
    block += [(name.lower(), value) for name, value in headers if name.lower() not in (b"host", b"transfer-encoding")]
    expected: Pairs | None = None
    with suppress(h2.exceptions.ProtocolError):
        expected = list(validate_outbound_headers(normalize_outbound_headers(block, flags), flags))
    found: tuple[Pairs, bool] | None = None
    with suppress(h2.exceptions.ProtocolError):
        found = request_fields(request)
    if expected is None or found is None:
        assert (True, True) == (expected is None, found is None)
        return
    assert (expected, [type(field) for field in expected]) == (found[0], [type(field) for field in found[0]])
    assert found[1] == any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)


@pytest.mark.parametrize(
    "header", [(b"x-bad", b"a\nb"), (b"x-bad", b"a\0"), (b"x bad", b""), (b"x:bad", b""), (b"", b"x"), (b"\xe4", b"")]
)
def test_characters_that_no_header_may_have_do_not_go_out(header: tuple[bytes, bytes]) -> None:
    request = httpcore.Request("GET", "http://a/", headers=[(b"host", b"a"), header])
    with pytest.raises(h2.exceptions.ProtocolError):
        request_fields(request)


def test_secrets_are_kept_out_of_compression_and_of_memory() -> None:
    headers = [(b"host", b"a"), (b"authorization", b"Bearer 7"), (b"cookie", b"a=b"), (b"cookie", b"c" * 20)]
    fields, _ = request_fields(httpcore.Request("GET", "http://a/", headers=headers))
    assert [True, True, False] == [isinstance(field, NeverIndexedHeaderTuple) for field in fields[4:]]
    again, _ = request_fields(httpcore.Request("GET", "http://a/", headers=headers))
    assert [False] * 3 == [old is new for old, new in zip(fields[4:], again[4:], strict=True)]
    assert fields[1] is again[1]


def test_connection_whose_server_says_what_is_malformed_is_over() -> None:
    """As when h2 finds it: everything that came with it is lost, and the server is told."""
    ours = h2.connection.H2Connection(H2_CONFIG)
    ours.initiate_connection()
    theirs = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, validate_outbound_headers=False, normalize_outbound_headers=False)
    )
    theirs.initiate_connection()
    ours.send_headers(1, [(b":method", b"GET"), (b":authority", b"a"), (b":scheme", b"http"), (b":path", b"/")], True)
    theirs.receive_data(ours.data_to_send())
    theirs.send_headers(1, [(b":status", b"200"), (b"x-good", b"1")])
    assert any(isinstance(event, h2.events.ResponseReceived) for event in receive(ours, theirs.data_to_send()))
    theirs.send_headers(1, [(b"x-Trailer", b"1")], end_stream=True)
    with pytest.raises(h2.exceptions.ProtocolError, match="x-Trailer"):
        receive(ours, theirs.data_to_send())
    events = theirs.receive_data(ours.data_to_send())
    ends = [event for event in events if isinstance(event, h2.events.ConnectionTerminated)]
    assert [h2.errors.ErrorCodes.PROTOCOL_ERROR] == [event.error_code for event in ends]
    with pytest.raises(h2.exceptions.ProtocolError):
        ours.send_headers(3, [(b":method", b"GET")], True)
