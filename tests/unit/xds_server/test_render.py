"""What pages and commands show of resources."""

import pytest

from xds_server.model import Profile
from xds_server.render import REDACTED, render_messages, render_snapshot
from xds_server.snapshot import Snapshot
from xds_server.sources import memory
from xds_server.translate import compile_documents

CLUSTER = """
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: by-hand
type: STATIC
transport_socket:
  name: envoy.transport_sockets.tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    sni: checkout
    common_tls_context:
      tls_certificates:
      - certificate_chain: {inline_string: the chain}
        private_key: {%s: %s}
"""


def test_keys_in_resources_that_were_written_by_hand_are_not_shown():
    documents, _ = memory.from_text(CLUSTER % ("inline_string", "the key itself"))
    compiled = compile_documents(documents, (), profile=Profile.MESHLIB)
    for rendered in (render_messages(compiled.resources), render_snapshot(Snapshot.build(compiled.resources, None))):
        text = str(rendered)
        assert "the key itself" not in text
        assert REDACTED in text
        assert "the chain" in text


@pytest.mark.parametrize("value", ["'-----BEGIN PRIVATE KEY-----'", "[1, 2]", "{a: QUJD}"])
def test_findings_about_a_key_do_not_quote_it(value):
    documents, _ = memory.from_text(CLUSTER % ("inline_bytes", value))
    findings = compile_documents(documents, (), profile=Profile.MESHLIB).findings
    assert findings
    assert not any("BEGIN" in str(finding) or "QUJD" in str(finding) for finding in findings)
