"""What a VirtualService may contain. Rules of Istio's validation (pkg/config/validation) unless a comment says otherwise."""

from typing import Any

from xds_server.codes import EMPTY_FAULT, SCHEMA, WEIGHTS
from xds_server.translate.fields import (
    UINT32_MAX,
    At,
    Bool,
    Choice,
    Duration,
    Int,
    List,
    Map,
    Number,
    Obj,
    Regex,
    Renamed,
    Str,
    Unsupported,
)
from xds_server.translate.names import label_problem
from xds_server.translate.schema_common import (
    EXACT_HOST,
    HOSTS,
    PORT,
    TEXT,
    header_problem,
    path_problem,
    string_match,
    template_problem,
    value_problem,
)

RETRY_WORDS = frozenset(
    [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "envoy-ratelimited",
        "retriable-4xx",
        "refused-stream",
        "retriable-status-codes",
        "retriable-headers",
        "http3-post-connect-failure",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    ]
)
GRPC_STATUSES = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]


def _retry_on_problem(text: str) -> str:
    for word in text.split(","):
        if word not in RETRY_WORDS and not (word.isascii() and word.isdigit() and 100 <= int(word[:4]) <= 599):
            return f"{word!r} is neither a retry condition of Envoy or gRPC nor an HTTP status"
    return ""


def _check_retries(value: dict[str, Any], at: At) -> object:
    if at.written.get("attempts", 0) == 0 and len(at.written) > ("attempts" in at.written):
        return at.error("attempts is 0 or missing, which turns retries off, yet other fields are set")
    return value


def _check_percentage(value: dict[str, Any], at: At) -> object:
    if 0 < value.get("value", 0) < 0.0001:
        return (at / "value").error("the smallest percentage is 0.0001")
    return value


def _check_fault(value: dict[str, Any], at: At) -> object:
    if not {"delay", "abort"} & at.written.keys():
        return at.error("is empty; give it delay or abort, or leave it out", EMPTY_FAULT)
    return value


def _check_http(value: dict[str, Any], at: At) -> object:
    routes = value.get("route", [])
    if len(routes) > 1 and sum(item.get("weight", 0) for item in routes) == 0:
        return (at / "route").error("the weights of several destinations must add up to more than 0", WEIGHTS)
    if sum(item.get("weight", 0) for item in routes) > UINT32_MAX:
        return (at / "route").error(f"the weights add up to more than {UINT32_MAX}", WEIGHTS)
    return value


def _check_hosts(value: dict[str, Any], at: At) -> object:
    seen = set()
    for index, host in enumerate(value["hosts"]):
        if host == "*":
            (at / "hosts" / index).error("the bare wildcard * is for gateways only; name the hosts")
        if host.lower() in seen:
            (at / "hosts" / index).error(f"host {host!r} is there twice")
        seen.add(host.lower())
    return value


def _check_redirect(value: dict[str, Any], at: At) -> object:
    if value.get("redirectCode", 301) not in (301, 302, 303, 307, 308):
        return (at / "redirectCode").error("must be one of 301, 302, 303, 307, 308", SCHEMA)
    return value if value else at.error("is empty")


HEADER_NAMES = List(Str(header_problem, empty=False))
HEADER_OPERATIONS = Obj(
    {
        "set": Map(Str(template_problem), header_problem),
        "add": Map(Str(template_problem), header_problem),
        "remove": HEADER_NAMES,
    }
)
HEADERS = Obj({"request": HEADER_OPERATIONS, "response": HEADER_OPERATIONS})
DESTINATION = Obj(
    {"host": EXACT_HOST, "subset": Str(label_problem), "port": Obj({"number": PORT}, required=("number",))},
    required=("host",),
)
PERCENT = Obj({"value": Number(0, 100)}, check=_check_percentage)
HTTP_STATUS = Int(200, 599)

MATCH = Obj(
    {
        "name": TEXT,
        "uri": string_match(Str(path_problem, empty=False)),
        "scheme": string_match(),
        "method": string_match(),
        "authority": string_match(),
        "headers": Map(string_match(required=False), header_problem),
        "withoutHeaders": Map(string_match(required=False), header_problem),
        "queryParams": Map(string_match(required=False)),
        "ignoreUriCase": Bool(),
        "port": PORT,
        "gateways": List(Str()),
        "sourceLabels": Unsupported("is not supported yet: all clients get the same routes"),
        "sourceNamespace": Unsupported("is not supported yet: all clients get the same routes"),
        "statPrefix": Unsupported(),
    },
    whole=("*",),
)

