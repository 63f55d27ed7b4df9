"""DNS clusters: what is honoured, what needs a resolver library, and what is refused by name."""

import pytest

from meshlib.model.cluster import DnsDiscovery
from meshlib.model.dns import DnsLookup, DnsPace, DnsServers, LookupFamily
from meshlib.protos import from_dict
from meshlib.xds import decode_dns
from meshlib.xds.grpc_rules import check_grpc_rules
from meshlib.xds.problems import Problems
from meshlib.xds.resources import CDS

NETWORK = "envoy.extensions.network.dns_resolver."
CARES = f"{NETWORK}cares.v3.CaresDnsResolverConfig"
SYSTEM = f"{NETWORK}getaddrinfo.v3.GetAddrInfoDnsResolverConfig"
APPLE = f"{NETWORK}apple.v3.AppleDnsResolverConfig"
DNS_CLUSTER = "envoy.extensions.clusters.dns.v3.DnsCluster"
NEEDS = decode_dns.NEEDS_EXTRA


def server(address="127.0.0.1", port=5353):
    return {"socket_address": {"address": address, "port_value": port}}


def hosts(*names, **locality):
    entries = [{"endpoint": {"address": server(name, 80)}} for name in names]
    return {"load_assignment": {"cluster_name": "c", "endpoints": [{**locality, "lb_endpoints": entries}]}}


@pytest.fixture(params=["fields", "DnsCluster"])
def decode_named(request, decode):
    """Decodes a DNS cluster, whose options are its own fields or those of a DnsCluster."""

    def decoded(*names, logical=False, beside=None, **options):
        fields = {"name": "c", **hosts(*(names or ("db.example",))), **(beside or {})}
        if request.param == "fields":
            return decode("CDS", {**fields, "type": "LOGICAL_DNS" if logical else "STRICT_DNS", **options})
        config = {"@type": f"type.googleapis.com/{DNS_CLUSTER}", "all_addresses_in_single_endpoint": logical, **options}
        return decode("CDS", {**fields, "cluster_type": {"name": "envoy.clusters.dns", "typed_config": config}})

    return decoded


@pytest.fixture(params=[True, False], ids=["with the library", "without"])
def has_library(request, monkeypatch):
    monkeypatch.setattr(decode_dns, "has_resolver_library", lambda: request.param)
    return request.param


@pytest.fixture
def with_library(monkeypatch):
    monkeypatch.setattr(decode_dns, "has_resolver_library", lambda: True)


def discovery(decoded):
    assert decoded.errors == ()
    assert isinstance(decoded.value.discovery, DnsDiscovery)
    return decoded.value.discovery


def resolver(kind, **fields):
    return {"name": "r", "typed_config": {"@type": f"type.googleapis.com/{kind}", **fields}}


def test_without_options_envoys_defaults_hold(decode_named):
    found = discovery(decode_named("a.example", "b"))
    assert (False, DnsLookup(), DnsPace(5.0), True) == (found.logical, found.lookup, found.pace, found.waits)
    assert ["a.example:80", "b:80"] == [one.address for one in found.assignment.localities[0].endpoints]


def test_the_pace_of_look_ups(decode_named):
    decoded = decode_named(
        logical=True,
        dns_refresh_rate="60s",
        dns_jitter="0.1s",
        dns_failure_refresh_rate={"base_interval": "1s", "max_interval": "8s"},
    )
    expected = DnsPace(60.0, 0.1, 1.0, 8.0, needs_addresses=True)
    assert (True, expected, ()) == (discovery(decoded).logical, discovery(decoded).pace, decoded.unused)


def test_a_cluster_may_be_ready_before_its_names_are_looked_up(decode_named):
    assert not discovery(decode_named(beside={"wait_for_warm_on_init": False})).waits


@pytest.mark.parametrize("family", list(LookupFamily))
def test_families(decode_named, family):
    assert family is discovery(decode_named(dns_lookup_family=family.value)).lookup.family


def test_a_time_to_live_needs_the_library_and_is_else_passed_over_and_reported(decode_named, has_library):
    decoded = decode_named(respect_dns_ttl=True)
    assert has_library == discovery(decoded).lookup.needs_ttl
    assert has_library == (not decoded.unused)
    if not has_library:
        assert decoded.unused[0].endswith(f"respect_dns_ttl: dns_refresh_rate serves instead; it {NEEDS}")


