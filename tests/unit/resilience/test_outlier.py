from meshlib.model.cluster import OutlierDetection
from meshlib.resilience.outlier import Ejection, EjectionReason, OutlierDetector, Unejection
from meshlib.testing import FixedRng

RNG = FixedRng(0.0)
ALL = {"max_ejection_percent": 100}


def detector(hosts: int = 3, **options: float) -> OutlierDetector:
    config = OutlierDetection(**{**ALL, **options})  # type: ignore[arg-type]
    return OutlierDetector(config, [f"h{index}" for index in range(hosts)], 0.0)


def fail(found: OutlierDetector, host: str, times: int = 5, code: int = 500, now: float = 0.0) -> Ejection | None:
    last = None
    for _ in range(times):
        last = found.record_code(host, code, now, RNG)
    return last


def test_fifth_server_error_in_a_row_ejects() -> None:
    found = detector()

    assert fail(found, "h0", 4) is None
    assert fail(found, "h0", 1) == Ejection("h0", EjectionReason.CONSECUTIVE_5XX, 30.0)
    assert found.is_ejected("h0")
    assert found.ejections_active == 1


def test_any_answer_below_500_ends_the_run() -> None:
    found = detector()
    fail(found, "h0", 4)
    found.record_code("h0", 429, 0.0, RNG)

    assert fail(found, "h0", 4) is None


def test_gateway_errors_have_a_counter_of_their_own() -> None:
    found = detector(consecutive_gateway_failure=3, enforcing_consecutive_gateway_failure=100)

    assert fail(found, "h0", 2, 503) is None
    assert fail(found, "h0", 1, 500) is None, "a server error that is none of the gateway's ends that run"
    assert fail(found, "h1", 3, 504) == Ejection("h1", EjectionReason.CONSECUTIVE_GATEWAY_FAILURE, 30.0)


def test_gateway_errors_are_not_enforced_by_default() -> None:
    found = detector(consecutive_gateway_failure=3, consecutive_5xx=100)

    assert fail(found, "h0", 10, 503) is None
    assert found.ejections_detected == 3


def test_detection_that_is_refused_needs_a_new_run() -> None:
    found = detector(max_ejection_percent=0)

    assert fail(found, "h0", 5) is None
    found.config = OutlierDetection(max_ejection_percent=100)
    assert fail(found, "h0", 4) is None
    assert fail(found, "h0", 1) is not None
    assert found.ejections_overflow == 1


def test_default_ceiling_spares_clusters_of_fewer_than_ten() -> None:
    few, ten = detector(9, max_ejection_percent=10), detector(10, max_ejection_percent=10)
    for index in range(9):
        fail(few, f"h{index}")
        fail(ten, f"h{index}")

    assert few.ejections_active == 0
    assert ten.ejections_active == 1
    assert ten.ejections_overflow == 8


def test_two_thirds_of_three_is_two() -> None:
    found = detector(3, max_ejection_percent=67)
    for index in range(3):
        fail(found, f"h{index}")

    assert found.ejections_active == 2


def test_first_ejection_can_always_be_allowed() -> None:
    found = detector(3, max_ejection_percent=0, always_eject_one_host=True)

    assert fail(found, "h0") is not None
    assert fail(found, "h1") is None


def test_enforcing_percentage_is_drawn() -> None:
    found = detector(enforcing_consecutive_5xx=30)
    unlucky, lucky = FixedRng(0.29), FixedRng(0.3)
    for rng, host in ((unlucky, "h0"), (lucky, "h1")):
        for _ in range(5):
            found.record_code(host, 500, 0.0, rng)

    assert (found.is_ejected("h0"), found.is_ejected("h1")) == (True, False)


def test_ejected_host_is_not_counted() -> None:
    found = detector()
    fail(found, "h0")

    assert fail(found, "h0", 20) is None
    assert found.ejections_detected == 1


def test_unknown_host_is_nobody() -> None:
    assert fail(detector(), "gone", 20) is None


def test_host_comes_back_with_the_first_sweep_after_its_time() -> None:
    found = detector()
    fail(found, "h0", now=5.0)

    assert [found.sweep(now, RNG) for now in (10.0, 20.0, 30.0, 34.9)] == [()] * 4
    assert found.sweep(40.0, RNG) == (Unejection("h0"),), "35 s is over, rounded up to the grid of sweeps"
    assert not found.is_ejected("h0")
    assert found.ejections_active == 0


