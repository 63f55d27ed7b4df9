"""DNS clusters beside Envoy: which it takes, and the addresses that it finds at the same name server.

One Envoy reads all clusters from a file and refuses the bad ones by name.
"""

import json
import re
import time

import pytest
from peers.envoy import Envoy, socket_address
from peers.name_server import NameServer
from peers.processes import poll

from meshlib.model.cluster import DnsDiscovery
from meshlib.model.dns import DnsQuestion
from meshlib.protos import from_dict
from meshlib.runtime import dns
from meshlib.runtime.dns import look_up
from meshlib.xds.decode import decode_resource
from meshlib.xds.dns import answer_after, dns_hosts, with_addresses
from meshlib.xds.resources import CDS

TYPE = "type.googleapis.com/"
CLUSTER = "envoy.config.cluster.v3.Cluster"
EXTENSIONS = "envoy.extensions."
FAMILIES = ("AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL")
NAMES = ("four", "both", "six", "alias", "empty", "none", "fails")
REFUSED = {
    "two endpoints": {"type": "LOGICAL_DNS", "hosts": ("four", "both")},
    "no endpoints": {"type": "LOGICAL_DNS", "hosts": ()},
    "refresh too fast": {"type": "DnsCluster", "dns_refresh_rate": "0.001s"},
    "negative jitter": {"type": "DnsCluster", "dns_jitter": "-1s"},
    "no base": {"type": "DnsCluster", "dns_failure_refresh_rate": {"max_interval": "1s"}},
    "base over max": {"dns_failure_refresh_rate": {"base_interval": "2s", "max_interval": "1s"}},
    "base over max by type": {
        "type": "DnsCluster",
        "dns_failure_refresh_rate": {"base_interval": "2s", "max_interval": "1s"},
    },
    "resolver by name": {"resolver_name": "r"},
}
ACCEPTED = {
    "failure pace": {"dns_failure_refresh_rate": {"base_interval": "1s"}},
    "lower priority of one": {"type": "LOGICAL_DNS", "priority": 3},
    "not warmed": {"wait_for_warm_on_init": False, "hosts": ("fails",)},
    "jitter": {"dns_jitter": "0.01s"},
    "time to live": {"respect_dns_ttl": True, "hosts": ("forever",)},
}


class Cases:
    """Clusters by name, all of which ask one name server."""

    def __init__(self, server):
        self._server = server
        self.clusters = {}

    def add(self, name, *, hosts=("four",), priority=0, resolver_name="", **fields):
        address = socket_address(f"127.0.0.1:{self._server.port}")
        cares = {
            "@type": f"{TYPE}{EXTENSIONS}network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [address],
        }
        endpoints = [{"endpoint": {"address": socket_address(f"{host}.example:80")}} for host in hosts]
        if resolver_name:
            endpoints[0]["endpoint"]["address"]["socket_address"]["resolver_name"] = resolver_name
        assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints, "priority": priority}]}
        options = {"typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": cares}}
        options["dns_refresh_rate"] = "0.2s"
        base = {"name": name, "load_assignment": assignment, "connect_timeout": "1s"}
        if fields.get("type") == "DnsCluster":
            config = {"@type": f"{TYPE}{EXTENSIONS}clusters.dns.v3.DnsCluster", **options, **fields}
            del config["type"]
            base["cluster_type"] = {"name": "envoy.clusters.dns", "typed_config": config}
            self.clusters[name] = base
        else:
            self.clusters[name] = {**base, "type": "STRICT_DNS", **options, **fields}

    def add_all(self):
        for host in NAMES:
            for family in FAMILIES:
                self.add(f"{host} {family}", hosts=(host,), dns_lookup_family=family)
            self.add(f"{host} unspecified", hosts=(host,), type="DnsCluster")
            self.add(f"{host} logical", hosts=(host,), type="LOGICAL_DNS", dns_lookup_family="V4_PREFERRED")
            one = {"all_addresses_in_single_endpoint": True, "dns_lookup_family": "V4_PREFERRED"}
            self.add(f"{host} by type", hosts=(host,), type="DnsCluster", **one)
        self.add("several names", hosts=("four", "six", "none"), dns_lookup_family="ALL")
        for name, fields in (REFUSED | ACCEPTED).items():
            self.add(name, **fields)

    def write(self, folder):
        """Write them for Envoy; returns the path."""
        resources = [{"@type": TYPE + CLUSTER, **cluster} for cluster in self.clusters.values()]
        path = folder / "cds.json"
        path.write_text(json.dumps({"version_info": "1", "resources": resources}))
        return path


