"""The hash of a request: which endpoint or weighted cluster it sticks to.

Source: Envoy `HashPolicyImpl`; for gRPC calls gRFC A42 (entries joined, seed 0).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import xxhash

from meshlib.matching import entries_getter, to_bytes
from meshlib.model.request import RequestHead
from meshlib.model.route import HashPolicy
from meshlib.model.session import MadeCookie
from meshlib.routing.cookies import cookie_value, set_cookie
from meshlib.routing.matchers import query_value
from meshlib.routing.rewrite import compile_regex_rewrite

__all__ = ["CookieMaker", "Hash", "cluster_hash", "compile_hash"]

MASK = 2**64 - 1


class CookieMaker:
    """Makes the cookies that a caller lacks, for one request.

    Attributes:
        lines: Values of `set-cookie`, which the caller gets with the response.
    """

    __slots__ = ("_value", "lines")

    def __init__(self, client_id: int) -> None:
        """Make a maker.

        Args:
            client_id: 64 bits. A proxy takes the caller's connection; here it stands for the client, so that the
                requests of one that keeps no cookies stay together too.
        """
        self._value = f"{client_id:016x}"
        self.lines: list[str] = []

    def make(self, name: str, made: MadeCookie) -> str:
        """Return the value of a cookie, after noting that it is to be set."""
        self.lines.append(set_cookie(name, self._value, made))
        return self._value


Hash = Callable[[RequestHead, CookieMaker | None], int | None]


def _header(policy: HashPolicy) -> Hash:
    entries = entries_getter(policy.name.lower())
    rewrite = compile_regex_rewrite(policy.regex) if policy.regex is not None else None

    def hash_(head: RequestHead, maker: CookieMaker | None) -> int | None:
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
    name, made = policy.name, policy.made

    def hash_(head: RequestHead, maker: CookieMaker | None) -> int | None:
        if not head.profile.hashes_all:
            return None
        value = cookie_value(head, name)
        if not value and made is not None and maker is not None:
            value = maker.make(name, made)
        return xxhash.xxh64_intdigest(to_bytes(value)) if value else None

    return hash_


def _query(policy: HashPolicy) -> Hash:
    def hash_(head: RequestHead, maker: CookieMaker | None) -> int | None:
        if not head.profile.hashes_all:
            return None
        value = query_value(head.path, policy.name)
        return None if value is None else xxhash.xxh64_intdigest(to_bytes(value))

    return hash_


def _nothing(head: RequestHead, maker: CookieMaker | None) -> int | None:
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

    It takes the request and a maker of cookies; without one no cookie is made. Of gRPC calls only headers count (A42).

    Raises:
        ValueError: A policy or regex that is not understood.
    """
    sources = tuple((_compile(policy), policy.terminal) for policy in policies)

    def hash_(head: RequestHead, maker: CookieMaker | None = None) -> int | None:
        result: int | None = None
        for source, terminal in sources:
            value = source(head, maker)
            if value is not None:
                old = result or 0
                result = ((old << 1 | old >> 63) & MASK) ^ value
            if terminal and result is not None:
                break
        return result

    return hash_


@lru_cache(maxsize=256)
def cluster_hash(policies: tuple[HashPolicy, ...]) -> Hash:
    """As `compile_hash`, remembered: for the policies of clusters, which nobody compiles ahead."""
    return compile_hash(policies)