def test_sweep_waits_for_the_interval() -> None:
    found = detector(base_ejection_time_s=1.0)
    fail(found, "h0")

    assert found.sweep(9.9, RNG) == ()
    assert found.sweep(10.0, RNG) == (Unejection("h0"),)
    fail(found, "h0", now=10.0)
    assert found.sweep(15.0, RNG) == ()


def test_time_grows_with_each_ejection_up_to_the_maximum() -> None:
    found = detector(max_ejection_time_s=80.0, interval_s=1000.0)
    times = []
    now = 0.0
    for _ in range(5):
        ejection = fail(found, "h0", now=now)
        assert ejection is not None
        times.append(ejection.ejection_time_s)
        now += 1000.0
        assert found.sweep(now, RNG) == (Unejection("h0"),)

    assert times == [30.0, 60.0, 80.0, 80.0, 80.0]


def test_good_conduct_is_forgiven_a_step_per_interval() -> None:
    """Two ejections make a multiplier of 2; one interval after coming back it is 1, so the next time is 60 s again."""
    found = detector()
    fail(found, "h0", now=0.0)
    found.sweep(30.0, RNG)
    fail(found, "h0", now=30.0)
    assert found.sweep(90.0, RNG) == (Unejection("h0"),)
    found.sweep(100.0, RNG)

    ejection = fail(found, "h0", now=100.0)

    assert ejection is not None
    assert ejection.ejection_time_s == 60.0


def test_multiplier_does_not_fall_below_nothing() -> None:
    found = detector()
    fail(found, "h0")
    for step in range(3, 20):
        found.sweep(step * 10.0, RNG)

    ejection = fail(found, "h0", now=200.0)

    assert ejection is not None
    assert ejection.ejection_time_s == 30.0


def test_coming_back_starts_with_clean_counters() -> None:
    found = detector(consecutive_gateway_failure=100)
    fail(found, "h0", code=503)
    found.sweep(30.0, RNG)

    assert fail(found, "h0", 4, now=31.0) is None
    assert fail(found, "h0", 1, now=31.0) is not None


def test_jitter_prolongs_the_ejection() -> None:
    found = detector(max_ejection_time_jitter_s=2.0)
    for _ in range(5):
        last = found.record_code("h0", 500, 0.0, FixedRng(0.5))

    assert last is not None
    assert last.ejection_time_s == 31.0


def test_maximum_below_the_base_counts_as_the_base() -> None:
    ejection = fail(detector(base_ejection_time_s=400.0), "h0")

    assert ejection is not None
    assert ejection.ejection_time_s == 400.0


def test_local_failures_count_with_the_others_unless_split() -> None:
    found = detector()
    for _ in range(4):
        found.record_local_failure("h0", 503, 0.0, RNG)

    assert fail(found, "h0", 1) == Ejection("h0", EjectionReason.CONSECUTIVE_5XX, 30.0)


def test_split_counts_local_failures_apart() -> None:
    found = detector(split_external_local_origin_errors=True)
    for _ in range(4):
        found.record_local_failure("h0", 503, 0.0, RNG)

    assert fail(found, "h0", 4) is None
    assert found.record_local_failure("h0", 503, 0.0, RNG) == Ejection(
        "h0", EjectionReason.CONSECUTIVE_LOCAL_ORIGIN_FAILURE, 30.0
    )
    assert found.record_local_failure("h0", 503, 0.0, RNG) is None


def test_connection_ends_a_run_of_local_failures() -> None:
    found = detector(split_external_local_origin_errors=True)
    for _ in range(4):
        found.record_local_failure("h0", 503, 0.0, RNG)
    found.record_connected("h0")

    assert found.record_local_failure("h0", 503, 0.0, RNG) is None


def test_update_keeps_who_stays_and_forgets_who_goes() -> None:
    found = detector(3)
    fail(found, "h0")
    fail(found, "h1")
    found.update(found.config, ["h1", "h2"])
    assert (found.ejections_active, found.is_ejected("h1")) == (1, True)

    found.update(found.config, ["h0", "h1", "h2"])

    assert not found.is_ejected("h0"), "a host that disappears and returns starts fresh"


