import pytest

from meshlib.model.descriptors import GenericKey, LimitRule
from meshlib.model.filters import AdaptiveConcurrency, AdmissionControl, ListedLimit, LocalRateLimit, TokenBucket
from meshlib.model.headers import HeaderAdd
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import Fraction
from meshlib.model.route import RouteConfiguration

HTTP = "envoy.extensions.filters.http."
RATE = f"{HTTP}local_ratelimit.v3.LocalRateLimit"
ADMISSION = f"{HTTP}admission_control.v3.AdmissionControl"
CONCURRENCY = f"{HTTP}adaptive_concurrency.v3.AdaptiveConcurrency"
PLACE = "api_listener.api_listener.http_filters[0].typed_config"
BUCKET = {"max_tokens": 10, "fill_interval": "1s"}
CRITERIA = {"grpc_criteria": {"grpc_success_status": [0, 5]}}
GRADIENT = {
    "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
    "min_rtt_calc_params": {"interval": "60s"},
}


@pytest.fixture
def limits(decode_client, packed):
    """Decode a listener with one filter; returns what it is, or its errors."""

    def run(kind, **fields):
        entry = {"name": "limit", "typed_config": packed(kind, **fields)}
        decoded = decode_client({**entry, "disabled": fields.pop("disabled", False)})
        return decoded.errors if decoded.value is None else decoded.value.limits

    return run


def test_rate_limit_does_nothing_unless_it_is_enabled_and_enforced(limits):
    assert (ListedLimit("limit", LocalRateLimit(None, Fraction(0), Fraction(0))),) == limits(RATE, stat_prefix="s")


def test_rate_limit_with_everything(limits):
    share = {"default_value": {"numerator": 5, "denominator": "TEN_THOUSAND"}}
    header = {"header": {"key": "X-Mine", "value": "1"}}
    expected = LocalRateLimit(
        TokenBucket(10, 3, 1.0),
        Fraction(5, 10_000),
        Fraction(5, 10_000),
        503,
        (HeaderAdd("x-mine", "1"),),
        (HeaderAdd("x-mine", "1"),),
        is_exhaustion=True,
        tells_limits=True,
    )
    found = limits(
        RATE,
        stat_prefix="s",
        token_bucket={**BUCKET, "tokens_per_fill": 3},
        filter_enabled=share,
        filter_enforced=share,
        status={"code": 503},
        response_headers_to_add=[header],
        request_headers_to_add_when_not_enforced=[header],
        rate_limited_as_resource_exhausted=True,
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
    )
    assert (ListedLimit("limit", expected),) == found


def test_admission_control(limits):
    assert (ListedLimit("limit", AdmissionControl(grpc_success=frozenset({0, 5}))),) == limits(
        ADMISSION, success_criteria=CRITERIA
    )
    expected = AdmissionControl(False, 10.0, 2.0, 0.5, 7, 0.25, ((200, 300),))
    assert (ListedLimit("limit", expected),) == limits(
        ADMISSION,
        success_criteria={"http_criteria": {"http_success_status": [{"start": 200, "end": 300}]}},
        enabled={"default_value": False, "runtime_key": "k"},
        sampling_window="10.9s",
        aggression={"default_value": 2.0, "runtime_key": "k"},
        sr_threshold={"default_value": {"value": 50}, "runtime_key": "k"},
        rps_threshold={"default_value": 7, "runtime_key": "k"},
        max_rejection_probability={"default_value": {"value": 25}, "runtime_key": "k"},
    )


def test_adaptive_concurrency(limits):
    assert (ListedLimit("limit", AdaptiveConcurrency()),) == limits(CONCURRENCY, gradient_controller_config=GRADIENT)
    expected = AdaptiveConcurrency(False, 429, 90.0, 50, 0.5, None, 0.02, 10, 5.0, 7, 1.0)
    assert (ListedLimit("limit", expected),) == limits(
        CONCURRENCY,
        enabled={"default_value": False, "runtime_key": "k"},
        concurrency_limit_exceeded_status={"code": 429},
        gradient_controller_config={
            "sample_aggregate_percentile": {"value": 90},
            "concurrency_limit_params": {"max_concurrency_limit": 50, "concurrency_update_interval": "0.5s"},
            "min_rtt_calc_params": {
                "fixed_value": "0.02s",
                "request_count": 10,
                "jitter": {"value": 5},
                "min_concurrency": 7,
                "buffer": {"value": 1},
            },
        },
    )


DESCRIPTOR = {"entries": [{"key": "k", "value": "v"}], "token_bucket": BUCKET}
RULE = {"actions": [{"generic_key": {"descriptor_value": "v"}}]}


