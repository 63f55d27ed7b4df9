"""What a ServiceEntry and a WorkloadEntry may contain. Rules of Istio's validation unless a comment says otherwise."""

from typing import Any

from xds_server.translate.fields import INVALID, At, Choice, Int, Kind, List, Map, Obj, Str, Unsupported
from xds_server.translate.names import cidr_problem, host_problem, ip_problem, label_problem
from xds_server.translate.schema_common import HOSTS, LABELS, PORT, TEXT

_NOT_HTTP = "is not supported: the mesh carries HTTP and gRPC"
PROTOCOLS = Choice(
    ("HTTP", "HTTP2", "GRPC", "http", "http2", "grpc"),
    dict.fromkeys(("TCP", "TLS", "HTTPS", "MONGO", "MYSQL", "REDIS", "UDP", "tcp", "tls", "https"), _NOT_HTTP),
)

_ENDPOINT: dict[str, Kind] = {
    "address": Str(host_problem, empty=False),
    "ports": Map(PORT),
    "labels": LABELS,
    "weight": Int(1, 2**31 - 1),
    "locality": TEXT,
    "serviceAccount": Str(label_problem),
    "network": Unsupported(),
}
WORKLOAD_ENTRY = Obj(_ENDPOINT, required=("address",))


def _check_entry(value: dict[str, Any], at: At) -> object:
    resolution = value.get("resolution", "NONE")
    ok = True
    for index, host in enumerate(value["hosts"]):
        if host.startswith("*"):
            ok = False
            (at / "hosts" / index).error("a wildcard needs resolution NONE, which is not supported")
    if resolution == "NONE":
        ok = False
        (at / "resolution").error(
            "is NONE, which is not supported: clients without a proxy have no original destination"
        )
    seen: set[object] = set()
    for index, port in enumerate(value["ports"]):
        for key in (port["number"], port["name"]):
            if key in seen:
                ok = False
                (at / "ports" / index).error(f"{key} is there twice")
            seen.add(key)
    for index, endpoint in enumerate(value.get("endpoints", [])):
        is_name = ip_problem(endpoint["address"]) != ""
        place = at / "endpoints" / index / "address"
        if is_name and resolution == "STATIC":
            ok = False
            place.error(f"{endpoint['address']!r} is not an IP address, which resolution STATIC needs")
        for name in endpoint.get("ports", {}):
            if name not in seen:
                ok = False
                (at / "endpoints" / index / "ports" / name).error(f"no port of this entry is named {name!r}")
    return value if ok else INVALID


SERVICE_ENTRY = Obj(
    {
        "hosts": HOSTS,
        "addresses": List(Str(cidr_problem, empty=False)),
        "ports": List(
            Obj(
                {"number": PORT, "name": Str(empty=False), "protocol": PROTOCOLS, "targetPort": PORT},
                required=("number", "name"),
            ),
            low=1,
        ),
        "location": Choice(("MESH_EXTERNAL", "MESH_INTERNAL")),
        "resolution": Choice(
            ("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN"), {"DYNAMIC_DNS": "is not supported yet; use DNS"}
        ),
        "endpoints": List(WORKLOAD_ENTRY),
        "workloadSelector": Obj({"labels": LABELS}, required=("labels",)),
        "subjectAltNames": List(Str(empty=False)),
        "exportTo": List(
            Choice(("*",), {".": "(this namespace only) is not supported yet", "~": "is not supported yet"})
        ),
    },
    required=("hosts", "ports"),
    at_most_one_of=(("endpoints", "workloadSelector"),),
    check=_check_entry,
)
