from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshlib.protos import to_dict
from xds_server.model import Compiled, Document, Finding, Instance, Profile
from xds_server.sources import memory
from xds_server.translate import compile_documents

DATA = Path(__file__).parents[3] / "data"
EXAMPLES = Path(__file__).parents[4] / "examples" / "canary"
SHORT = {
    "LDS": "envoy.config.listener.v3.Listener",
    "RDS": "envoy.config.route.v3.RouteConfiguration",
    "CDS": "envoy.config.cluster.v3.Cluster",
    "EDS": "envoy.config.endpoint.v3.ClusterLoadAssignment",
}


@dataclass(frozen=True)
class Result:
    """A compilation as plain data."""

    compiled: Compiled

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.compiled.findings

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding in self.findings]

    def names(self, kind: str) -> list[str]:
        return list(self.compiled.resources[f"type.googleapis.com/{SHORT[kind]}"])

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return to_dict(self.compiled.resources[f"type.googleapis.com/{SHORT[kind]}"][name])

    def cluster(self, subset: str = "", service: str = "reviews", port: int = 80) -> dict[str, Any]:
        return self.get("CDS", f"outbound|{port}|{subset}|{service}.default.svc.cluster.local")

    def routes(self, service: str = "reviews", port: int = 80) -> list[dict[str, Any]]:
        """The routes of a service, without the metadata that says where they come from."""
        found = self.get("RDS", f"outbound|{port}||{service}.default.svc.cluster.local")["virtual_hosts"][0]["routes"]
        return [{key: value for key, value in route.items() if key != "metadata"} for route in found]


def _documents(text: str) -> tuple[Document, ...]:
    documents, findings = memory.from_text(text, "test.yaml")
    assert findings == ()
    return documents


@pytest.fixture
def compiled() -> Callable[..., Result]:
    """Compile YAML text and instances."""

    def compile_text(text: str, *instances: Instance, profile: Profile = Profile.MESHLIB) -> Result:
        return Result(compile_documents(_documents(text), instances, profile=Profile(profile)))

    return compile_text


@pytest.fixture
def instance() -> Callable[..., Instance]:
    """Make an instance of `reviews`; its port makes the id."""

    def make(port: int = 9001, version: str = "v1", **fields: Any) -> Instance:
        labels: Mapping[str, str] = fields.pop("labels", {"version": version})
        values: dict[str, Any] = {
            "id": f"i{port}",
            "service": "reviews",
            "namespace": "default",
            "address": "10.0.0.1",
            "port": port,
            "labels": tuple(sorted(labels.items())),
            "service_account": "reviews",
        }
        return Instance(**(values | fields))

    return make


@pytest.fixture
def read() -> Callable[[str], str]:
    """Read a file of tests/data or examples/canary."""

    def read_file(name: str) -> str:
        path = DATA / name
        return (path if path.exists() else EXAMPLES / name).read_text(encoding="utf-8")

    return read_file


@pytest.fixture
def virtual_service() -> Callable[[str], str]:
    """Wrap the YAML of one or more `http` rules in a VirtualService for `reviews`."""

    def wrap(rules: str, hosts: Sequence[str] = ("reviews",)) -> str:
        indented = "\n".join(f"  {line}" for line in rules.strip("\n").splitlines())
        return (
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\n"
            f"spec:\n  hosts: [{', '.join(hosts)}]\n  http:\n{indented}\n"
        )

    return wrap


@pytest.fixture
def destination_rule() -> Callable[[str], str]:
    """Wrap the YAML of a trafficPolicy (flow style) in a DestinationRule for `reviews` with subsets v1 and v2."""

    def wrap(policy: str = "{loadBalancer: {simple: ROUND_ROBIN}}", subset_policy: str = "") -> str:
        extra = f", trafficPolicy: {subset_policy}" if subset_policy else ""
        return (
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\n"
            f"spec:\n  host: reviews\n  trafficPolicy: {policy}\n  subsets:\n"
            f"  - {{name: v1, labels: {{version: v1}}{extra}}}\n  - {{name: v2, labels: {{version: v2}}}}\n"
        )

    return wrap
