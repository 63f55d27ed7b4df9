"""Which names clients may use, and which endpoints are behind them."""

import pytest

SE = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s, namespace: default}\nspec: %s\n---\n"
WE = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: %s, labels: %s}\nspec: %s\n---\n"
VS = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: %s}\nspec: {hosts: %s, http: [{redirect: {uri: /%s}}]}\n---\n"


def endpoints(result, name: str) -> list[tuple[str, int]]:
    addresses = [
        one["endpoint"]["address"]["socket_address"]
        for locality in result.get("EDS", name).get("endpoints", [])
        for one in locality["lb_endpoints"]
    ]
    return [(address["address"], address["port_value"]) for address in addresses]


def test_every_name_of_a_service_has_a_listener(compiled, instance):
    result = compiled("", instance(service_account=""))
    names = ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"]
    expected = [alias for name in names for alias in (name, f"{name}:80")]
    assert [name for name in result.names("LDS") if not name.startswith("xds.istio.io/")] == expected
    (host,) = result.get("RDS", "outbound|80||reviews.default.svc.cluster.local")["virtual_hosts"]
    assert (host["name"], host["domains"]) == ("reviews.default.svc.cluster.local:80", expected)


def test_the_bare_name_means_port_80_or_the_lowest(compiled, instance):
    both = compiled("", instance(service_port=8080), instance(9002))
    high = compiled("", instance(service_port=8081), instance(9002, service_port=8080))

    def route(result, name: str) -> str:
        return result.get("LDS", name)["api_listener"]["api_listener"]["rds"]["route_config_name"]

    assert route(both, "reviews") == "outbound|80||reviews.default.svc.cluster.local"
    assert route(both, "reviews:8080") == "outbound|8080||reviews.default.svc.cluster.local"
    assert route(high, "reviews") == "outbound|8080||reviews.default.svc.cluster.local"


def test_the_short_name_is_the_default_namespaces(compiled, instance):
    result = compiled("", instance(), instance(9002, namespace="shop"))
    listener = result.get("LDS", "reviews")["api_listener"]["api_listener"]
    assert listener["rds"]["route_config_name"] == "outbound|80||reviews.default.svc.cluster.local"
    assert "reviews.shop" in result.names("LDS")


