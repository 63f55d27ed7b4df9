"""The hash of a request: which endpoint or weighted cluster it sticks to.

Source: Envoy `HashPolicyImpl`; for gRPC calls gRFC A42 (entries joined, seed 0).
"""

from collections.abc import Callable, Sequence

import xxhash

from meshlib.matching import entries_getter, to_bytes
from meshlib.model.request import RequestHead
from meshlib.model.route import HashPolicy
from meshlib.routing.matchers import query_value
from meshlib.routing.rewrite import compile_regex_rewrite

__all__ = ["compile_hash"]

Hash = Callable[[RequestHead], int | None]
MASK = 2**64 - 1


def _header(policy: HashPolicy) -> Hash:
    entries = entries_getter(policy.name.lower())
    rewrite = compile_regex_rewrite(policy.regex) if policy.regex is not None else None

    def hash_(head: RequestHead) -> int | None:
        values = entries(head)
        if not values:
            return None
        seed = 0
        # Sorted, so that the order in which a client sends its lines does not matter.
        for value in sorted(values if rewrite is None else map(rewrite, values)):
            seed = xxhash.xxh64_intdigest(to_bytes(value), seed)
        return seed

    return hash_


def _cookie(policy: HashPolicy) -> Hash:
    name = policy.name

    def hash_(head: RequestHead) -> int | None:
        for line in head.headers.all("cookie"):
            for pair in line.split(";"):
                key, equals, value = pair.strip(" \t").partition("=")
                if equals and key == name:
                    if len(value) >= 2 and value[0] == value[-1] == '"':
                        value = value[1:-1]
                    return xxhash.xxh64_intdigest(to_bytes(value)) if value else None
        return None

    return hash_


def _query(policy: HashPolicy) -> Hash:
    def hash_(head: RequestHead) -> int | None:
        value = query_value(head.path, policy.name)
        return None if value is None else xxhash.xxh64_intdigest(to_bytes(value))

    return hash_


def _nothing(head: RequestHead) -> int | None:
    return None


def _compile(policy: HashPolicy) -> Hash:
    match policy.kind:
        case "header":
            return _header(policy)
        case "cookie":
            return _cookie(policy)
        case "query_parameter":
            return _query(policy)
        case "source_ip" | "filter_state":
            # An in-process client has no downstream connection to take these from.
            return _nothing
        case _:
            raise ValueError(f"hash policy {policy.kind!r} is not supported")


def compile_hash(policies: Sequence[HashPolicy]) -> Hash:
    """Compile hash policies; the function returns 64 bits, or None when no policy yields a value.

    Raises:
        ValueError: A policy or regex that is not understood.
    """
    sources = tuple((_compile(policy), policy.terminal) for policy in policies)

    def hash_(head: RequestHead) -> int | None:
        result: int | None = None
        for source, terminal in sources:
            value = source(head)
            if value is not None:
                old = result or 0
                result = ((old << 1 | old >> 63) & MASK) ^ value
            if terminal and result is not None:
                break
        return result

    return hash_
