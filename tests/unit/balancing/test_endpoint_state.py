import pytest

from meshlib.balancing import EndpointState
from meshlib.model.endpoint import Endpoint, HealthStatus


@pytest.mark.parametrize(
    ("health", "healthy", "degraded", "excluded"),
    [
        (HealthStatus.UNKNOWN, True, False, False),
        (HealthStatus.HEALTHY, True, False, False),
        (HealthStatus.DEGRADED, False, True, False),
        (HealthStatus.UNHEALTHY, False, False, False),
        (HealthStatus.TIMEOUT, False, False, False),
        (HealthStatus.DRAINING, False, False, True),
    ],
)
def test_eds_health_decides_the_bucket(health: HealthStatus, healthy: bool, degraded: bool, excluded: bool) -> None:
    state = EndpointState(Endpoint("a:1", health=health))

    assert (healthy, degraded, excluded) == (state.is_healthy, state.is_degraded, state.is_excluded)


@pytest.mark.parametrize("health", [HealthStatus.HEALTHY, HealthStatus.DEGRADED])
def test_ejection_beats_what_eds_says(health: HealthStatus) -> None:
    state = EndpointState(Endpoint("a:1", health=health))
    state.is_ejected = True

    assert (state.is_healthy, state.is_degraded, state.is_excluded) == (False, False, False)
