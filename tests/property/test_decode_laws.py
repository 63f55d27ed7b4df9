"""What the decoder accepts can be compiled by the parts above it, which know nothing of protobuf."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.model.listener import ClientListener
from meshlib.protos import from_dict
from meshlib.routing.format import Facts, compile_format
from meshlib.routing.table import RouteTable
from meshlib.substitution import COMMANDS, check_format
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import RDS

FORMATS = st.lists(
    st.sampled_from(
        ["%", "%%", "REQ", "(", ")", "?", ":", "5", "x", "PATH", "WQ", "ORIG", "PROTOCOL", "NOPE", "QUERY_PARAM", "é"]
        + [f"%{name}%" for name in (*COMMANDS, "PATH", "START_TIME")]
        + [f"%{name}(a)%" for name in COMMANDS]
    ),
    max_size=8,
).map("".join)

TEMPLATES = st.lists(st.sampled_from(["/", "*", "**", "{", "}", "a", "{b}", "{c=*}", "{d=**}", "=", "1"]), max_size=7)
REGEXES = st.lists(st.sampled_from(["a", ".", "*", "(", ")", "[", "]", "\\", "{9}", "|", "é", "?"]), max_size=7).map(
    "".join
)
SUBSTITUTIONS = st.lists(st.sampled_from(["\\", "0", "1", "9", "a"]), max_size=4).map("".join)


@settings(max_examples=400)
@given(FORMATS)
def test_what_may_be_written_can_be_rendered(text):
    try:
        compile_format(text, Facts())
    except ValueError:
        assert check_format(text)
    else:
        assert not check_format(text)


@st.composite
def routes(draw):
    path = draw(
        st.one_of(
            st.sampled_from(
                [{"prefix": "/"}, {"path": "/a"}, {"path_separated_prefix": "/a"}, {"connect_matcher": {}}]
            ),
            REGEXES.map(lambda pattern: {"safe_regex": {"regex": pattern}}),
            TEMPLATES.map(
                lambda parts: {
                    "path_match_policy": {
                        "name": "t",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                            "path_template": "".join(parts),
                        },
                    }
                }
            ),
        )
    )
    headers = draw(
        st.lists(REGEXES.map(lambda p: {"name": "X", "string_match": {"safe_regex": {"regex": p}}}), max_size=1)
    )
    added = draw(st.lists(FORMATS.map(lambda text: {"header": {"key": "k", "value": text}}), max_size=1))
    rewrite = {"pattern": {"regex": draw(REGEXES)}, "substitution": draw(SUBSTITUTIONS)}
    weights = [
        {"name": f"c{index}", "weight": weight}
        for index, weight in enumerate(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    ]
    action = draw(
        st.sampled_from(
            [
                {"route": {"cluster": "c", "regex_rewrite": rewrite}},
                {"route": {"weighted_clusters": {"clusters": weights}, "retry_policy": {"retry_on": "5xx"}}},
                {"redirect": {"regex_rewrite": rewrite}},
                {"direct_response": {"status": 200}},
                {"non_forwarding_action": {}},
                {
                    "route": {
                        "cluster": "c",
                        "hash_policy": [{"header": {"header_name": "h", "regex_rewrite": rewrite}}],
                    }
                },
            ]
        )
    )
    return {"match": {**path, "headers": headers}, "request_headers_to_add": added, **action}


@settings(max_examples=300, deadline=None)
@given(st.lists(routes(), min_size=1, max_size=3))
def test_routes_that_are_accepted_can_be_compiled(listed):
    config = {"name": "rc", "virtual_hosts": [{"name": "vh", "domains": ["*"], "routes": listed}]}
    body = from_dict(RDS.rpartition("/")[2], config).SerializeToString()
    decoded = decode_resource(RDS, body)
    if decoded.value is not None:
        RouteTable(ClientListener("l", "rc"), decoded.value)


@given(st.integers(0, 2**32))
def test_the_order_of_maps_on_the_wire_does_not_matter(seed):
    keys = [f"k{index}" for index in range(6)]
    values = {key: {"a": 1, "b": [key]} for key in keys}
    random.Random(seed).shuffle(keys)

    def decoded(order):
        route = {
            "match": {"prefix": "/"},
            "route": {"cluster": "c"},
            "metadata": {"filter_metadata": {key: values[key] for key in order}},
        }
        config = {"name": "rc", "virtual_hosts": [{"name": "vh", "domains": ["*"], "routes": [route]}]}
        return decode_resource(RDS, from_dict(RDS.rpartition("/")[2], config).SerializeToString())

    assert decoded(sorted(keys)) == decoded(keys)
