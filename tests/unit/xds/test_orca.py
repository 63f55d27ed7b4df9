"""Load reports in headers and trailers."""

import base64
import json

import pytest

from meshlib.model.load_report import LoadReport
from meshlib.model.request import Headers
from meshlib.protos import from_dict
from meshlib.xds.orca import HEADER, HEADER_BIN, MAX_METRICS, find_report

FIELDS = {"cpu_utilization": 0.5, "rps_fractional": 100.0, "eps": 2.0, "named_metrics": {"queue": 7.0}}
MESSAGE = from_dict("xds.data.orca.v3.OrcaLoadReport", FIELDS).SerializeToString()
BASE64 = base64.b64encode(MESSAGE).decode()
EXPECTED = LoadReport(cpu_utilization=0.5, qps=100.0, eps=2.0, named_metrics={"queue": 7.0})


@pytest.mark.parametrize(
    "header",
    [
        (HEADER_BIN, BASE64),
        (HEADER_BIN, BASE64.rstrip("=")),
        (HEADER_BIN, MESSAGE),
        (HEADER, f"BIN {BASE64}"),
        (HEADER, f"JSON {json.dumps(FIELDS)}"),
        (HEADER, "TEXT cpu_utilization:0.5,rps_fractional:100,eps:2,named_metrics.queue:7"),
        (HEADER, "TEXT cpu_utilization=0.5, rps_fractional=100 , eps=2,named_metrics.queue=7"),
    ],
)
def test_every_form_is_the_same_report(header):
    assert find_report([("x", "y"), header]) == EXPECTED
    if isinstance(header[1], str):
        assert find_report(Headers([header])) == EXPECTED


@pytest.mark.parametrize(
    "header",
    [
        (HEADER, ""),
        (HEADER, "cpu_utilization:0.5"),
        (HEADER, "TEXT cpu_utilization:0.5,cpu_utilization:0.6"),
        (HEADER, "TEXT cpu_utilization:nan"),
        (HEADER, "TEXT cpu_utilization:inf"),
        (HEADER, "TEXT cpu_utilization"),
        (HEADER, "TEXT :0.5"),
        (HEADER, "TEXT named_metrics.:1"),
        (HEADER, "TEXT unheard_of:1"),
        (HEADER, "JSON {"),
        (HEADER, "JSON " + "[" * 5000),
        (HEADER, "BIN ?"),
        (HEADER_BIN, ""),
        (HEADER_BIN, "AAA"),
        (HEADER_BIN, b"\xff"),
        (HEADER_BIN, b"\x00" * 20_000),
    ],
)
def test_what_cannot_be_read_is_no_report(header):
    assert find_report([header]) is None
    if isinstance(header[1], str):
        assert find_report(Headers([header])) is None


def test_no_header_no_report():
    assert find_report(Headers([("content-type", "text/plain")])) is None
    assert find_report([]) is None


def test_the_binary_header_goes_before_the_other():
    assert find_report([(HEADER, "TEXT cpu_utilization:0.9"), (HEADER_BIN, BASE64)]) == EXPECTED


def test_the_whole_number_of_old_reports_counts():
    old = from_dict("xds.data.orca.v3.OrcaLoadReport", {"rps": 12, "cpu_utilization": 0.5})
    assert find_report([(HEADER_BIN, old.SerializeToString())]) == LoadReport(cpu_utilization=0.5, qps=12.0)


def test_numbers_that_no_recorder_takes_are_left_out():
    assert find_report([(HEADER, "TEXT cpu_utilization:-1,eps:3")]) == LoadReport(eps=3.0)


def test_names_are_bounded():
    many = from_dict(
        "xds.data.orca.v3.OrcaLoadReport", {"named_metrics": {f"m{n}": 1.0 for n in range(MAX_METRICS * 2)}}
    )
    report = find_report([(HEADER_BIN, many.SerializeToString())])
    assert report is not None
    assert len(report.named_metrics) == MAX_METRICS