def test_envoy_gets_one_listener_and_one_route_configuration(compiled, instance):
    result = compiled("", instance(), instance(9002, service="ratings"), profile="envoy")
    assert (result.names("LDS"), result.names("RDS")) == (["outbound"], ["outbound"])
    listener = result.get("LDS", "outbound")
    assert listener["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 15001}
    hosts = result.get("RDS", "outbound")["virtual_hosts"]
    assert [host["name"] for host in hosts] == [
        f"{name}.default.svc.cluster.local:80" for name in ("ratings", "reviews")
    ]


def test_a_service_without_rules_has_the_default_route(compiled, instance):
    (route,) = compiled("", instance(), profile="grpc").routes()
    assert route == {
        "name": "default",
        "match": {"prefix": "/"},
        "route": {
            "cluster": "outbound|80||reviews.default.svc.cluster.local",
            "timeout": "0s",
            "retry_policy": {"retry_on": "unavailable,cancelled", "num_retries": 2},
        },
    }


def test_an_instance_that_is_not_ready_has_its_listener_and_no_callers(compiled, instance):
    result = compiled("", instance(9001), instance(9002, ready=False))
    assert [("10.0.0.1", 9001)] == endpoints(result, "outbound|80||reviews.default.svc.cluster.local")
    assert "xds.istio.io/grpc/lds/inbound/10.0.0.1:9002" in result.names("LDS")
    assert ["xds.istio.io/grpc/lds/inbound/10.0.0.1:9001"] == compiled("", instance(9001, ready=False)).names("LDS")


def test_localities_are_sorted_and_weigh_what_their_endpoints_do(compiled, instance):
    result = compiled(
        "",
        instance(9001, region="z"),
        instance(9002, region="a", zone="b", sub_zone="c", weight=3),
        instance(9003, region="z", weight=4),
    )
    assert result.get("EDS", "outbound|80||reviews.default.svc.cluster.local")["endpoints"] == [
        {
            "locality": {"region": "a", "zone": "b", "sub_zone": "c"},
            "load_balancing_weight": 3,
            "lb_endpoints": [lb_endpoint(9002, 3)],
        },
        {
            "locality": {"region": "z"},
            "load_balancing_weight": 5,
            "lb_endpoints": [lb_endpoint(9001, 1), lb_endpoint(9003, 4)],
        },
    ]


def lb_endpoint(port: int, weight: int) -> dict[str, object]:
    address = {"socket_address": {"address": "10.0.0.1", "port_value": port}}
    return {"endpoint": {"address": address}, "load_balancing_weight": weight}


def test_the_oldest_virtual_service_has_the_host_whatever_the_order(compiled):
    one, two = VS % ("b", "[reviews]", "b"), VS % ("a", "[reviews]", "a")
    for text in (one + two, two + one):
        assert compiled(text).routes()[0]["redirect"] == {"path_redirect": "/a"}


def test_a_wildcard_host_is_for_services_without_one_of_their_own(compiled, instance):
    text = VS % ("w", "['*.default.svc.cluster.local']", "wild") + VS % ("x", "[ratings]", "own")
    result = compiled(text, instance(), instance(9002, service="ratings"))
    assert result.routes()[0]["redirect"] == {"path_redirect": "/wild"}
    assert result.routes("ratings")[0]["redirect"] == {"path_redirect": "/own"}


def test_a_static_entry(compiled):
    spec = (
        "{hosts: [a.example.com], addresses: [10.9.9.9], resolution: STATIC, ports: [{number: 80, name: http, targetPort: 8080}, "
        "{number: 90, name: grpc-a}], endpoints: [{address: 1.1.1.1, weight: 2}, {address: 1.1.1.2, ports: {http: 81}}]}"
    )
    result = compiled(SE % ("a", spec))
    assert endpoints(result, "outbound|80||a.example.com") == [("1.1.1.1", 8080), ("1.1.1.2", 81)]
    assert endpoints(result, "outbound|90||a.example.com") == [("1.1.1.1", 90), ("1.1.1.2", 90)]
    expected = ["a.example.com", "a.example.com:80", "10.9.9.9", "10.9.9.9:80", "a.example.com:90", "10.9.9.9:90"]
    assert result.names("LDS") == expected
    assert "http2_protocol_options" in str(result.get("CDS", "outbound|90||a.example.com"))
    source = result.get("CDS", "outbound|80||a.example.com")["metadata"]["filter_metadata"]["meshlib"]
    assert source == {
        "config": "/apis/networking.istio.io/v1/namespaces/default/service-entry/a",
        "source": "test.yaml:1",
    }


@pytest.mark.parametrize(
    ("resolution", "profile", "kind"),
    [
        ("DNS", "meshlib", "STRICT_DNS"),
        ("DNS", "envoy", "STRICT_DNS"),
        ("DNS", "grpc", "LOGICAL_DNS"),
        ("DNS_ROUND_ROBIN", "meshlib", "LOGICAL_DNS"),
    ],
)
def test_a_dns_entry_holds_its_names_in_the_cluster(compiled, resolution, profile, kind):
    spec = f"{{hosts: [a.example.com], resolution: {resolution}, ports: [{{number: 80, name: http}}]}}"
    result = compiled(SE % ("a", spec), profile=profile)
    cluster = result.get("CDS", "outbound|80||a.example.com")
    (locality,) = cluster["load_assignment"]["endpoints"]
    assert (cluster["type"], result.names("EDS")) == (kind, [])
    assert locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["address"] == "a.example.com"
    options = {"respect_dns_ttl": True, "dns_jitter": "0.100s", "dns_lookup_family": "V4_PREFERRED"}
    assert {name: cluster.get(name) for name in options} == (dict.fromkeys(options) if profile == "grpc" else options)


def test_a_workload_selector_takes_instances_and_workload_entries_of_its_namespace(compiled, instance):
    spec = (
        "{hosts: [a.example.com], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 80, name: http}], "
        "workloadSelector: {labels: {team: x}}}"
    )
    text = (
        SE % ("a", spec)
        + WE % ("w", "{team: x}", "{address: 10.0.0.9, ports: {http: 99}}")
        + WE % ("v", "{}", "{address: 10.0.0.8}")
    )
    result = compiled(
        text,
        instance(9001, labels={"team": "x"}),
        instance(9002, labels={"team": "y"}),
        instance(9003, labels={"team": "x"}, namespace="shop"),
    )
    assert endpoints(result, "outbound|80||a.example.com") == [("10.0.0.9", 99), ("10.0.0.1", 9001)]


def test_an_instance_is_selected_by_its_services_name_as_app(compiled, instance):
    spec = "{hosts: [a.example.com], resolution: STATIC, ports: [{number: 80, name: http}], workloadSelector: {labels: {app: reviews}}}"
    assert endpoints(compiled(SE % ("a", spec), instance()), "outbound|80||a.example.com") == [("10.0.0.1", 9001)]


def test_an_ipv6_address_gets_brackets_in_names(compiled, instance):
    result = compiled("", instance(address="::1"))
    assert "xds.istio.io/grpc/lds/inbound/[::1]:9001" in result.names("LDS")


def test_the_inbound_listener(compiled, instance):
    listener = compiled("", instance(), profile="grpc").get("LDS", "xds.istio.io/grpc/lds/inbound/10.0.0.1:9001")
    (chain,) = listener["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    assert listener["address"] == {"socket_address": {"address": "10.0.0.1", "port_value": 9001}}
    assert manager["route_config"] == {
        "name": "inbound",
        "virtual_hosts": [
            {
                "name": "inbound",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "non_forwarding_action": {}}],
            }
        ],
    }


def test_two_ways_to_write_one_address_are_one_endpoint(compiled):
    spec = (
        "{hosts: [a.example], resolution: STATIC, ports: [{number: 80, name: http}], "
        "endpoints: [{address: '::1'}, {address: '0:0:0:0:0:0:0:1'}, {address: 'FE80::1'}]}"
    )
    result = compiled(SE % ("a", spec))
    assert [("::1", 80), ("fe80::1", 80)] == endpoints(result, "outbound|80||a.example")


def test_an_address_with_a_zone_is_refused(compiled):
    spec = "{hosts: [a.example], resolution: STATIC, ports: [{number: 80, name: http}], endpoints: [{address: 'fe80::1%eth0'}]}"
    (error,) = (each for each in compiled(SE % ("a", spec)).findings if "fe80" in each.message)
    assert error.message.startswith("spec.endpoints[0].address: 'fe80::1%eth0' is not")
