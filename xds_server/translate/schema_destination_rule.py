"""What a DestinationRule may contain. Rules of Istio's validation unless a comment says otherwise."""

from typing import Any

from xds_server.codes import DUPLICATE_SUBSET, FAILOVER_NEEDS_OUTLIERS
from xds_server.model import LOCALITY_LABELS, PLACE_LABELS
from xds_server.translate.fields import (
    UINT32_MAX,
    At,
    Bool,
    Choice,
    Duration,
    Int,
    Kind,
    List,
    Map,
    Number,
    Obj,
    Renamed,
    Str,
    Unsupported,
)
from xds_server.translate.names import label_problem
from xds_server.translate.schema_common import HOST, LABELS, PORT, TEXT, header_problem

# gRPC refuses larger rings (gRFC A42), Envoy too.
MAX_RING_SIZE = 8 * 1024 * 1024
MAX_MAGLEV_SIZE = 5_000_011
# Istio has no limit; beyond this a weight is whole at once.
MAX_AGGRESSION = 1e6


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _check_maglev(value: dict[str, Any], at: At) -> object:
    size = value.get("tableSize")
    if size is not None and not _is_prime(size):
        return (at / "tableSize").error(f"must be a prime number; {size} is none")
    return value


def _check_not_empty(value: dict[str, Any], at: At) -> object:
    return value if at.written else at.error("is empty")


def _check_subsets(value: dict[str, Any], at: At) -> object:
    seen: set[str] = set()
    for index, subset in enumerate(value.get("subsets", [])):
        if subset["name"] in seen:
            place = at / "subsets" / index
            at.report.warning(
                DUPLICATE_SUBSET,
                f"{place.name}: subset {subset['name']} is defined twice; the first applies",
                place.position,
            )
        seen.add(subset["name"])
    return value


CONSISTENT_HASH = Obj(
    {
        "httpHeaderName": Str(header_problem, empty=False),
        "httpCookie": Obj(
            {"name": Str(header_problem, empty=False), "path": TEXT, "ttl": Duration(0)}, required=("name", "ttl")
        ),
        "useSourceIp": Bool(),
        "httpQueryParameterName": Str(empty=False),
        "minimumRingSize": Renamed(Int(1, MAX_RING_SIZE), "ringHash.minimumRingSize"),
        "ringHash": Obj({"minimumRingSize": Int(1, MAX_RING_SIZE)}),
        "maglev": Obj({"tableSize": Int(2, MAX_MAGLEV_SIZE - 1)}, check=_check_maglev),
    },
    one_of=(("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"),),
    at_most_one_of=(("ringHash", "maglev", "minimumRingSize"),),
)


def _place_problem(text: str) -> str:
    parts = text.split("/")
    if len(parts) > 3 or not parts[0]:
        return f"must be region, region/zone or region/zone/sub-zone, with * for any, not {text!r:.80}"
    if any(not part for part in parts) or ("*" in text and any("*" in part and part != "*" for part in parts)):
        return f"must name each part of a place, or say * for it, not {text!r:.80}"
    return ""


def _region_problem(text: str) -> str:
    return "must be a region alone" if not text or "/" in text or "*" in text else ""


def _priority_problem(text: str) -> str:
    name, is_given, _ = text.partition("=")
    if not name:
        return "must be a label, or label=value"
    if not is_given and name not in (*LOCALITY_LABELS, *PLACE_LABELS):
        known = ", ".join((*LOCALITY_LABELS, *PLACE_LABELS))
        return f"clients are told apart by {known} only; for another label write {name}=value"
    return ""


def _check_shares(value: dict[str, Any], at: At) -> object:
    total = sum(value["to"].values())
    return value if total == 100 else (at / "to").error(f"must add up to 100; it is {total}")


def _check_failover(value: dict[str, Any], at: At) -> object:
    return value if value["from"] != value["to"] else at.error("from and to must be different regions")


def _check_locality(value: dict[str, Any], at: At) -> object:
    if "distribute" in value and (other := next((one for one in ("failover", "failoverPriority") if one in value), "")):
        return at.error(f"must not have both distribute and {other}")
    for name in ("distribute", "failover"):
        froms = [rule["from"] for rule in value.get(name, ())]
        if len(froms) != len(set(froms)):
            return (at / name).error("has two rules with the same from")
    if "failover" in value and (
        label := next((one for one in value.get("failoverPriority", ()) if one in LOCALITY_LABELS), "")
    ):
        return (at / "failoverPriority").error(f"must not have {label} beside failover, which is about places")
    return value


LOCALITY_SETTING = Obj(
    {
        "enabled": Bool(),
        "distribute": List(
            Obj(
                {"from": Str(_place_problem), "to": Map(Int(1, 100), _place_problem)},
                required=("from", "to"),
                whole=("*",),
                check=_check_shares,
            ),
            low=1,
        ),
        "failover": List(
            Obj(
                {"from": Str(_region_problem), "to": Str(_region_problem)},
                required=("from", "to"),
                check=_check_failover,
            ),
            low=1,
        ),
        "failoverPriority": List(Str(_priority_problem), low=1),
    },
    whole=("*",),
    check=_check_locality,
)

