import pytest

from meshlib.model.endpoint import DropOverload, Endpoint, HealthStatus, Locality, LocalityEndpoints


def endpoint(address="10.0.0.1", port=80, **fields):
    return {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}, **fields}


def locality(*endpoints, region="", **fields):
    return {"locality": {"region": region}, "lb_endpoints": list(endpoints), **fields}


@pytest.fixture
def assignment(decode):
    def run(*localities, **fields):
        return decode("EDS", {"cluster_name": "c", "endpoints": list(localities), **fields})

    return run


def value_of(decoded):
    assert decoded.errors == ()
    return decoded.value


def addresses_of(decoded):
    return [found.address for group in value_of(decoded).localities for found in group.endpoints]


def test_endpoints_with_everything(assignment):
    one = endpoint(
        health_status="DRAINING",
        load_balancing_weight=7,
        metadata={"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}},
    )
    one["endpoint"]["hostname"] = "pod-1"
    found = value_of(assignment(locality(one, region="eu", load_balancing_weight=3, priority=0)))
    metadata = {"envoy.transport_socket_match": {"tlsMode": "istio"}}
    expected = Endpoint("10.0.0.1:80", 7, HealthStatus.DRAINING, "pod-1", metadata)
    assert found.localities == (LocalityEndpoints(Locality("eu"), (expected,), 3, 0),)
    assert (found.name, found.overprovisioning_factor) == ("c", 140)


def test_the_name_is_required(decode):
    assert decode("EDS", {}).errors == ("cluster_name: must not be empty",)


def test_no_endpoints_at_all_are_fine(assignment):
    assert value_of(assignment()).localities == ()


@pytest.mark.parametrize(
    ("address", "expected"),
    [("::1", "[::1]:80"), ("2001:DB8:0::5", "[2001:db8::5]:80"), ("255.255.255.255", "255.255.255.255:80")],
)
def test_addresses_are_canonical(assignment, address, expected):
    assert addresses_of(assignment(locality(endpoint(address)))) == [expected]


def test_unix_sockets(assignment):
    pipe = {"endpoint": {"address": {"pipe": {"path": "/run/s"}}}, "load_balancing_weight": 2}
    found = value_of(assignment(locality(pipe))).localities[0].endpoints[0]
    assert (found.address, found.weight) == ("unix:/run/s", 2)


@pytest.mark.parametrize("health", list(HealthStatus))
def test_every_health_status_is_kept(assignment, health):
    found = value_of(assignment(locality(endpoint(health_status=health.name))))
    assert found.localities[0].endpoints[0].health is health


def test_the_second_of_two_equal_addresses_is_dropped(assignment):
    decoded = assignment(locality(endpoint(), endpoint("10.0.0.2")), locality(endpoint(), region="b"))
    assert addresses_of(decoded) == ["10.0.0.1:80", "10.0.0.2:80"]
    assert decoded.unused == ("endpoints[1].lb_endpoints[0]: 10.0.0.1:80 is there already",)


def test_entries_of_one_locality_and_priority_are_put_together(assignment):
    parts = (
        locality(endpoint("10.0.0.1"), region="a", load_balancing_weight=1),
        locality(endpoint("10.0.0.2"), region="b"),
        locality(endpoint("10.0.0.3"), region="a", load_balancing_weight=5),
        locality(endpoint("10.0.0.4"), region="a", priority=1),
    )
    found = value_of(assignment(*parts)).localities
    assert [(group.locality.region, group.priority, group.weight, len(group.endpoints)) for group in found] == [
        ("a", 0, 5, 2),
        ("b", 0, None, 1),
        ("a", 1, None, 1),
    ]


def test_drops_and_overprovisioning(assignment):
    drops = [
        {"category": "lb", "drop_percentage": {"numerator": 25}},
        {"category": "throttle", "drop_percentage": {"numerator": 2_000_000, "denominator": "MILLION"}},
    ]
    found = value_of(assignment(policy={"drop_overloads": drops, "overprovisioning_factor": 200}))
    assert found.drop_overloads == (DropOverload("lb", 25, 100), DropOverload("throttle", 1_000_000, 1_000_000))
    assert (found.overprovisioning_factor, found.weighs_health) == (200, False)
    assert value_of(assignment(policy={"weighted_priority_health": True})).weighs_health


E0 = "endpoints[0].lb_endpoints[0]"
SOCKET = f"{E0}.endpoint.address.socket_address"


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        (endpoint("example.com"), f"{SOCKET}.address"),
        (endpoint(""), f"{SOCKET}.address"),
        (endpoint("10.0.0.1.", 80), f"{SOCKET}.address"),
        (endpoint("10.0.0.01"), f"{SOCKET}.address"),
        (endpoint("256.0.0.1"), f"{SOCKET}.address"),
        (endpoint("1.2.3"), f"{SOCKET}.address"),
        (endpoint(port=65536), f"{SOCKET}.port_value"),
        ({"endpoint": {"address": {"socket_address": {"address": "10.0.0.1"}}}}, f"{SOCKET}.port_value"),
        (
            {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 1, "protocol": "UDP"}}}},
            f"{SOCKET}.protocol",
        ),
        (
            {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "named_port": "http"}}}},
            f"{SOCKET}.named_port",
        ),
        (
            {
                "endpoint": {
                    "address": {"socket_address": {"address": "10.0.0.1", "port_value": 1, "resolver_name": "r"}}
                }
            },
            f"{SOCKET}.resolver_name",
        ),
        ({"endpoint": {"address": {"pipe": {}}}}, f"{E0}.endpoint.address.pipe.path"),
        ({"endpoint": {"address": {"envoy_internal_address": {}}}}, f"{E0}.endpoint.address.envoy_internal_address"),
        ({"endpoint": {}}, f"{E0}.endpoint.address.address"),
        (endpoint(load_balancing_weight=0), f"{E0}.load_balancing_weight"),
    ],
)
def test_endpoints_that_cannot_be_used_are_refused(assignment, bad, path):
    decoded = assignment(locality(bad))
    assert decoded.value is None
    assert decoded.errors[0].startswith(f"{path}: ")


