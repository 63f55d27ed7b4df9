import pytest

from meshlib.model.match_tree import And, Field, MatchList, MatchMap, MatchTree, Not, Or, Predicate, Single, ToRoutes
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.match_tree import compile_tree


def head(*headers: tuple[str, str]) -> RequestHead:
    return RequestHead("GET", "svc", "/a", Headers(headers))


def one(header: str, value: str, kind: StringKind = StringKind.EXACT) -> Single:
    return Single(header, StringMatcher(kind, value))


A, B = one("x-1", "a"), one("x-2", "b")


@pytest.mark.parametrize(
    ("predicate", "headers", "holds"),
    [
        (A, (("x-1", "a"),), True),
        (A, (("x-1", "a"), ("x-1", "a")), False),
        (one("x-1", "a,b"), (("x-1", "a"), ("x-1", "b")), True),
        (A, (), False),
        (one("", "", StringKind.PREFIX), (("x-1", "a"),), False),
        (Not(A), (), True),
        (And((A, B)), (("x-1", "a"),), False),
        (And((A, Not(B))), (("x-1", "a"),), True),
        (Or((A, B)), (("x-2", "b"),), True),
        (one(":path", "/a"), (), True),
    ],
)
def test_predicates(predicate: Predicate, headers: tuple[tuple[str, str], ...], holds: bool) -> None:
    find = compile_tree(MatchList((Field(predicate, ToRoutes((0,))),), ToRoutes((1,))))
    assert find(head(*headers)) == ((0,) if holds else (1,))


def test_entry_that_leads_nowhere_is_passed_over() -> None:
    nowhere: MatchTree = MatchList((Field(B, ToRoutes((0,))),))
    find = compile_tree(MatchList((Field(A, nowhere), Field(A, ToRoutes((1,))))))
    assert find(head(("x-1", "a"))) == (1,)
    assert find(head(("x-1", "a"), ("x-2", "b"))) == (0,)
    assert find(head()) is None


def test_longest_prefix_that_leads_somewhere() -> None:
    nested = MatchList((Field(B, ToRoutes((2,))),))
    entries: tuple[tuple[str, MatchTree], ...] = (("a", ToRoutes((1,))), ("ab", nested), ("", ToRoutes((0,))))
    find = compile_tree(MatchMap("x-1", entries, is_prefix=True, otherwise=ToRoutes((9,))))
    assert find(head(("x-1", "abc"))) == (1,)
    assert find(head(("x-1", "abc"), ("x-2", "b"))) == (2,)
    assert find(head(("x-1", "z"))) == (0,)
    assert find(head()) == (9,)


def test_exact_map() -> None:
    find = compile_tree(MatchMap("x-1", (("a", ToRoutes((1, 2))),)))
    assert find(head(("x-1", "a"))) == (1, 2)
    assert find(head(("x-1", "ab"))) is None


def test_empty_tree_fits_nothing() -> None:
    assert compile_tree(None)(head()) is None