LOAD_BALANCER = Obj(
    {
        "simple": Choice(
            ("UNSPECIFIED", "LEAST_CONN", "LEAST_REQUEST", "RANDOM", "ROUND_ROBIN"),
            {"PASSTHROUGH": "is not supported: clients without a proxy have no original destination"},
        ),
        "consistentHash": CONSISTENT_HASH,
        "localityLbSetting": LOCALITY_SETTING,
        "zoneAwareLbSetting": Unsupported(
            "is not supported yet; localityLbSetting keeps requests near, failover with outlierDetection"
        ),
        "warmup": Obj(
            {"duration": Duration(), "aggression": Number(1.0, MAX_AGGRESSION), "minimumPercent": Number(0, 100)},
            required=("duration",),
        ),
        "warmupDurationSecs": Renamed(Duration(), "warmup.duration"),
    },
    at_most_one_of=(("simple", "consistentHash"),),
    check=_check_not_empty,
)

OUTLIER_DETECTION = Obj(
    {
        "consecutive5xxErrors": Int(),
        "consecutiveErrors": Renamed(Int(), "consecutive5xxErrors"),
        "consecutiveGatewayErrors": Int(),
        "consecutiveLocalOriginFailures": Int(),
        "splitExternalLocalOriginErrors": Bool(),
        "interval": Duration(),
        "baseEjectionTime": Duration(),
        "maxEjectionPercent": Int(0, 100),
        "minHealthPercent": Int(0, 100),
        "outlierDetectionHttpErrorCodes": Unsupported(),
    },
)

COUNT = Int(0, 2**31 - 1)
CONNECTION_POOL = Obj(
    {
        "tcp": Obj(
            {
                "maxConnections": COUNT,
                "connectTimeout": Duration(),
                "tcpKeepalive": Unsupported(),
                "maxConnectionDuration": Unsupported(),
                "idleTimeout": Unsupported("is not supported yet; use http.idleTimeout"),
            }
        ),
        "http": Obj(
            {
                "http1MaxPendingRequests": COUNT,
                "http2MaxRequests": COUNT,
                "maxRequestsPerConnection": COUNT,
                "maxRetries": COUNT,
                "idleTimeout": Duration(),
                "h2UpgradePolicy": Unsupported("is not supported yet; register the service with protocol grpc"),
                "useClientProtocol": Unsupported(),
                "maxConcurrentStreams": Unsupported(),
                "http2KeepAlive": Unsupported(),
            }
        ),
    },
    check=_check_not_empty,
)

TLS = Obj(
    {
        "mode": Choice(("DISABLE", "SIMPLE", "ISTIO_MUTUAL"), {"MUTUAL": "is not supported yet; ISTIO_MUTUAL is"}),
        "caCertificates": TEXT,
        "sni": TEXT,
        "subjectAltNames": List(Str(empty=False)),
        "insecureSkipVerify": Unsupported("is not supported: a connection that checks nobody is none of TLS's use"),
        "clientCertificate": Unsupported("is for mode MUTUAL, which is not supported yet"),
        "privateKey": Unsupported("is for mode MUTUAL, which is not supported yet"),
        "credentialName": Unsupported(),
        "caCrl": Unsupported(),
    },
    required=("mode",),
)

_POLICY: dict[str, Kind] = {
    "loadBalancer": LOAD_BALANCER,
    "connectionPool": CONNECTION_POOL,
    "outlierDetection": OUTLIER_DETECTION,
    "tls": TLS,
}
_FAILOVERS = ("failover", "failoverPriority")


def _check_policy(value: dict[str, Any], at: At) -> object:
    setting = value.get("loadBalancer", {}).get("localityLbSetting", {})
    if "outlierDetection" not in value and setting.get("enabled", True) and any(one in setting for one in _FAILOVERS):
        place = at / "loadBalancer" / "localityLbSetting"
        at.report.warning(
            FAILOVER_NEEDS_OUTLIERS,
            f"{place.name}: has no effect without outlierDetection in the same policy: nobody would ever fall out",
            place.position,
        )
    return _check_not_empty(value, at)


_MISTAKEN = {"circuitBreaker": "outlierDetection", "circuitBreakers": "outlierDetection", "lb": "loadBalancer"}

PORT_POLICY = Obj(
    {**_POLICY, "port": Obj({"number": PORT}, required=("number",))},
    required=("port",),
    mistaken=_MISTAKEN,
    check=_check_policy,
)
TRAFFIC_POLICY = Obj(
    {
        **_POLICY,
        "portLevelSettings": List(PORT_POLICY),
        "retryBudget": Obj(
            {"percent": Number(0, 100), "minRetryConcurrency": Int(0, UINT32_MAX), "budgetInterval": Unsupported()},
        ),
        "tunnel": Unsupported(),
        "proxyProtocol": Unsupported(),
    },
    mistaken=_MISTAKEN,
    check=_check_policy,
)

DESTINATION_RULE = Obj(
    {
        "host": HOST,
        "trafficPolicy": TRAFFIC_POLICY,
        "subsets": List(
            Obj(
                {"name": Str(label_problem, empty=False), "labels": LABELS, "trafficPolicy": TRAFFIC_POLICY},
                required=("name",),
            )
        ),
        "exportTo": List(
            Choice(("*",), {".": "(this namespace only) is not supported yet", "~": "is not supported yet"})
        ),
        "workloadSelector": Unsupported("is not supported yet: all clients get the same clusters"),
    },
    required=("host",),
    mistaken={"hosts": "host", "subset": "subsets", "policy": "trafficPolicy"},
    check=_check_subsets,
)
