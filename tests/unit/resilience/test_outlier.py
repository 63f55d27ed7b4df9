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

    assert [found.sweep(now) for now in (10.0, 20.0, 30.0, 34.9)] == [()] * 4
    assert found.sweep(40.0) == (Unejection("h0"),), "35 s is over, rounded up to the grid of sweeps"
    assert not found.is_ejected("h0")
    assert found.ejections_active == 0


def test_sweep_waits_for_the_interval() -> None:
    found = detector(base_ejection_time_s=1.0)
    fail(found, "h0")

    assert found.sweep(9.9) == ()
    assert found.sweep(10.0) == (Unejection("h0"),)
    fail(found, "h0", now=10.0)
    assert found.sweep(15.0) == ()


def test_time_grows_with_each_ejection_up_to_the_maximum() -> None:
    found = detector(max_ejection_time_s=80.0, interval_s=1000.0)
    times = []
    now = 0.0
    for _ in range(5):
        ejection = fail(found, "h0", now=now)
        assert ejection is not None
        times.append(ejection.ejection_time_s)
        now += 1000.0
        assert found.sweep(now) == (Unejection("h0"),)

    assert times == [30.0, 60.0, 80.0, 80.0, 80.0]


def test_good_conduct_is_forgiven_a_step_per_interval() -> None:
    """Two ejections make a multiplier of 2; one interval after coming back it is 1, so the next time is 60 s again."""
    found = detector()
    fail(found, "h0", now=0.0)
    found.sweep(30.0)
    fail(found, "h0", now=30.0)
    assert found.sweep(90.0) == (Unejection("h0"),)
    found.sweep(100.0)

    ejection = fail(found, "h0", now=100.0)

    assert ejection is not None
    assert ejection.ejection_time_s == 60.0


def test_multiplier_does_not_fall_below_nothing() -> None:
    found = detector()
    fail(found, "h0")
    for step in range(3, 20):
        found.sweep(step * 10.0)

    ejection = fail(found, "h0", now=200.0)

    assert ejection is not None
    assert ejection.ejection_time_s == 30.0


def test_coming_back_starts_with_clean_counters() -> None:
    found = detector(consecutive_gateway_failure=100)
    fail(found, "h0", code=503)
    found.sweep(30.0)

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
