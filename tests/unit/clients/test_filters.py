"""Filters: order, answers, and who hears of what."""

import inspect
from typing import Any

import pytest

from meshlib import AsyncFilter, Filter, FilterAnswer, FilterHeaders, FilterRequest, FilterResponse
from meshlib.clients.filters import AsyncFilterChain, FilterChain
from meshlib.testing import arun_filters, run_filters


class Recorder(Filter):
    def __init__(self, name: str, log: list[str], *, answer: FilterAnswer | None = None, fails: str = "") -> None:
        self.name, self.log, self.answer, self.fails = name, log, answer, fails

    def on_request(self, request: FilterRequest) -> FilterAnswer | None:
        self.log.append(f"{self.name} request")
        if self.fails == "request":
            raise ValueError(self.name)
        return self.answer

    def on_response(self, request: FilterRequest, response: FilterResponse) -> None:
        self.log.append(f"{self.name} {response.status}")
        if self.fails == "response":
            raise ValueError(self.name)

    def on_error(self, request: FilterRequest, error: BaseException) -> None:
        self.log.append(f"{self.name} {type(error).__name__}")


class Waiting(AsyncFilter):
    async def on_request(self, request: FilterRequest) -> FilterAnswer | None:
        request.headers["x-waited"] = "yes"
        return None


async def outcome(run: Any, filters: list[Filter]) -> Any:
    made = run(filters, "GET", "http://checkout/")
    return await made if inspect.isawaitable(made) else made


def test_filters_run_in_order_and_back() -> None:
    log: list[str] = []
    run_filters([Recorder(name, log) for name in "abc"], "GET", "http://checkout/")
    assert log == ["a request", "b request", "c request", "c 200", "b 200", "a 200"]


def test_answer_goes_back_through_those_that_saw_the_request() -> None:
    log: list[str] = []
    filters = [Recorder("a", log), Recorder("b", log, answer=FilterAnswer(403, body=b"no")), Recorder("c", log)]
    found = run_filters(filters, "GET", "http://checkout/")
    assert (found.was_sent, found.response.status, found.body) == (False, 403, b"no")
    assert log == ["a request", "b request", "b 403", "a 403"]


@pytest.mark.parametrize(
    ("fails", "heard"),
    [
        ("request", ["a request", "b request", "a ValueError"]),
        ("response", ["a request", "b request", "c request", "c 200", "b 200", "a ValueError"]),
    ],
)
async def test_what_a_filter_raises_reaches_the_others_and_the_caller(fails: str, heard: list[str]) -> None:
    for run in (run_filters, arun_filters):
        log: list[str] = []
        filters = [Recorder("a", log), Recorder("b", log, fails=fails), Recorder("c", log)]
        with pytest.raises(ValueError):
            await outcome(run, filters)
        assert log == heard


async def test_async_filters_need_an_async_client() -> None:
    with pytest.raises(TypeError, match="Waiting is an AsyncFilter"):
        FilterChain([Waiting()])
    with pytest.raises(TypeError, match="is no Filter"):
        AsyncFilterChain([object()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="is no Filter"):
        FilterChain([object()])  # type: ignore[list-item]
    log: list[str] = []
    found = await arun_filters([Waiting(), Recorder("a", log)], "GET", "http://checkout/orders?id=1")
    assert (found.request.headers["x-waited"], found.request.path, log) == (
        "yes",
        "/orders?id=1",
        ["a request", "a 200"],
    )


def test_headers_are_found_in_any_case_and_kept_in_order() -> None:
    headers = FilterHeaders([("X-One", "1"), ("x-two", "2"), ("x-one", "3")])
    assert (headers["x-ONE"], headers.all("X-one"), "x-TWO" in headers, len(headers)) == ("1", ["1", "3"], True, 2)
    assert not headers.is_changed
    headers["x-one"] = "4"
    headers.add("x-two", "5")
    assert headers.items_list == [("x-one", "4"), ("x-two", "2"), ("x-two", "5")]
    del headers["X-Two"]
    assert (list(headers), headers.is_changed) == (["x-one"], True)
    with pytest.raises(KeyError):
        del headers["x-two"]
    assert "4" not in repr(headers)