class Meshlib:
    """Looks the names of decoded clusters up as the control thread does."""

    def __init__(self, clusters):
        decoded = {
            name: decode_resource(CDS, from_dict(CLUSTER, cluster).SerializeToString())
            for name, cluster in clusters.items()
        }
        self.errors = {name: found.errors for name, found in decoded.items() if found.errors}
        self._discoveries = {name: found.value.discovery for name, found in decoded.items() if not found.errors}
        self._answers = {}

    def addresses(self):
        """Look everything up once more."""
        records = {}
        for discovery in self._discoveries.values():
            for host in dns_hosts(discovery.assignment):
                question = DnsQuestion(host, discovery.lookup)
                if question.label not in records:
                    records[question.label] = found = self._look_up(question)
                    self._answers[question.label] = answer_after(self._answers.get(question.label), *found)
        return {name: self._of(discovery) for name, discovery in self._discoveries.items()}

    def _of(self, discovery: DnsDiscovery):
        """Return the addresses, and those among which a logical host may have another than we: servers turn the order
        round, and a resolver sorts."""
        hosts = dns_hosts(discovery.assignment)
        answers = {host: self._answers[DnsQuestion(host, discovery.lookup).label] for host in hosts}
        localities = with_addresses(discovery, answers).localities
        found = sorted(endpoint.address for locality in localities for endpoint in locality.endpoints)
        if not discovery.logical:
            return found, found
        (answer,) = answers.values()
        every = answer.addresses or answer.last
        return found, [f"[{address}]:80" if ":" in address else f"{address}:80" for address in every]

    @staticmethod
    def _look_up(question):
        try:
            return look_up(question), ""
        except OSError as error:
            return None, str(error)


def refused_by(envoy, names):
    """The clusters that Envoy's log names after the words that it refuses some with."""
    _, _, reasons = envoy.log.read_text().partition("Error adding/updating cluster(s)")
    return {name for name in names if re.search(rf"(^|,) {re.escape(name)}: ", reasons)}


def addresses_of(envoy, wanted):
    """The hosts of Envoy's clusters, of those that it has."""
    found = {}
    for status in json.loads(envoy.admin("/clusters?format=json")).get("cluster_statuses", ()):
        hosts = [one["address"]["socket_address"] for one in status.get("host_statuses", ())]
        texts = [f"[{one['address']}]" if ":" in one["address"] else one["address"] for one in hosts]
        found[status["name"]] = sorted(f"{text}:{one['port_value']}" for text, one in zip(texts, hosts, strict=True))
    return {name: found[name] for name in wanted if name in found}


@pytest.fixture
def name_server():
    with NameServer() as server:
        server.put("four.example", "127.0.0.2", "127.0.0.1")
        server.put("both.example", "127.0.0.1", "fd00::1", "fd00::2")
        server.put("six.example", "fd00::3")
        server.alias("alias.example", "both.example")
        server.put("empty.example")
        server.fail("fails.example")
        server.put("forever.example", "127.0.0.7", ttl=3600)
        yield server


def test_the_same_clusters_are_taken_and_the_same_addresses_found(name_server, tmp_path, monkeypatch):
    """1. Both read all clusters. 2. The same are refused. 3. Addresses are the same. 4. Names change; so again."""
    monkeypatch.setattr(dns, "_has_route", lambda family: True)  # where there is none AUTO differs on purpose
    cases = Cases(name_server)
    cases.add_all()
    source = {"path_config_source": {"path": str(cases.write(tmp_path))}, "resource_api_version": "V3"}
    bootstrap = {"node": {"id": "e", "cluster": "c"}, "dynamic_resources": {"cds_config": source}}
    envoy = Envoy("envoy", bootstrap, tmp_path)
    try:
        meshlib = Meshlib(cases.clusters)
        poll(lambda: refused_by(envoy, cases.clusters) >= set(REFUSED), "Envoy to refuse")
        refused = refused_by(envoy, cases.clusters)
        assert set(REFUSED) == refused == set(meshlib.errors)
        taken = [name for name in cases.clusters if name not in refused]

        def differences():
            own, theirs = meshlib.addresses(), addresses_of(envoy, taken)
            return {
                name: (theirs.get(name), found)
                for name, (found, any_of) in own.items()
                if name not in theirs or len(found) != len(theirs[name]) or not {*theirs[name]} <= {*any_of}
            }

        def check_same():
            for _ in range(200):
                if not (found := differences()):
                    return
                time.sleep(0.25)
            raise AssertionError(f"Envoy and meshlib have other addresses: {found}")

        check_same()
        name_server.put("six.example", "127.0.0.9")
        name_server.drop("four.example")
        name_server.put("both.example")
        name_server.fail("alias.example")
        name_server.put("fails.example", "127.0.0.5")
        poll(lambda: ["127.0.0.5:80"] == addresses_of(envoy, ["fails ALL"]).get("fails ALL"), "Envoy to look names up")
        check_same()
    finally:
        envoy.stop()
