"""Times to live in native documents."""

import pytest

from xds_server.model import Document, Profile
from xds_server.ordering import CDS
from xds_server.translate import compile_documents

WRAPPER = "type.googleapis.com/envoy.service.discovery.v3.Resource"
CLUSTER = {"@type": CDS, "name": "c1", "type": "STATIC"}


@pytest.fixture
def compile_wrapper():
    def run(**fields):
        content = {"@type": WRAPPER, "resource": CLUSTER, **fields}
        return compile_documents([Document(content, {})], (), profile=Profile.ENVOY)

    return run


def test_wrapped_resource_keeps_its_ttl(compile_wrapper):
    compiled = compile_wrapper(ttl="30s", name="c1")
    assert () == compiled.findings
    wrapper = compiled.resources[CDS]["c1"]
    assert ("c1", 30, CDS) == (wrapper.name, wrapper.ttl.seconds, wrapper.resource.type_url)


def test_wrapper_without_ttl_is_the_resource_itself(compile_wrapper):
    assert "STATIC" == compile_wrapper().resources[CDS]["c1"].DESCRIPTOR.fields_by_name["type"].enum_type.values[0].name


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ttl": "0.5s"}, "at least 1 s"),
        ({"ttl": "soon"}, "at least 1 s"),
        ({"ttl": 5}, "at least 1 s"),
        ({"version": "1"}, "not 'version'"),
        ({"name": "other"}, "must be the resource's own name, 'c1'"),
        ({"resource": "c1"}, "must be an xDS resource"),
        ({"resource": {"@type": CDS, "nome": "c1"}}, "has no field 'nome'"),
        ({"resource": {"@type": WRAPPER}}, "is not served from files"),
    ],
)
def test_faults_are_found(compile_wrapper, fields, text):
    (finding,) = compile_wrapper(**fields).findings
    assert text in finding.message
