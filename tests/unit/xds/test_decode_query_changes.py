import pytest

from meshlib.model.filters import HeaderFilter
from meshlib.model.headers import AppendAction, HeaderChange, QueryChange

HTTP = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
PLACE = "api_listener.api_listener.http_filters[0].typed_config.mutations"


@pytest.fixture
def mutations(decode_client, packed):
    def run(**fields):
        decoded = decode_client({"name": "m", "typed_config": packed(HTTP, mutations=fields)})
        return decoded.errors if decoded.value is None else decoded.value.header_filters[0].own

    return run


def test_changes_of_the_query_come_after_those_of_headers(mutations):
    record = {"key": "q", "value": "%ROUTE_NAME%"}
    found = mutations(
        query_parameter_mutations=[{"append": {"record": record, "action": "ADD_IF_ABSENT"}}, {"remove": "r"}],
        request_mutations=[{"remove": "x"}],
    )
    changes = (QueryChange("q", "%ROUTE_NAME%", AppendAction.ADD_IF_ABSENT), QueryChange("r"))
    assert HeaderFilter((HeaderChange(remove="x"), HeaderChange(query=changes))) == found


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({}, "query_parameter_mutations[0]"),
        ({"append": {"record": {"key": "q", "value": 1}}}, "query_parameter_mutations[0].append.record.value"),
        ({"append": {"record": {"key": "q", "value": "%NO%"}}}, "query_parameter_mutations[0].append.record.value"),
        ({"append": {}}, "query_parameter_mutations[0].append.record"),
    ],
)
def test_what_is_no_change_is_refused(mutations, change, path):
    assert [f"{PLACE}.{path}"] == [error.partition(": ")[0] for error in mutations(query_parameter_mutations=[change])]


@pytest.mark.parametrize("field", ["request_trailers_mutations", "response_trailers_mutations"])
def test_trailers_are_refused_by_name(mutations, field):
    assert (f"{PLACE}.{field}: is not supported",) == mutations(**{field: [{"remove": "x"}]})