def rates(found: OutlierDetector, *successes: int, total: int = 100, now: float = 0.0) -> None:
    """Give each host `total` results, so many of them successes, never two failures in a row if that can be."""
    for index, good in enumerate(successes):
        results = sorted((i * total // good, 200) for i in range(good)) if good else []
        results += sorted((i * total // (total - good), 500) for i in range(total - good))
        for _, code in sorted(results):
            found.record_code(f"h{index}", code, now, RNG)


def test_host_below_the_mean_less_its_share_of_the_deviation_is_ejected() -> None:
    """Rates of 50 and four times 100: mean 90, deviation 20, threshold 52."""
    found = detector(5, consecutive_5xx=1000)
    rates(found, 50, 100, 100, 100, 100)

    assert found.sweep(9.9, RNG) == ()
    assert found.sweep(10.0, RNG) == (Ejection("h0", EjectionReason.SUCCESS_RATE, 30.0),)
    assert found.is_ejected("h0")


def test_host_exactly_at_the_threshold_stays() -> None:
    found = detector(5, consecutive_5xx=1000, success_rate_stdev_factor=2000)
    rates(found, 50, 100, 100, 100, 100)

    assert found.sweep(10.0, RNG) == (), "90 - 2 * 20 = 50"


def test_success_rates_need_hosts_enough_with_requests_enough() -> None:
    few_hosts = detector(4, consecutive_5xx=1000)
    rates(few_hosts, 0, 100, 100, 100)
    few_requests = detector(5, consecutive_5xx=1000)
    rates(few_requests, 0, 99, 99, 99, 99, total=99)

    assert few_hosts.sweep(10.0, RNG) == ()
    assert few_requests.sweep(10.0, RNG) == ()


def test_every_interval_counts_anew() -> None:
    found = detector(5, consecutive_5xx=1000)
    rates(found, 30, 60, 60, 60, 60, total=60)
    assert found.sweep(10.0, RNG) == ()
    rates(found, 30, 60, 60, 60, 60, total=60)

    assert found.sweep(20.0, RNG) == (), "60 requests an interval, never the 100 that it takes"


def test_failure_percentage_compares_with_a_fixed_number() -> None:
    options = {"consecutive_5xx": 1000, "enforcing_success_rate": 0, "failure_percentage_threshold": 50}
    found = detector(5, enforcing_failure_percentage=100, **options)
    rates(found, 25, 26, 50, 50, 50, total=50)

    assert found.sweep(10.0, RNG) == (Ejection("h0", EjectionReason.FAILURE_PERCENTAGE, 30.0),), "50 >= 50, 48 < 50"


def test_failure_percentage_is_not_enforced_by_default() -> None:
    found = detector(5, consecutive_5xx=1000)
    rates(found, 0, 0, 0, 0, 0)

    assert found.sweep(10.0, RNG) == (), "all alike: nobody is below the mean"
    assert found.ejections_detected == 5


def test_split_compares_local_failures_apart() -> None:
    found = detector(5, split_external_local_origin_errors=True, consecutive_local_origin_failure=1000)
    for index in range(5):
        for number in range(100):
            if index == 0 and number % 2:
                found.record_local_failure(f"h{index}", 503, 0.0, RNG)
            else:
                found.record_connected(f"h{index}")
                found.record_code(f"h{index}", 200, 0.0, RNG)

    assert found.sweep(10.0, RNG) == (Ejection("h0", EjectionReason.LOCAL_ORIGIN_SUCCESS_RATE, 30.0),)


def test_local_failure_percentage() -> None:
    found = detector(
        5,
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=1000,
        enforcing_local_origin_success_rate=0,
        enforcing_failure_percentage_local_origin=100,
    )
    for index in range(5):
        for number in range(50):
            if index == 0 and number < 43:
                found.record_local_failure(f"h{index}", 503, 0.0, RNG)
            else:
                found.record_connected(f"h{index}")

    assert found.sweep(10.0, RNG) == (Ejection("h0", EjectionReason.LOCAL_ORIGIN_FAILURE_PERCENTAGE, 30.0),)


def test_comparison_respects_the_ceiling() -> None:
    found = detector(
        5,
        consecutive_5xx=1000,
        max_ejection_percent=40,
        enforcing_success_rate=0,
        enforcing_failure_percentage=100,
    )
    rates(found, 0, 0, 0, 0, 100)

    assert [change.address for change in found.sweep(10.0, RNG)] == ["h0", "h1"]
    assert found.ejections_overflow == 2


def test_ejected_host_is_no_part_of_the_comparison() -> None:
    found = detector(6)
    fail(found, "h0")
    rates(found, *(0, 50, 100, 100, 100, 100), now=1.0)

    changes = found.sweep(10.0, RNG)

    assert [(change.address, change) for change in changes] == [
        ("h1", Ejection("h1", EjectionReason.SUCCESS_RATE, 30.0))
    ]