FAULT = Obj(
    {
        "delay": Obj(
            {
                "fixedDelay": Duration(),
                "percentage": PERCENT,
                "percent": Renamed(Int(0, 100), "percentage"),
                "exponentialDelay": Unsupported("is not supported, nor is it in Istio"),
            },
            required=("fixedDelay",),
        ),
        "abort": Obj(
            {
                "httpStatus": HTTP_STATUS,
                "grpcStatus": Choice(tuple(GRPC_STATUSES)),
                "percentage": PERCENT,
                "http2Error": Unsupported("is not supported, nor is it in Istio"),
            },
            one_of=(("httpStatus", "grpcStatus"),),
        ),
    },
    check=_check_fault,
)

HTTP = Obj(
    {
        "name": TEXT,
        "match": List(MATCH),
        "route": List(
            Obj(
                {"destination": DESTINATION, "weight": Int(0, UINT32_MAX), "headers": HEADERS},
                required=("destination",),
            ),
            low=1,
        ),
        "redirect": Obj(
            {
                "uri": Str(path_problem, empty=False),
                "uriRegexRewrite": Unsupported(),
                "authority": Str(value_problem, empty=False),
                "scheme": Choice(("http", "https")),
                "port": PORT,
                "derivePort": Choice(("FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT")),
                "redirectCode": Int(100, 599),
                "prefixRewrite": Str(path_problem, empty=False),
            },
            at_most_one_of=(("uri", "prefixRewrite"), ("port", "derivePort")),
            check=_check_redirect,
        ),
        "directResponse": Obj(
            {
                "status": HTTP_STATUS,
                "body": Obj(
                    {"string": Str(), "bytes": Unsupported("is not supported yet; use string")}, required=("string",)
                ),
            },
            required=("status",),
        ),
        "rewrite": Obj(
            {
                "uri": Str(value_problem, empty=False),
                "authority": Str(value_problem, empty=False),
                "uriRegexRewrite": Obj({"match": Regex(), "rewrite": TEXT}, required=("match", "rewrite")),
            },
            at_most_one_of=(("uri", "uriRegexRewrite"),),
            any_of=(("uri", "authority", "uriRegexRewrite"),),
        ),
        "timeout": Duration(),
        "retries": Obj(
            {
                "attempts": Int(0, 2**31 - 1),
                "perTryTimeout": Duration(),
                "retryOn": Str(_retry_on_problem, empty=False),
                "retryRemoteLocalities": Bool(),
                "retryIgnorePreviousHosts": Bool(),
                "backoff": Duration(),
            },
            check=_check_retries,
        ),
        "fault": FAULT,
        "mirror": DESTINATION,
        "mirrorPercentage": PERCENT,
        "mirrorPercent": Renamed(Int(0, 100), "mirrorPercentage"),
        "mirrors": List(Obj({"destination": DESTINATION, "percentage": PERCENT}, required=("destination",)), low=1),
        "headers": HEADERS,
        "corsPolicy": Unsupported(),
        "delegate": Unsupported(),
    },
    one_of=(("route", "redirect", "directResponse"),),
    at_most_one_of=(("mirror", "mirrors"), ("redirect", "rewrite"), ("redirect", "fault")),
    whole=("match",),
    mistaken={"routes": "route", "retry": "retries", "rewrites": "rewrite", "cors": "corsPolicy"},
    check=_check_http,
)

VIRTUAL_SERVICE = Obj(
    {
        "hosts": HOSTS,
        "http": List(HTTP, low=1),
        "gateways": List(Str()),
        "exportTo": List(
            Choice(("*",), {".": "(this namespace only) is not supported yet", "~": "is not supported yet"})
        ),
        "tcp": Unsupported("is not supported: the mesh carries HTTP and gRPC"),
        "tls": Unsupported("is not supported: the mesh carries HTTP and gRPC"),
    },
    required=("hosts", "http"),
    check=_check_hosts,
)
