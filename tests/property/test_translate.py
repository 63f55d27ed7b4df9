"""Laws of the translation, on documents that a mutation made wrong in any way."""

import copy
import random
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.xds.decode import decode_resource
from xds_server.model import Compiled, Document, Instance, Profile, Severity
from xds_server.sources import memory
from xds_server.translate import compile_documents

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples" / "canary").glob("*.yaml"))
FILES += [
    ROOT / "tests" / "data" / f"{name}.yaml"
    for name in ("every-field", "istio-operator", "reviews-80-20", "strict-and-meshconfig", "user-service-defective")
]
DOCUMENTS = [
    document for file in FILES for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document
]
DOCUMENTS.append(
    {
        "resources": [
            {
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                "name": "native",
                "connect_timeout": "1s",
                "load_assignment": {"cluster_name": "native", "endpoints": [{"lb_endpoints": []}]},
                "metadata": {"filter_metadata": {"a": {"b": 1}}},
                "transport_socket": {
                    "name": "tls",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                        "sni": "a",
                    },
                },
            }
        ]
    }
)
INSTANCES = (
    Instance("a", "checkout", "default", "127.0.0.1", 8001, labels=(("version", "v1"),), service_account="checkout"),
    Instance("b", "checkout", "default", "127.0.0.1", 8002, labels=(("version", "v2"),), region="r", zone="z"),
    Instance("c", "rich", "shop", "127.0.0.1", 8003, protocol="grpc", labels=(("version", "v1"),)),
    Instance("d", "user-service", "default", "::1", 8004, service_port=8080, weight=3),
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["*", "", "*.a.b", "(", "0s", "1h", "-1s", "80", "{*}", "a.b.svc.cluster.local", "%", "STRICT", "DENY"]
    ),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=2),
    st.dictionaries(st.text(max_size=6), SCALARS, max_size=2),
    st.builds(dict),  # a new one each time, since mutations change it
    st.builds(lambda: [{}]),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path within a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, item in items for place in _places(item, (*path, key))]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A document of which up to three values are replaced, removed, renamed or doubled."""
    document: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(DOCUMENTS)))
    for _ in range(draw(st.integers(0, 3))):
        places = [place for place in _places(document) if place]
        if not places:
            break
        *path, key = draw(st.sampled_from(places))
        parent: Any = document
        for step in path:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "remove", "rename", "double"])):
            case "replace":
                parent[key] = draw(VALUES)
            case "remove":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=8))] = parent.pop(key)
            case "double" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case _:
                pass
    return document


def _compile(documents: tuple[Document, ...], profile: Profile) -> Compiled:
    return compile_documents(documents, INSTANCES, profile=profile)


def _bytes(compiled: Compiled) -> dict[tuple[str, str], bytes]:
    return {
        (type_url, name): message.SerializeToString(deterministic=True)
        for type_url, messages in compiled.resources.items()
        for name, message in messages.items()
    }


@settings(deadline=None, max_examples=300)
@given(st.lists(mutated(), min_size=1, max_size=3), st.sampled_from(Profile))
def test_no_document_makes_it_raise_and_every_error_has_a_place(documents, profile):
    compiled = _compile(memory.from_data(documents), profile)
    assert [one for one in compiled.findings if one.severity is Severity.ERROR and one.position is None] == []


@settings(deadline=None, max_examples=100)
@given(st.lists(mutated(), min_size=1, max_size=3), st.sampled_from(Profile))
def test_names_in_references_exist(documents, profile):
    """Whatever was wrong: every cluster that a route names is there, and every endpoint resource that a cluster names."""
    resources = {
        key.rpartition(".")[2]: value for key, value in _compile(memory.from_data(documents), profile).resources.items()
    }
    clusters = resources["Cluster"]
    for configuration in resources["RouteConfiguration"].values():
        for host in configuration.virtual_hosts:
            for route in host.routes:
                named = [route.route.cluster, *(one.name for one in route.route.weighted_clusters.clusters)]
                named += [mirror.cluster for mirror in route.route.request_mirror_policies]
                assert [name for name in named if name and name not in clusters] == []
    for name, cluster in clusters.items():
        assert not cluster.eds_cluster_config.service_name or name in resources["ClusterLoadAssignment"]


@settings(deadline=None, max_examples=150)
@given(st.lists(mutated(), min_size=1, max_size=3), st.sampled_from([Profile.MESHLIB, Profile.GRPC]))
def test_clients_take_whatever_is_made_of_documents_without_errors(documents, profile):
    """By the rules of Envoy, and of gRPC's own clients. Native resources are their author's, as they are."""
    documents = [document for document in documents if "resources" not in document]
    compiled = _compile(memory.from_data(documents), profile)
    if any(finding.severity is Severity.ERROR for finding in compiled.findings):
        return
    for type_url, messages in compiled.resources.items():
        for name, message in messages.items():
            decoded = decode_resource(type_url, message.SerializeToString(), with_grpc_rules=profile is Profile.GRPC)
            assert () == decoded.errors, name


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False), st.sampled_from(Profile))
def test_the_order_of_documents_and_instances_does_not_matter(rng: random.Random, profile):
    defined = {(one.get("kind"), str(one.get("metadata"))): one for one in DOCUMENTS}  # each thing once
    documents = memory.from_data(list(defined.values()))
    shuffled, instances = list(documents), list(INSTANCES)
    rng.shuffle(shuffled)
    rng.shuffle(instances)
    again = compile_documents(tuple(shuffled), instances, profile=profile)
    assert _bytes(_compile(documents, profile)) == _bytes(again)


@settings(deadline=None, max_examples=30)
@given(mutated(), st.sampled_from(Profile))
def test_the_same_input_gives_the_same_bytes(document, profile):
    first = _compile(memory.from_data([document]), profile)
    second = _compile(memory.from_data([copy.deepcopy(document)]), profile)
    assert (_bytes(first), first.findings) == (_bytes(second), second.findings)


@settings(deadline=None, max_examples=200)
@given(
    st.text(max_size=60)
    | st.sampled_from(["&a [*a]", "a: &a {b: *a}", "? [a]: b", "!!python/name:os.system", "---\n...\n%"])
)
def test_no_text_makes_the_parser_raise(text):
    documents, findings = memory.from_text(text)
    for document in documents:
        assert isinstance(document.content, dict)
    for finding in findings:
        assert finding.position is not None
