"""HTTP/2 without a `Call`: the same connections, faults and cancellations once more with a mesh whose requests all go that way."""

from collections.abc import Callable, Iterator
from typing import Any

import h2.connection
import pytest

from . import test_http2_faults, test_http2_sharing
from .test_http2_faults import Server
from .test_httpx_express import DRIVERS, RETRY, ExpressMesh, Taken, compare, get, mesh, post, taken

__all__ = ["mesh", "taken"]

hectic = test_http2_sharing.hectic

test_cut_off = test_http2_faults.test_response_that_ends_at_any_byte
test_slow = test_http2_faults.test_slow_servers_are_given_up_when_the_time_of_the_call_is_over
test_half_open = test_http2_faults.test_half_open_peers_are_found_out
test_leaves = test_http2_faults.test_a_server_that_leaves_with_its_answer_has_answered
test_reset = test_http2_faults.test_a_stream_that_is_reset_in_its_body_is_an_error_and_takes_no_other_with_it
test_goes_away = test_http2_faults.test_a_server_that_goes_away_answers_what_it_has_taken
test_limit = test_http2_faults.test_no_more_streams_are_opened_than_the_server_allows
test_goodbye = test_http2_faults.test_a_server_that_has_said_goodbye_meanwhile_gets_no_request
test_trailers = test_http2_faults.test_trailers_come_with_the_end_of_the_body
test_threads = test_http2_sharing.test_threads_share_a_connection
test_cancelled = test_http2_sharing.test_requests_that_are_cancelled_are_given_up_on_the_server_too
test_late = test_http2_sharing.test_a_request_that_is_late_ends_alone
test_own_time = test_http2_sharing.test_each_has_its_own_time_while_another_reads
test_no_limit = test_http2_sharing.test_a_server_that_names_no_limit_sets_none


@pytest.mark.parametrize("name", DRIVERS)
def test_answers_come_to_the_same(name: str, taken: Taken, raw_server: Any) -> None:
    """Good and bad ones, with bodies both ways; and retries, which are the general machine's."""
    servers: list[Any] = []

    def calls(driver: Any, mesh: ExpressMesh) -> Iterator[Callable[[], Any]]:
        left = iter(["200", "404", "503", "204", "503", "503", "503", "200", "200"])

        def answer(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
            status = next(left)
            state.send_headers(stream, [(":status", status), ("x-number", str(server.count))])
            state.send_data(stream, b"" if status == "204" else b"hello", end_stream=True)

        servers[:] = [raw_server(Server(answer).handle)]
        mesh.serve("checkout", {"c": [servers[0].address]}, retry=RETRY, http2=True)
        client = driver.client(timeout=20)
        for number in range(6):
            yield lambda number=number: post(client) if number % 2 else get(client)

    express, general = compare(name, calls, lambda: [server.address for server in servers])
    assert express == general
    assert taken.count > 2
