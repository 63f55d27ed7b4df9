"""Cases about `override_host`: requests that name their hosts, among names that do not exist and hosts that are out.

python -m differential.hosts --named --clusters 100 --requests 10 --seed 7
"""

from differential.generate import TYPE, Json
from differential.hosts import HostGenerator, HostRequest

__all__ = ["NamedGenerator"]

_OVERRIDE = f"{TYPE}envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost"
_METADATA = {"key": "envoy.lb", "path": [{"key": "hosts"}]}
_NAMES = ("X-Pick", "x-pick-too", "x-own")


class NamedGenerator(HostGenerator):
    """Makes clusters whose requests may name hosts, and requests that do."""

    primes = (11, 101)
    ring_sizes = (10, 50)
    has_default_sizes = False

    def cluster(self, number: int | str) -> Json:
        result = super().cluster(number)
        inner = result.get("load_balancing_policy")
        if inner is None:
            for name in ("lb_policy", "maglev_lb_config", "ring_hash_lb_config"):
                result.pop(name, None)
            result["common_lb_config"].pop("locality_weighted_lb_config", None)
            entry = {"typed_extension_config": {"name": "p", "typed_config": self._extension(is_localised=False)}}
            inner = {"policies": [entry]}
        if self._maybe(0.2):
            inner = self._around(inner)
        self._counts = getattr(self, "_counts", {})
        self._counts[result["name"]] = self._host
        return {**result, "load_balancing_policy": self._around(inner)}

    def _around(self, inner: Json) -> Json:
        sources: list[Json] = [{"header": name} for name in _NAMES if self._maybe(0.6)]
        if not sources or self._maybe(0.2):
            sources.insert(0, {"metadata": _METADATA})
        typed = {"@type": _OVERRIDE, "override_host_sources": sources, "fallback_policy": inner}
        return {"policies": [{"typed_extension_config": {"name": "o", "typed_config": typed}}]}

    def route(self, cluster: str) -> Json:
        result = super().route(cluster)
        if self._maybe(0.3):
            # Hosts are chosen by what goes out.
            result["request_headers_to_add"] = [{"header": {"key": "x-pick", "value": "127.77.0.1:9"}}]
        if self._maybe(0.2):
            result["request_headers_to_remove"] = ["x-pick-too"]
        return result

    def request(self, cluster: str) -> HostRequest:
        base = super().request(cluster)
        headers = [item for item in base.headers if item[0] != "x-own"]
        for name in ("x-pick", "x-pick-too", "x-own", "x-pick"):
            if self._maybe(0.5):
                headers.append((name, self._listed(cluster)))
        return HostRequest(cluster, base.path, tuple(headers))

    def _listed(self, cluster: str) -> str:
        hosts = [f"127.77.0.{self._random.randrange(1, self._counts[cluster] + 3)}:9" for _ in range(3)]
        hosts += ["", " ", "nobody", "127.77.0.1", "127.77.0.1:10"]
        chosen = self._random.sample(hosts, self._random.choice((0, 1, 1, 2, 3)))
        return self._random.choice((",", ", ", " ,")).join(chosen).strip()  # as HTTP/1.1 does
