"""Matcher trees, compiled: which routes of a virtual host a request may take.

Source: Envoy `ListMatcher`, `ExactMapMatcher`, `PrefixMapMatcher` (`source/common/matcher`).
"""

from collections.abc import Callable
from typing import assert_never

from meshlib.matching import HeadTest, compile_string
from meshlib.model.match_tree import And, MatchList, MatchMap, MatchTree, Not, Or, Predicate, Single, ToRoutes
from meshlib.model.request import RequestHead

__all__ = ["Finder", "compile_tree"]

Finder = Callable[[RequestHead], tuple[int, ...] | None]
"""Numbers of the routes that may take a request; None: nothing in the tree fits."""


def _value(head: RequestHead, header: str) -> str | None:
    values = head.values(header) if header else ()
    return ",".join(values) if values else None


def _compile_predicate(predicate: Predicate) -> HeadTest:
    match predicate:
        case Single(header=header, test=test):
            fits = compile_string(test)
            return lambda head: (value := _value(head, header)) is not None and fits(value)
        case And(parts=parts):
            all_of = tuple(_compile_predicate(part) for part in parts)
            return lambda head: all(holds(head) for holds in all_of)
        case Or(parts=parts):
            any_of = tuple(_compile_predicate(part) for part in parts)
            return lambda head: any(holds(head) for holds in any_of)
        case Not(part=part):
            holds = _compile_predicate(part)
            return lambda head: not holds(head)
        case _:
            assert_never(predicate)


def _nothing(head: RequestHead) -> tuple[int, ...] | None:
    return None


def _compile_list(tree: MatchList, otherwise: Finder) -> Finder:
    fields = tuple((_compile_predicate(field.predicate), compile_tree(field.leads_to)) for field in tree.fields)

    def find(head: RequestHead) -> tuple[int, ...] | None:
        for holds, leads_to in fields:
            if holds(head) and (found := leads_to(head)) is not None:
                return found
        return otherwise(head)

    return find


def _compile_map(tree: MatchMap, otherwise: Finder) -> Finder:
    header = tree.header
    entries = {text: compile_tree(leads_to) for text, leads_to in tree.entries}
    lengths = sorted({len(text) for text in entries}, reverse=True)

    def exact(head: RequestHead) -> tuple[int, ...] | None:
        value = _value(head, header)
        leads_to = entries.get(value) if value is not None else None
        found = None if leads_to is None else leads_to(head)
        return otherwise(head) if found is None else found

    def prefix(head: RequestHead) -> tuple[int, ...] | None:
        value = _value(head, header)
        if value is not None:
            for length in lengths:
                leads_to = entries.get(value[:length]) if length <= len(value) else None
                if leads_to is not None and (found := leads_to(head)) is not None:
                    return found
        return otherwise(head)

    return prefix if tree.is_prefix else exact


def compile_tree(tree: MatchTree | None) -> Finder:
    """Compile a tree.

    Raises:
        ValueError: A regex that is not valid RE2.
    """
    match tree:
        case None:
            return _nothing
        case ToRoutes(numbers=numbers):
            return lambda head: numbers
        case MatchList(otherwise=otherwise):
            return _compile_list(tree, compile_tree(otherwise))
        case MatchMap(otherwise=otherwise):
            return _compile_map(tree, compile_tree(otherwise))
        case _:
            assert_never(tree)
