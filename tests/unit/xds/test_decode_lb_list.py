"""Lists of policies: the first that is known, what each says, and policies of the application."""

import pytest

from meshlib.model.custom_policy import LbPolicy, register_lb_policy
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    CustomPolicy,
    LeastRequest,
    Maglev,
    PeakEwma,
    PickFirst,
    RandomSubsetting,
    RingHash,
    RoundRobin,
    SlowStart,
)
from meshlib.model.lb_policy import Random as RandomPolicy

POLICIES = "envoy.extensions.load_balancing_policies."
CLIENT_SIDE = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"


class Picky(LbPolicy):
    def __init__(self, config):
        if config.get("size") == 0:
            raise ValueError("size must be more than 0")

    def pick(self, endpoints, request):
        return endpoints[0]


register_lb_policy("test.Picky", replace=True)(Picky)


def any_of(name, **fields):
    return {"@type": f"type.googleapis.com/{POLICIES}{name}", **fields}


def typed_struct(name, value, package="xds.type.v3"):
    return {"@type": f"type.googleapis.com/{package}.TypedStruct", "type_url": f"types.test/{name}", "value": value}


def listed(*entries):
    return {"policies": [{"typed_extension_config": {"name": "p", "typed_config": entry}} for entry in entries]}


@pytest.fixture
def policy_of(decode_cluster):
    def decode(*entries):
        decoded = decode_cluster(load_balancing_policy=listed(*entries))
        assert not decoded.errors
        return decoded.value.lb_policy

    return decode


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (any_of("pick_first.v3.PickFirst"), PickFirst()),
        (any_of("pick_first.v3.PickFirst", shuffle_address_list=True), PickFirst(True)),
        (any_of("least_request.v3.LeastRequest", enable_full_scan=True), LeastRequest(full_scan=True)),
        (any_of("least_request.v3.LeastRequest", selection_method="FULL_SCAN"), LeastRequest(full_scan=True)),
        (
            any_of("round_robin.v3.RoundRobin", slow_start_config={"slow_start_window": "30s"}),
            RoundRobin(SlowStart(30.0, 1.0, 0.1)),
        ),
        (
            any_of(
                "least_request.v3.LeastRequest",
                slow_start_config={
                    "slow_start_window": "1.5s",
                    "aggression": {"default_value": 2.0, "runtime_key": "k"},
                    "min_weight_percent": {"value": 25},
                },
            ),
            LeastRequest(slow_start=SlowStart(1.5, 2.0, 0.25)),
        ),
        (any_of("round_robin.v3.RoundRobin", slow_start_config={}), RoundRobin()),
        (any_of(CLIENT_SIDE), ClientSideWeightedRoundRobin()),
        (
            any_of(
                CLIENT_SIDE,
                enable_oob_load_report=True,
                oob_reporting_period="3s",
                blackout_period="0s",
                weight_expiration_period="60s",
                weight_update_period="0.01s",
                error_utilization_penalty=0.5,
                metric_names_for_computing_utilization=["named_metrics.q"],
                slow_start_config={"slow_start_window": "9s"},
            ),
            ClientSideWeightedRoundRobin(True, 3.0, 0.0, 60.0, 0.1, 0.5, ("named_metrics.q",), SlowStart(9.0)),
        ),
        (
            any_of(
                "random_subsetting.v3.RandomSubsetting",
                subset_size=3,
                child_policy=listed(any_of("pick_first.v3.PickFirst")),
            ),
            RandomSubsetting(3, PickFirst()),
        ),
        (
            any_of("peak_ewma.v3alpha.PeakEwma", decay_time="5s", default_rtt="0.02s", max_samples_per_host=9),
            PeakEwma(5.0, 0.02),
        ),
        (
            typed_struct("meshlib.PeakEwma", {"decay_time": "5s", "penalty": 2, "max_retry_after": "30s"}),
            PeakEwma(5.0, penalty_s=2.0, max_penalty_s=30.0),
        ),
        (
            any_of("ring_hash.v3.RingHash", consistent_hashing_lb_config={"hash_balance_factor": 120}),
            RingHash(balance_factor=120),
        ),
        (any_of("ring_hash.v3.RingHash", hash_balance_factor=130), RingHash(balance_factor=130)),
        (
            any_of("maglev.v3.Maglev", consistent_hashing_lb_config={"hash_balance_factor": 120}),
            Maglev(balance_factor=120),
        ),
        (
            typed_struct(f"{POLICIES}least_request.v3.LeastRequest", {"choiceCount": 5}, "udpa.type.v1"),
            LeastRequest(5),
        ),
        (
            typed_struct("test.Picky", {"size": 2, "list": [1, "a"]}),
            CustomPolicy("test.Picky", {"size": 2, "list": (1, "a")}),
        ),
        (typed_struct("test.Picky", {}, "udpa.type.v1"), CustomPolicy("test.Picky")),
    ],
)
def test_policies(policy_of, entry, expected):
    assert policy_of(entry) == expected


