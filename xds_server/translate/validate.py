"""Files checked without serving them."""

from collections.abc import Sequence

from xds_server.model import Finding, Profile
from xds_server.sources import files
from xds_server.translate.checks import check
from xds_server.translate.documents import decode_documents
from xds_server.translate.messages import SERVED_TYPES
from xds_server.translate.native import add_native
from xds_server.translate.report import Report


def validate(paths: Sequence[str]) -> tuple[Finding, ...]:
    """Return everything that is wrong with the documents of some files or folders, by file, line and column.

    What a profile cannot do is no fault of a document and is not reported here; `compile_documents` does.
    """
    documents, findings = files.load(paths)
    report = Report()
    report.add(findings)
    check(decode_documents(documents, report), report)
    add_native(documents, {name: {} for name in SERVED_TYPES}, Profile.MESHLIB, report)
    return report.findings()
