"""Weighted splits: each client's counts lie within the 99.9 % interval of the weights in the documents.

A count outside is measured once more with fresh calls, since one honest run in a thousand has one. meshlib's chance is
seeded; that of Envoy and of gRPC cannot be.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from peers.world import version_of

from meshlib.cli.demo.statistics import binomial_interval

CALLS = 600
WORKERS = 24  # most of the time goes into the injected delays, during which the others go on
DELAY_S = 1.0


def outside(counts: Counter[str], shares: dict[str, float]) -> dict[str, str]:
    """Return the counts that chance does not excuse."""
    total = sum(counts.values())
    result = {}
    for name, share in shares.items():
        low, high = binomial_interval(total, share)
        if not low <= counts[name] <= high:
            result[name] = f"{counts[name]} of {total}, allowed {low} to {high}"
    return result


def check(measure: Callable[[], Counter[str]], shares: dict[str, float]) -> None:
    counts = measure()
    assert set(counts) <= set(shares), counts
    if outside(counts, shares):
        assert {} == outside(measure(), shares)


def many(call: Callable[[], str], count: int = CALLS) -> Counter[str]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return Counter(pool.map(lambda _: call(), range(count)))


def test_grpc_split_of_90_to_10_is_met_by_all_three(make_world, example):
    world = make_world(example, seed=90_10)
    for version in ("v1", "v2"):
        world.grpc("my-service", version)
    world.start()
    method = "/canary.MyService/Get"
    shares = {"v1": 0.9, "v2": 0.1}
    check(lambda: many(lambda: version_of(world.call_envoy("my-service", method))), shares)
    check(lambda: many(lambda: version_of(world.call_meshlib("my-service", method))), shares)
    check(lambda: Counter(world.grpcio.many(CALLS, "xds:///my-service", method)), shares)
    world.check_accepted()


def test_http_split_of_90_to_10_is_met_by_both(make_world, example):
    world = make_world(example, seed=10_90)
    for version in ("v1", "v2"):
        world.http("user-service", version)
    world.start_envoy()
    world.start_mesh()
    world.envoy.wait_ready()
    for ask in (world.ask_envoy, world.ask_meshlib):
        check(lambda ask=ask: many(lambda: ask("GET", "http://user-service/").version), {"v1": 0.9, "v2": 0.1})


def test_http_split_of_20_to_80_and_delays_of_10_per_cent_are_met_by_both(make_world, example):
    world = make_world(example, seed=20_80)
    for version in ("v1", "v2"):
        world.http("checkout", version)
    world.start_envoy()
    world.start_mesh()
    world.envoy.wait_ready()
    for ask in (world.ask_envoy, world.ask_meshlib):
        slow: Counter[str] = Counter()

        def one(ask=ask, slow=slow):
            answer = ask("GET", "http://checkout.example.com/")
            slow["slow" if answer.elapsed_s >= DELAY_S else "fast"] += 1
            return answer.version

        def measure(slow=slow, one=one):
            slow.clear()
            return many(one, 300)

        check(measure, {"v1": 0.8, "v2": 0.2})
        if outside(slow, {"slow": 0.1}):
            measure()
            assert {} == outside(slow, {"slow": 0.1})
