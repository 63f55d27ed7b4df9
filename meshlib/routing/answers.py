"""Functions that answer a request from its head and 64 random bits, one kind for each kind of action."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import accumulate
from typing import assert_never

from meshlib.matching import parse_int
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.route import (
    ClusterWeight,
    DirectResponse,
    FaultPolicy,
    NonForwarding,
    Redirect,
    RouteAction,
    WeightedClusters,
)
from meshlib.routing.changes import Changes, Responder
from meshlib.routing.hash_policy import compile_hash
from meshlib.routing.limits import RouteLimit
from meshlib.routing.mirror import pick_mirrors
from meshlib.routing.redirect import compile_direct_response, compile_redirect
from meshlib.routing.replies import unusable_action
from meshlib.routing.route_builder import RouteBuilder
from meshlib.routing.route_match import FaultedReply, RouteMatch

__all__ = ["Answer", "header_answer", "local_answer", "weighted_answer", "with_filters", "with_mirrors"]

Answer = Callable[[RequestHead, int], "RouteMatch | LocalReply"]
UINT64 = 2**64 - 1


def with_filters(
    fault: FaultPolicy | None, limits: tuple[RouteLimit, ...], responder: Responder, answer: Answer
) -> Answer:
    """Let filters come before the answer; a gRPC call never gets as far as one there (A28)."""

    def filtered(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        found = answer(head, stream_id)
        if not (head.profile.answers_itself and isinstance(found, LocalReply)):
            return found
        known = {item.name: getattr(found, item.name) for item in fields(LocalReply)}
        return FaultedReply(**known, fault=fault, limits=limits, responder=responder)

    return filtered


def with_mirrors(action: RouteAction, answer: Answer) -> Answer:
    """Let each request's random bits decide which mirrors it gets."""

    def mirrored(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        found = answer(head, stream_id)
        mirrors = pick_mirrors(action.mirrors, stream_id, head)
        return replace(found, mirrors=mirrors) if mirrors and isinstance(found, RouteMatch) else found

    return mirrored


def header_answer(build: RouteBuilder, action: RouteAction, header: str, weight: ClusterWeight | None = None) -> Answer:
    """The cluster is named by a request header; without one the route still counts as matched."""
    template = build.forward(action, "", build.facts(None, header), weight)

    def answer(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        values = head.values(header)
        # Without a name there is no such cluster, which is found out when all that comes before has been done.
        return replace(template, cluster=values[0]) if values and values[0] else template

    return answer


def _weighted_entry(
    build: RouteBuilder, action: RouteAction, entry: ClusterWeight, siblings: dict[str, RouteMatch]
) -> RouteMatch | Answer:
    if entry.cluster_header:
        return header_answer(build, action, entry.cluster_header, entry)
    match = build.forward(action, entry.name, build.facts(entry.name), entry)
    if match.session is not None:
        match = replace(match, siblings=siblings)
    siblings.setdefault(entry.name, match)
    return match


def weighted_answer(build: RouteBuilder, action: RouteAction, weighted: WeightedClusters) -> Answer:
    """Choose by a number modulo the sum of the weights: a header's, the request's hash, or the random bits."""
    entries = [entry for entry in weighted.clusters if entry.weight > 0]
    if not entries:
        raise ValueError("the weights of weighted_clusters add up to 0")
    siblings: dict[str, RouteMatch] = {}
    answers = [_weighted_entry(build, action, entry, siblings) for entry in entries]
    ends = list(accumulate(entry.weight for entry in entries))
    total = ends[-1]
    header = weighted.header_name.lower()
    hash_ = compile_hash(action.hash_policies) if weighted.use_hash_policy else None

    def by_chance(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        chosen = answers[bisect_right(ends, stream_id % total)]
        return chosen if isinstance(chosen, RouteMatch) else chosen(head, stream_id)

    def by_request(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        number: int | None = None
        if header:
            values = head.values(header)
            if len(values) == 1:
                number = parse_int(values[0], low=0, high=UINT64)
        if number is None and hash_ is not None:
            number = hash_(head, None)
        return by_chance(head, stream_id if number is None else number)

    return by_request if header or hash_ is not None else by_chance


def local_answer(build: RouteBuilder, action: Redirect | DirectResponse | NonForwarding) -> Answer:
    """The route answers by itself; its answer can speak of a request as filters have left it."""
    answer = _answering(build, action)
    changes = Changes(build.filters(None).request, is_response=False, facts=build.facts())
    if not changes:
        return answer

    def filtered(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        return answer(changes.apply_to(head) if head.profile.answers_itself else head, stream_id)

    return filtered


def _answering(build: RouteBuilder, action: Redirect | DirectResponse | NonForwarding) -> Answer:
    mutator = build.response(build.facts())
    match action:
        case Redirect():
            redirect = compile_redirect(action, build.route.match.path, mutator)
            return lambda head, stream_id: redirect(head)
        case DirectResponse():
            direct = compile_direct_response(action, mutator, build.facts())
            return lambda head, stream_id: direct(head)
        case NonForwarding():

            def nowhere(head: RequestHead, stream_id: int) -> LocalReply:
                reply = unusable_action(head, flag="NC", status=503, details="cluster_not_found")
                return mutator.local(reply, head)

            return nowhere
        case _:
            assert_never(action)
