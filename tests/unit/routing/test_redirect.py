import pytest

from meshlib.model.local_reply import BodyFormat
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import AppendAction, DirectResponse, HeaderAdd, HeaderMutation, Redirect, RegexRewrite
from meshlib.routing.changes import Changes, Responder
from meshlib.routing.format import Facts
from meshlib.routing.headers import response_mutator
from meshlib.routing.redirect import compile_direct_response, compile_location, compile_redirect

PREFIX = PathMatcher(PathKind.PREFIX, "/old")


def mutator(*adds: HeaderAdd) -> Responder:
    route = response_mutator([HeaderMutation(response_add=adds)], Facts())
    return Responder(route, Changes((), is_response=True))


def request(
    authority: str = "svc", path: str = "/old/a?q=1", *, scheme: str = "http", method: str = "GET"
) -> RequestHead:
    return RequestHead(method, authority, path, Headers(), scheme=scheme)


@pytest.mark.parametrize(
    ("redirect", "authority", "scheme", "expected"),
    [
        (Redirect(), "svc", "http", "http://svc/old/a?q=1"),
        (Redirect(https=True), "svc", "http", "https://svc/old/a?q=1"),
        (Redirect(https=True), "svc:80", "http", "https://svc/old/a?q=1"),
        (Redirect(https=True), "svc:8080", "http", "https://svc:8080/old/a?q=1"),
        (Redirect(scheme="http"), "svc:443", "https", "http://svc/old/a?q=1"),
        (Redirect(), "svc:80", "http", "http://svc:80/old/a?q=1"),
        (Redirect(https=True), "[::1]:80", "http", "https://[::1]/old/a?q=1"),
        (Redirect(https=True), "[::1]", "http", "https://[::1]/old/a?q=1"),
        (Redirect(host="h"), "svc:80", "http", "http://h/old/a?q=1"),
        (Redirect(port=8443), "svc:80", "http", "http://svc:8443/old/a?q=1"),
        (Redirect(host="h", port=1), "svc", "http", "http://h:1/old/a?q=1"),
        (Redirect(path="/p"), "svc", "http", "http://svc/p?q=1"),
        (Redirect(path="p"), "svc", "http", "http://svc/p?q=1"),
        (Redirect(path="/p?z=1"), "svc", "http", "http://svc/p?z=1"),
        (Redirect(path="/p?z=1", strip_query=True), "svc", "http", "http://svc/p?z=1"),
        (Redirect(path="/p", strip_query=True), "svc", "http", "http://svc/p"),
        (Redirect(strip_query=True), "svc", "http", "http://svc/old/a"),
        (Redirect(prefix_rewrite="/new"), "svc", "http", "http://svc/new/a?q=1"),
        (Redirect(prefix_rewrite="n"), "svc", "http", "http://svc/n/a?q=1"),
        (Redirect(regex_rewrite=RegexRewrite("^/old", "")), "svc", "http", "http://svc/a?q=1"),
        (Redirect(regex_rewrite=RegexRewrite(".*", "")), "svc", "http", "http://svc/old/a?q=1"),
    ],
)
def test_location(redirect: Redirect, authority: str, scheme: str, expected: str) -> None:
    assert compile_location(redirect, PREFIX)(request(authority, scheme=scheme)) == expected


def test_redirect_reply() -> None:
    answer = compile_redirect(Redirect(status=307, https=True), PREFIX, mutator(HeaderAdd("x", "%REQ(:path)%")))
    expected = LocalReply(307, "", "direct_response", b"", (("location", "https://svc/old/a?q=1"), ("x", "/old/a?q=1")))
    assert answer(request()) == expected


def test_direct_response_has_a_text_body() -> None:
    answer = compile_direct_response(DirectResponse(200, b"hello"), mutator())
    assert answer(request()) == LocalReply(200, "", "direct_response", b"hello", (("content-type", "text/plain"),))


def test_content_type_of_a_direct_response_can_be_changed() -> None:
    answer = compile_direct_response(DirectResponse(200, b"{}"), mutator(HeaderAdd("content-type", "application/json")))
    assert answer(request()).headers == (("content-type", "application/json"),)


def test_direct_response_without_a_body_has_no_content_type() -> None:
    change = HeaderAdd("content-type", "a/b", AppendAction.OVERWRITE_IF_EXISTS_OR_ADD)
    answer = compile_direct_response(DirectResponse(200), mutator(change))
    assert answer(request()) == LocalReply(200, "", "direct_response")


@pytest.mark.parametrize("status", [201, 302])
def test_created_and_redirections_have_a_location(status: int) -> None:
    answer = compile_direct_response(DirectResponse(status), mutator())
    assert answer(request()).headers == (("location", "http://svc/old/a?q=1"),)


def test_status_204_has_no_body() -> None:
    answer = compile_direct_response(DirectResponse(204, b"hello"), mutator())
    assert answer(request()) == LocalReply(204, "", "direct_response", b"", (("content-type", "text/plain"),))


def test_the_body_of_a_direct_response_can_be_made() -> None:
    form = BodyFormat("<%LOCAL_REPLY_BODY%> %REQ(x-9)% %RESPONSE_CODE% %PATH%")
    change = HeaderAdd("content-type", "a/b", AppendAction.OVERWRITE_IF_EXISTS_OR_ADD)
    answer = compile_direct_response(DirectResponse(200, b"hi", form), mutator(change))
    # There is nothing of an answer yet while its body is made.
    expected = LocalReply(200, "", "direct_response", b"<hi> - 0 /old/a?q=1", (("content-type", "a/b"),))
    assert answer(request()) == expected
    # A content type that is asked for comes after all mutations, as in Envoy.
    answer = compile_direct_response(DirectResponse(200, b"", form, "text/html"), mutator(change))
    assert answer(request()).headers == (("content-type", "text/html"),)
    empty = compile_direct_response(DirectResponse(200, b"x", BodyFormat("")), mutator(change))
    assert empty(request()) == LocalReply(200, "", "direct_response")


def test_head_gets_the_length_instead_of_the_body() -> None:
    reply = compile_direct_response(DirectResponse(200, b"hello"), mutator())(request(method="HEAD"))
    assert (reply.body, reply.headers) == (b"", (("content-type", "text/plain"), ("content-length", "5")))


def test_grpc_calls_cannot_use_either() -> None:
    head = RequestHead("POST", "svc", "/p.S/M", Headers(), is_grpc=True)
    body = b"Matching route has inappropriate action"
    redirect = compile_redirect(Redirect(), PREFIX, mutator())(head)
    direct = compile_direct_response(DirectResponse(200, b"x"), mutator())(head)
    assert redirect == LocalReply(301, "", "direct_response", body, grpc_status=14)
    assert direct == LocalReply(200, "", "direct_response", body, grpc_status=14)


def test_mutations_of_a_redirect_see_the_rewritten_path() -> None:
    add = HeaderAdd("x", "%REQ(:path)% %REQ(x-envoy-original-path)%")
    answer = compile_redirect(Redirect(prefix_rewrite="/new"), PREFIX, mutator(add))
    assert answer(request()).headers == (("location", "http://svc/new/a?q=1"), ("x", "/new/a?q=1 /old/a?q=1"))