def test_servers_need_the_library_and_are_else_refused(decode_named, has_library):
    decoded = decode_named(typed_dns_resolver_config=resolver(CARES, resolvers=[server(), server("::1", 0)]))
    if has_library:
        assert DnsServers(("127.0.0.1:5353", "[::1]:53")) == discovery(decoded).lookup.servers
    else:
        assert [True] == [
            error.endswith(f"typed_dns_resolver_config.typed_config: {NEEDS}") for error in decoded.errors
        ]


@pytest.mark.usefixtures("with_library")
def test_options_of_c_ares(decode_named):
    decoded = decode_named(
        typed_dns_resolver_config=resolver(
            CARES,
            resolvers=[server()],
            use_resolvers_as_fallback=True,
            filter_unroutable_families=True,
            dns_resolver_options={"use_tcp_for_dns_lookups": True, "no_default_search_domain": True},
            query_timeout_seconds="2",
            query_tries=3,
            rotate_nameservers=True,
            edns0_max_payload_size=1232,
            udp_max_queries=100,
        )
    )
    servers = DnsServers(("127.0.0.1:5353",), True, True, False, 2.0, 3, True, 1232)
    assert DnsLookup(is_routable=True, servers=servers) == discovery(decoded).lookup
    assert 1 == len(decoded.unused)
    assert decoded.unused[0].endswith("udp_max_queries")


def test_an_empty_c_ares_is_the_systems_resolver(decode_named, has_library):
    assert DnsLookup() == discovery(decode_named(typed_dns_resolver_config=resolver(CARES))).lookup


@pytest.mark.usefixtures("with_library")
def test_getaddrinfo_tells_no_time_to_live(decode_named):
    decoded = decode_named(typed_dns_resolver_config=resolver(SYSTEM, num_retries=2), respect_dns_ttl=True)
    assert DnsLookup() == discovery(decoded).lookup
    assert ["num_retries", "respect_dns_ttl: getaddrinfo tells no time to live"] == sorted(
        one.split("typed_config.")[-1] for one in decoded.unused
    )


@pytest.mark.parametrize(("kind", "name"), [(APPLE, APPLE), ("google.protobuf.Duration", "google.protobuf.Duration")])
def test_other_resolvers_are_refused_by_name(decode_named, kind, name):
    config = resolver(kind, **({"value": "1s"} if kind.endswith("Duration") else {}))
    (error,) = decode_named(typed_dns_resolver_config=config).errors
    assert error.endswith(
        f"typed_dns_resolver_config.typed_config: {name} is not supported (only c-ares and getaddrinfo)"
    )


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"dns_refresh_rate": "0.001s"}, "dns_refresh_rate"),
        ({"dns_jitter": "-1s"}, "dns_jitter"),
        ({"dns_failure_refresh_rate": {"max_interval": "1s"}}, "dns_failure_refresh_rate.base_interval"),
        (
            {"dns_failure_refresh_rate": {"base_interval": "2s", "max_interval": "1s"}},
            "dns_failure_refresh_rate.max_interval",
        ),
        (
            {"typed_dns_resolver_config": resolver(CARES, resolvers=[{"pipe": {"path": "/x"}}])},
            "typed_dns_resolver_config.typed_config.resolvers[0].pipe",
        ),
        (
            {"typed_dns_resolver_config": resolver(CARES, resolvers=[server("dns.example")])},
            "typed_dns_resolver_config.typed_config.resolvers[0].socket_address.address",
        ),
    ],
)
@pytest.mark.usefixtures("with_library")
def test_what_envoy_refuses(decode_named, options, path):
    errors = decode_named(**options).errors
    assert [path] == [error.partition(": ")[0].removeprefix("cluster_type.typed_config.") for error in errors]


def test_a_logical_cluster_has_one_endpoint_of_the_highest_priority(decode_named):
    assert "LOGICAL_DNS must have exactly one" in decode_named("a", "b", logical=True).errors[0]
    lower = hosts("a", priority=1, locality={"zone": "z"})
    (locality,) = discovery(decode_named(logical=True, beside=lower)).assignment.localities
    assert (0, "z") == (locality.priority, locality.locality.zone)