@pytest.mark.parametrize(
    ("kind", "fields", "path"),
    [
        (RATE, {"token_bucket": {**BUCKET, "fill_interval": "0.04s"}}, "token_bucket.fill_interval"),
        (RATE, {"local_cluster_rate_limit": {}}, "local_cluster_rate_limit"),
        (RATE, {"descriptors": [DESCRIPTOR, DESCRIPTOR]}, "descriptors[1]"),
        (RATE, {"vh_rate_limits": 7}, "vh_rate_limits"),
        (RATE, {"rate_limits": [{**RULE, "stage": 1}]}, "rate_limits[0].stage"),
        (RATE, {"rate_limits": [{**RULE, "disable_key": "k"}]}, "rate_limits[0].disable_key"),
        (RATE, {"rate_limits": [{"actions": [{"source_cluster": {}}]}]}, "rate_limits[0].actions[0].source_cluster"),
        (RATE, {"rate_limits": [{**RULE, "hits_addend": {}}]}, "rate_limits[0].hits_addend"),
        (
            RATE,
            {"rate_limits": [{**RULE, "hits_addend": {"number": 1, "format": "%REQ(x)%"}}]},
            "rate_limits[0].hits_addend",
        ),
        (
            RATE,
            {"rate_limits": [{**RULE, "hits_addend": {"format": "%REQ(x)%0"}}]},
            "rate_limits[0].hits_addend.format",
        ),
        (ADMISSION, {}, "evaluation_criteria"),
        (
            ADMISSION,
            {"success_criteria": CRITERIA, "sr_threshold": {"default_value": {"value": 0.5}, "runtime_key": "k"}},
            "sr_threshold",
        ),
        (ADMISSION, {"success_criteria": CRITERIA, "sampling_window": "0.5s"}, "sampling_window"),
        (
            CONCURRENCY,
            {"gradient_controller_config": {**GRADIENT, "min_rtt_calc_params": {}}},
            "gradient_controller_config.min_rtt_calc_params.interval",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(limits, kind, fields, path):
    stat = {"stat_prefix": "s"} if kind == RATE else {}
    errors = limits(kind, **stat, **fields)
    assert [f"{PLACE}.{path}"] == [error.partition(": ")[0] for error in errors]


def test_routes_may_switch_filters_off_or_give_rate_limits_of_their_own(decode_client, packed):
    override = packed(RATE, stat_prefix="s", token_bucket=BUCKET)
    off = packed("envoy.config.route.v3.FilterConfig", disabled=True, config={})
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, "typed_per_filter_config": {"a": override, "b": off}}
    host = {"name": "vh", "domains": ["*"], "routes": [route], "typed_per_filter_config": {"a": off}}
    decoded = decode_client(route_config={"name": "rc", "virtual_hosts": [host]})
    assert () == decoded.errors
    assert ["stat_prefix"] == [unused.rpartition(".")[2] for unused in decoded.unused]
    assert isinstance(decoded.value, ClientListener) and isinstance(decoded.value.routes, RouteConfiguration)
    (found,) = decoded.value.routes.virtual_hosts
    assert (("a", None),) == found.limits
    own = LocalRateLimit(TokenBucket(10, 1, 1.0), Fraction(0), Fraction(0))
    assert (("a", own), ("b", None)) == found.routes[0].limits


def test_other_limits_have_no_configuration_per_route(decode_route, packed):
    override = packed(ADMISSION, success_criteria=CRITERIA)
    decoded = decode_route(typed_per_filter_config={"a": override})
    assert "AdmissionControl has no configuration per route" in decoded.errors[0]


def test_an_override_of_a_rate_limit_needs_a_bucket(decode, packed):
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "c"},
        "typed_per_filter_config": {"limit": packed(RATE, stat_prefix="s")},
    }
    decoded = decode("RDS", {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]})
    place = 'virtual_hosts[0].routes[0].typed_per_filter_config["limit"].token_bucket'
    assert decoded.errors == (f"{place}: is required",)


def test_rules_of_routes_that_cannot_be_honoured_make_no_descriptor(decode):
    rules = [{"actions": [{"source_cluster": {}}]}, {**RULE, "stage": 3}, {**RULE, "disable_key": "k"}]
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c", "rate_limits": rules}}
    decoded = decode("RDS", {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]})
    assert decoded.errors == ()
    action = decoded.value.virtual_hosts[0].routes[0].action
    off = LimitRule((), is_off=True)
    assert action.limit_rules == (off, LimitRule((GenericKey("generic_key", "v"),), 3), off)
    assert [field for field in decoded.unused if "source_cluster" in field]
