"""Whatever happens in whatever order, reports add up to what happened."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from meshlib.model.endpoint import Locality
from meshlib.xds.load_report import ClusterLoad

LOCALITIES = tuple(map(Locality, "abc"))
STEP = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from(LOCALITIES)),
    st.tuples(st.sampled_from(("good", "bad")), st.integers(0, 20)),
    st.tuples(st.just("drop"), st.sampled_from(("", "lb"))),
    st.tuples(st.just("use"), st.lists(st.sampled_from(LOCALITIES), unique=True)),
    st.tuples(st.just("take"), st.none()),
)


@given(steps=st.lists(STEP, max_size=60))
def test_reports_add_up(steps: list[tuple[str, object]]) -> None:
    load = ClusterLoad("c", "", 0.0, lock=threading.Lock())
    known = dict(load.use(LOCALITIES))
    running, reports = [], []
    began = good = bad = dropped = 0
    for kind, what in steps:
        if kind == "begin" and what in known:
            known[what].begin()  # type: ignore[index]
            running.append(known[what])  # type: ignore[index]
            began += 1
        elif kind in ("good", "bad") and running:
            running.pop(int(str(what)) % len(running)).end(is_success=kind == "good")
            good, bad = good + (kind == "good"), bad + (kind == "bad")
        elif kind == "drop":
            load.drop(str(what))
            dropped += 1
        elif kind == "use":
            known = dict(load.use(what))  # type: ignore[arg-type]
        elif kind == "take":
            reports.append(load.take(0.0))
            assert len(running) == sum(one.in_progress for one in reports[-1].localities)
    reports.append(load.take(0.0))
    rows = [row for report in reports for row in report.localities]
    assert (began, good, bad) == tuple(
        sum(getattr(row, name) for row in rows) for name in ("issued", "succeeded", "failed")
    )
    assert dropped == sum(report.total_dropped for report in reports)
    assert began - good - bad == sum(row.in_progress for row in reports[-1].localities)
    assert load.is_idle is (not running)