def test_a_strict_cluster_may_have_no_endpoints_and_a_logical_one_may_not(decode):
    assert discovery(decode("CDS", {"name": "c", "type": "STRICT_DNS"})).assignment.localities == ()
    (error,) = decode("CDS", {"name": "c", "type": "LOGICAL_DNS"}).errors
    assert error.startswith("load_assignment: LOGICAL_DNS must have exactly one")


def test_where_health_is_checked_has_to_be_an_address(decode_named):
    config = {"address": server("check.example")}
    endpoint = {"endpoint": {"address": server("a", 80), "health_check_config": config}}
    group = {"load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint]}]}}
    (error,) = decode_named(beside=group).errors
    assert error.endswith("health_check_config.address.socket_address.address: 'check.example' is not an IP address")


def test_localities_and_priorities_of_strict_clusters_stay(decode_named):
    groups = [hosts(f"h{index}", priority=index, load_balancing_weight=index + 1) for index in range(2)]
    both = {"cluster_name": "c", "endpoints": [group["load_assignment"]["endpoints"][0] for group in groups]}
    found = discovery(decode_named(beside={"load_assignment": both})).assignment.localities
    assert [(0, 1), (1, 2)] == [(locality.priority, locality.weight) for locality in found]


@pytest.mark.usefixtures("with_library")
def test_of_several_ways_to_name_a_resolver_the_newest_counts(decode):
    old = {"dns_resolvers": [server(port=1)], "use_tcp_for_dns_lookups": True}
    newer = {"dns_resolution_config": {"resolvers": [server(port=2)]}}
    newest = {"typed_dns_resolver_config": resolver(CARES, resolvers=[server(port=3)])}
    base = {"name": "c", "type": "STRICT_DNS", **hosts("a")}
    ways = [old, {**old, **newer}, {**old, **newer, **newest}]
    found = [decode("CDS", {**base, **way}) for way in ways]
    expected = [DnsServers(("127.0.0.1:1",), over_tcp=True), DnsServers(("127.0.0.1:2",)), DnsServers(("127.0.0.1:3",))]
    assert expected == [discovery(decoded).lookup.servers for decoded in found]
    assert [0, 2, 3] == [len(decoded.unused) for decoded in found]


def test_fields_for_names_have_no_effect_in_other_clusters(decode):
    decoded = decode("CDS", {"name": "c", "type": "STATIC", "respect_dns_ttl": True, "dns_lookup_family": "V4_ONLY"})
    assert ((), {"respect_dns_ttl", "dns_lookup_family"}) == (decoded.errors, set(decoded.unused))


CLUSTERS = "envoy.extensions.clusters."


@pytest.mark.parametrize(
    ("cluster", "error"),
    [
        ({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}, "type: ORIGINAL_DST is not supported"),
        *(
            (
                {"cluster_type": {"name": "x", "typed_config": {"@type": f"type.googleapis.com/{CLUSTERS}{kind}"}}},
                f"cluster_type: {CLUSTERS}{kind} is not supported",
            )
            for kind in ("dynamic_forward_proxy.v3.ClusterConfig", "redis.v3.RedisClusterConfig")
        ),
        (
            {"cluster_type": {"name": "envoy.cluster.original_dst"}},
            "cluster_type: envoy.cluster.original_dst is not supported",
        ),
    ],
)
def test_other_types_of_clusters_are_refused_by_name(decode, cluster, error):
    assert error in decode("CDS", {"name": "c", **cluster}).errors


def test_grpc_has_no_dns_cluster_by_type():
    config = {"@type": f"type.googleapis.com/{DNS_CLUSTER}", "all_addresses_in_single_endpoint": True}
    cluster_type = {"name": "envoy.clusters.dns", "typed_config": config}
    message = from_dict("envoy.config.cluster.v3.Cluster", {"name": "c", "cluster_type": cluster_type, **hosts("a")})
    problems = Problems()
    check_grpc_rules(CDS, message, problems)
    reason = f"{DNS_CLUSTER} is not a type of gRPC (only EDS, LOGICAL_DNS and aggregates)"
    assert (f"cluster_type: {reason}",) == problems.errors
