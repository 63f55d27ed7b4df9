from meshlib.xds.problems import Problems


def test_the_first_error_at_a_place_counts():
    problems = Problems()
    assert not problems
    problems.error("a.b", "first")
    problems.error("a.b", "second")
    problems.error("", "whole")
    assert problems
    assert ("a.b: first", "whole") == problems.errors


def test_unused_fields_of_elements_are_named_once():
    problems = Problems()
    problems.unused("a[0].b", "why")
    problems.unused("a[1].b")
    problems.unused("a[1].c")
    assert ("a[0].b: why", "a[1].c") == problems.unused_fields
    assert not problems