def test_names_of_endpoints_are_refused(assignment):
    errors = assignment(locality({"endpoint_name": "e"})).errors
    assert f"{E0}.endpoint_name: is not supported" in errors


def test_an_unknown_health_status_is_refused(decode):
    from meshlib.protos import message_class
    from meshlib.xds.decode import decode_resource
    from meshlib.xds.resources import EDS

    message = message_class("envoy.config.endpoint.v3.ClusterLoadAssignment")(cluster_name="c")
    one = message.endpoints.add().lb_endpoints.add(health_status=77)
    one.endpoint.address.socket_address.address = "10.0.0.1"
    one.endpoint.address.socket_address.port_value = 1
    assert decode_resource(EDS, message.SerializeToString()).errors == (f"{E0}.health_status: unknown value 77",)


@pytest.mark.parametrize(
    ("localities", "error"),
    [
        ([locality(load_balancing_weight=0)], "endpoints[0].load_balancing_weight: must be at least 1"),
        ([locality(priority=1)], "endpoints: priority 0 is empty, but there are lower ones"),
        ([locality(), locality(priority=2)], "endpoints: priority 1 is empty, but there are lower ones"),
        ([locality(priority=4_000_000_000)], "endpoints[0].priority: must be at most 128"),
        (
            [locality(region="a", load_balancing_weight=2**31), locality(region="b", load_balancing_weight=2**31)],
            "endpoints: the sum of locality weights of priority 0 is more than 4294967295",
        ),
        (
            [locality(endpoint(load_balancing_weight=2**31), endpoint(port=81, load_balancing_weight=2**31))],
            "endpoints: the sum of endpoint weights of priority 0 is more than 4294967295",
        ),
        (
            [locality(leds_cluster_locality_config={"leds_config": {"ads": {}}})],
            "endpoints[0].leds_cluster_locality_config.leds_collection_name: must be an xdstp:// name that ends with /*",
        ),
        (
            [locality(metadata={"filter_metadata": {"envoy.transport_socket_match": {}}})],
            'endpoints[0].metadata.filter_metadata["envoy.transport_socket_match"]: is not supported for localities',
        ),
    ],
)
def test_localities_that_cannot_be_used_are_refused(assignment, localities, error):
    assert error in assignment(*localities).errors


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        ({"overprovisioning_factor": 0}, "policy.overprovisioning_factor"),
        ({"drop_overloads": [{"drop_percentage": {}}]}, "policy.drop_overloads[0].category"),
        ({"endpoint_stale_after": "5s"}, "policy.endpoint_stale_after"),
    ],
)
def test_policies_that_cannot_be_honoured_are_refused(assignment, policy, path):
    assert [path] == [error.partition(": ")[0] for error in assignment(policy=policy).errors]


def test_harmless_fields_are_reported(assignment):
    one = endpoint()
    one["endpoint"] |= {"health_check_config": {"port_value": 1}}
    decoded = assignment(locality(one, proximity=1, metadata={"filter_metadata": {"x": {}}}))
    assert decoded.errors == ()
    assert set(decoded.unused) == {
        "endpoints[0].proximity",
        "endpoints[0].metadata",
    }


def test_many_endpoints_share_their_metadata(assignment):
    metadata = {"filter_metadata": {"x": {"a": 1, "b": 2}}}
    found = value_of(assignment(locality(*(endpoint(port=port, metadata=metadata) for port in range(1, 50)))))
    assert len({id(one.metadata) for one in found.localities[0].endpoints}) == 1


def endpoints_of(decoded):
    return [found for group in value_of(decoded).localities for found in group.endpoints]


def test_endpoints_that_did_not_change_stay_the_same_objects(assignment):
    metadata = {"filter_metadata": {"envoy.lb": {"version": "v1"}}}
    before = endpoints_of(assignment(locality(endpoint(), endpoint(port=81, metadata=metadata))))
    after = endpoints_of(assignment(locality(endpoint(port=81, metadata=metadata), endpoint(load_balancing_weight=2))))
    assert before[1] is after[0]
    assert (before[0].weight, after[1].weight) == (1, 2)


def test_localities_are_the_same_objects(assignment):
    one, two = (value_of(assignment(locality(endpoint(port=port), region="eu"))) for port in (80, 81))
    assert one.localities[0].locality is two.localities[0].locality


@pytest.mark.parametrize("one", [endpoint(port=70000), {"endpoint_name": "x"}, endpoint(load_balancing_weight=0)])
def test_what_is_wrong_with_an_endpoint_is_said_each_time(assignment, one):
    first, second = (assignment(locality(one)) for _ in range(2))
    assert first.errors
    assert first.errors == second.errors


def test_remembered_endpoints_are_bounded(assignment, monkeypatch):
    monkeypatch.setattr("meshlib.xds.decode_endpoint.MAX_KNOWN", 10)
    monkeypatch.setattr("meshlib.xds.decode_endpoint._KNOWN", known := {})
    found = endpoints_of(assignment(locality(*(endpoint(port=number + 1) for number in range(25)))))
    assert [f"10.0.0.1:{number + 1}" for number in range(25)] == [one.address for one in found]
    assert len(known) <= 10
