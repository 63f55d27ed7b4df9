"""Whose rules hold for a call: Envoy's or gRPC's. This is the one place where the two differ.

A call has the profile of the client that makes it: `http` for httpx, requests, aiohttp and functions, `grpc` for gRPC
stubs. Its content type is another matter: a request of httpx with gRPC's content type is treated as Envoy treats such
a request (`RequestHead.is_grpc`), up to the form of the mesh's own answers.

Code asks for a rule by its name here, never for the kind of client. docs/reference/profiles.md is made of this file.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["GRPC", "HTTP", "Profile"]


def _rule(what: str, http: str, grpc: str, source: str) -> bool:
    """A rule that is true in one profile: what it is about, and how each has it."""
    return field(metadata={"what": what, "http": http, "grpc": grpc, "source": source})  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The rules that differ; those whose name begins with `grpc_` are gRPC's own."""

    name: Literal["http", "grpc"]
    max_attempts: int | None = field(
        metadata={
            "what": "Attempts of a call",
            "http": "as many as the policy says",
            "grpc": "five at most",
            "source": "gRFC A6, A44",
        }
    )

    has_manager: bool = _rule(
        "What the connection manager does to a request before it is routed: paths, ports, `require_tls`, `vhost_header`",
        "done",
        "not known: a method is looked up exactly as sent, its virtual host by the authority",
        "gRFC A27",
    )
    grpc_conditions: bool = _rule(
        "What header conditions see",
        "each line by itself, pseudo headers too",
        "lines joined with commas; no pseudo headers but the authority (servers: and method and path), no `-bin` headers; "
        "the content type is gRPC's; the requested server name is empty",
        "gRFC A28, A41",
    )
    answers_itself: bool = _rule(
        "A route that answers by itself (redirect, direct response), or none at all",
        "its answer, after its filters and the listener's `local_reply_config`",
        "`UNAVAILABLE`, and no filter is reached",
        "gRFC A28",
    )
    hashes_all: bool = _rule(
        "Hash policies",
        "headers, cookies and query parameters",
        "headers",
        "gRFC A42",
    )
    grpc_sessions: bool = _rule(
        "Stateful sessions",
        "Envoy's cookie; degraded endpoints keep theirs",
        "the cookie names the cluster too, and chooses among those of the route; healthy and draining endpoints keep theirs",
        "gRFC A55, A60",
    )
    grpc_faults: bool = _rule(
        "Injected faults",
        "the HTTP status of a request wins over its gRPC status; a status of 0 ends the request; the body's rate is limited",
        "the gRPC status wins; a status of 0 lets the call go on; no rate",
        "gRFC A33",
    )
    grpc_times: bool = _rule(
        "How long a call may take",
        "`timeout`, 15 s if the route says nothing; `idle_timeout`; `grpc-timeout` counts below `grpc_timeout_header_max`",
        "the caller's deadline, and the first of `grpc_timeout_header_max`, `max_stream_duration` and the listener's",
        "gRFC A31",
    )
    grpc_retries: bool = _rule(
        "When a call is repeated",
        "words of `retry_on` against HTTP statuses and resets; full jitter",
        "a failure is known by its status code; `grpc-retry-pushback-ms` counts; jitter of 20 %; naming a code is leave to repeat",
        "gRFC A6, A44",
    )
    connects_first: bool = _rule(
        "An endpoint that cannot be connected to",
        "an attempt that failed",
        "the call goes to another endpoint, or priority, and it is no retry",
        "gRFC A6, A37, A56",
    )
    grpc_results: bool = _rule(
        "Whether an attempt went well",
        "by the response's headers: HTTP status, or `grpc-status` if it is among them",
        "by the status at the end of the call",
        "gRFC A50, A27",
    )
    grpc_outliers: bool = _rule(
        "Outlier detection",
        "Envoy's: runs of errors at once, comparisons at the end of each interval",
        "comparisons at the end of each interval alone, of the results of gRPC calls alone",
        "gRFC A50",
    )
    grpc_weights: bool = _rule(
        "Weights of `client_side_weighted_round_robin`",
        "errors count without utilisation; whole numbers; the median for who has none; a penalty of 0 that is not set",
        "errors count beside utilisation; the mean; 1.0",
        "gRFC A58",
    )
    grpc_metadata: bool = _rule(
        "What attempts are told",
        "`x-envoy-expected-rq-timeout-ms`",
        "`grpc-previous-rpc-attempts`, and the time left in `grpc-timeout`",
        "gRFC A6",
    )
    asks_for_trust: bool = _rule(
        "`auto_host_rewrite`: the endpoint's name as authority",
        "from every server; the old host stays in `x-envoy-original-host`; a logical host (LOGICAL_DNS) by its name alone",
        "from servers with the feature `trusted_xds_server` alone; no header is added; a logical host with its port",
        "gRFC A81",
    )
    grpc_drops: bool = _rule(
        "`drop_overloads` behind an aggregate cluster",
        "those of its leaves are not looked at",
        "those of the leaf that the call goes to",
        "gRFC A37",
    )
    grpc_authority: bool = _rule(
        "`auto_host_rewrite`, after an attempt",
        "the host that its endpoint gave stays with the request: retries, redirects, formats",
        "each attempt has the host of its own endpoint, or the call's",
        "gRFC A81",
    )
    follows_redirects: bool = _rule(
        "Internal redirects",
        "followed",
        "the call ends",
        "a redirect is HTTP's own",
    )


HTTP: Final = Profile(
    name="http",
    max_attempts=None,
    has_manager=True,
    grpc_conditions=False,
    answers_itself=True,
    hashes_all=True,
    grpc_sessions=False,
    grpc_faults=False,
    grpc_times=False,
    grpc_retries=False,
    connects_first=False,
    grpc_results=False,
    grpc_outliers=False,
    grpc_weights=False,
    grpc_metadata=False,
    asks_for_trust=False,
    grpc_drops=False,
    grpc_authority=False,
    follows_redirects=True,
)
"""As Envoy 1.40 decides."""

GRPC: Final = Profile(
    name="grpc",
    max_attempts=5,
    has_manager=False,
    grpc_conditions=True,
    answers_itself=False,
    hashes_all=False,
    grpc_sessions=True,
    grpc_faults=True,
    grpc_times=True,
    grpc_retries=True,
    connects_first=True,
    grpc_results=True,
    grpc_outliers=True,
    grpc_weights=True,
    grpc_metadata=True,
    asks_for_trust=True,
    grpc_drops=True,
    grpc_authority=True,
    follows_redirects=False,
)
"""As the gRFCs decide, and gRPC's own clients."""
