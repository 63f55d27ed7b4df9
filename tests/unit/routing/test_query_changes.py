import pytest

from meshlib.model.headers import AppendAction, QueryChange
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.format import Facts, Scene
from meshlib.routing.query_changes import compile_query_changes

APPEND, ABSENT = AppendAction.APPEND_IF_EXISTS_OR_ADD, AppendAction.ADD_IF_ABSENT
SET, REPLACE = AppendAction.OVERWRITE_IF_EXISTS_OR_ADD, AppendAction.OVERWRITE_IF_EXISTS


def changed(path: str, *changes: QueryChange) -> str:
    head = RequestHead("GET", "svc", path, Headers((("x-1", "v w"),)))
    return compile_query_changes(changes, Facts())(path, Scene(head))


# What Envoy 1.40 made of them.
@pytest.mark.parametrize(
    ("path", "change", "expected"),
    [
        ("/p", QueryChange("n", "1", APPEND), "/p?n=1"),
        ("/p?", QueryChange("n", "1", APPEND), "/p?n=1"),
        ("/p?a=1&b=2&a=3", QueryChange("a", "4", APPEND), "/p?a=1&a=3&a=4&b=2"),
        ("/p?a=1&b=2&a=3", QueryChange("a"), "/p?b=2"),
        ("/p?a=1", QueryChange("a"), "/p"),
        ("/p?a=1", QueryChange("a", "x", ABSENT), "/p?a=1"),
        ("/p", QueryChange("a", "x", ABSENT), "/p?a=x"),
        ("/p?a=1&a=2", QueryChange("a", "x", REPLACE), "/p?a=x"),
        ("/p", QueryChange("a", "x", REPLACE), "/p"),
        ("/p?z&a=1", QueryChange("a", "x", SET), "/p?a=x&z="),
        ("/p", QueryChange("n", "a b&c=d/\u00e9%%+", APPEND), "/p?n=a%20b%26c%3Dd%2F%E9%25%2B"),
        ("/p?a=1", QueryChange("n", "%REQ(:path)%", APPEND), "/p?a=1&n=%2Fp%3Fa%3D1"),
        ("/p?%61=1", QueryChange("a"), "/p"),
    ],
)
def test_changes(path: str, change: QueryChange, expected: str) -> None:
    assert expected == changed(path, change)


def test_what_was_there_stays_escaped() -> None:
    assert changed("/p?b=%20%0d&a=%26", QueryChange("n", "%REQ(x-1)%", APPEND)) == "/p?a=%26&b=%20%0d&n=v%20w"


def test_changes_see_the_query_as_it_was() -> None:
    assert changed("/p", QueryChange("n", "1", APPEND), QueryChange("m", "%QUERY_PARAM(n)%", APPEND)) == "/p?m=&n=1"