def test_whole_numbers_come_as_such(policy_of):
    found = policy_of(typed_struct("test.Picky", {"size": 2, "part": 0.5, "inside": {"list": [3, True, None]}}))
    assert repr(found.config["size"]) == "2"
    assert repr(found.config["part"]) == "0.5"
    assert repr(found.config["inside"]["list"]) == "(3, True, None)"


def test_the_first_known_is_taken(policy_of):
    unknown = typed_struct("nobody.has.This", {})
    assert policy_of(unknown, typed_struct("test.Picky", {}), any_of("random.v3.Random")) == CustomPolicy("test.Picky")
    assert policy_of(unknown, any_of("random.v3.Random")) == RandomPolicy()


def test_an_any_of_a_registered_name_selects_it(decode_cluster):
    from meshlib.protos import message_class
    from meshlib.xds.decode import decode_resource
    from meshlib.xds.resources import CDS

    message = message_class("envoy.config.cluster.v3.Cluster")(name="c", type=3)
    message.eds_cluster_config.eds_config.ads.SetInParent()
    packed = message.load_balancing_policy.policies.add().typed_extension_config
    packed.name = "p"
    packed.typed_config.type_url = "type.googleapis.com/test.Picky"
    packed.typed_config.value = b"\x08\x01"
    decoded = decode_resource(CDS, message.SerializeToString())
    assert decoded.value.lb_policy == CustomPolicy("test.Picky", {"value": b"\x08\x01"})


def test_policies_inside_of_policies(decode_cluster):
    inside = any_of("random_subsetting.v3.RandomSubsetting", subset_size=2, child_policy=listed(any_of(CLIENT_SIDE)))
    outside = any_of("wrr_locality.v3.WrrLocality", endpoint_picking_policy=listed(inside))
    found = decode_cluster(load_balancing_policy=listed(outside)).value
    expected = RandomSubsetting(2, ClientSideWeightedRoundRobin(), per_locality=True)
    assert (found.lb_policy, found.locality_weighted) == (expected, True)

    inside = any_of("wrr_locality.v3.WrrLocality", endpoint_picking_policy=listed(any_of(CLIENT_SIDE)))
    outside = any_of("random_subsetting.v3.RandomSubsetting", subset_size=2, child_policy=listed(inside))
    found = decode_cluster(load_balancing_policy=listed(outside)).value
    assert (found.lb_policy, found.locality_weighted) == (RandomSubsetting(2, ClientSideWeightedRoundRobin()), True)


def test_policies_are_not_nested_without_end(decode_cluster):
    entry = any_of("round_robin.v3.RoundRobin")
    for _ in range(17):
        entry = any_of("wrr_locality.v3.WrrLocality", endpoint_picking_policy=listed(entry))
    assert any("more than 16 deep" in error for error in decode_cluster(load_balancing_policy=listed(entry)).errors)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (typed_struct("test.Picky", {"size": 0}), "test.Picky refuses its configuration: size must be more than 0"),
        (typed_struct("meshlib.PeakEwma", {"decay": "5s"}), "value.decay: is not supported"),
        (typed_struct("meshlib.PeakEwma", {"decay_time": "soon"}), "value.decay_time: must be a duration"),
        (any_of(CLIENT_SIDE, error_utilization_penalty=-1), "error_utilization_penalty"),
        (any_of("random_subsetting.v3.RandomSubsetting", subset_size=1), "child_policy: no supported policy"),
    ],
)
def test_configurations_that_are_wrong(decode_cluster, entry, text):
    assert any(text in error for error in decode_cluster(load_balancing_policy=listed(entry)).errors)


def test_a_metric_that_is_none_is_told(decode_cluster):
    decoded = decode_cluster(
        load_balancing_policy=listed(any_of(CLIENT_SIDE, metric_names_for_computing_utilization=["foo"]))
    )
    assert any("metric_names_for_computing_utilization[0]" in field for field in decoded.unused)


def test_slow_start_of_the_enum(decode_cluster):
    slow = {"slow_start_config": {"slow_start_window": "5s"}}
    assert decode_cluster(round_robin_lb_config=slow).value.lb_policy == RoundRobin(SlowStart(5.0))
    found = decode_cluster(lb_policy="LEAST_REQUEST", least_request_lb_config={"choice_count": 3, **slow})
    assert found.value.lb_policy == LeastRequest(3, slow_start=SlowStart(5.0))


@pytest.mark.parametrize("value", [0, -1, "NaN"])
def test_an_aggression_that_is_none_is_1(decode_cluster, value):
    slow = {"slow_start_window": "5s", "aggression": {"default_value": value, "runtime_key": "k"}}
    decoded = decode_cluster(round_robin_lb_config={"slow_start_config": slow})
    assert decoded.value.lb_policy == RoundRobin(SlowStart(5.0))
    assert any("aggression.default_value" in field for field in decoded.unused)


def test_bounded_loads_of_the_enum(decode_cluster):
    common = {"consistent_hashing_lb_config": {"hash_balance_factor": 150}}
    assert decode_cluster(lb_policy="MAGLEV", common_lb_config=common).value.lb_policy == Maglev(balance_factor=150)
    assert decode_cluster(lb_policy="RING_HASH", common_lb_config=common).value.lb_policy == RingHash(
        balance_factor=150
    )
