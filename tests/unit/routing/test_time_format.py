"""Times as Envoy 1.40 writes them."""

import pytest

from meshlib.routing.time_format import compile_time

AT = 1_795_739_931_097_300  # Friday


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "2026-11-27T00:38:51.097Z"),
        ("%s", "1795739931"),
        ("%s.%3f", "1795739931.097"),
        ("%f %1f %6f %9f", "097300000 0 097300 097300000"),
        ("%E3S %E*S %E*f %E3f %E0S|%E0f|%E12f", "51.097 51.0973 0973 097 51||097300000000"),
        ("%E4Y %ET %Ez %E*z %:z %::z %:::z", "2026 T +00:00 +00:00:00 +00:00 +00:00:00 +00"),
        (
            "%a %A %b %B %c %C %d %D %e %F",
            "Fri Friday Nov November Fri Nov 27 00:38:51 2026 20 27 11/27/26 27 2026-11-27",
        ),
        ("%g %G %h %H %I %j %k %l %M %m", "26 2026 Nov 00 12 331  0 12 38 11"),
        ("%p %P %r %R %S %T|%t|%u %U %V", "AM am 12:38:51 AM 00:38 51 00:38:51|\t|5 47 48"),
        ("%w %W %x %X %y %Y %z %Z", "5 47 11/27/26 00:38:51 26 2026 +0000 UTC"),
        ("%EY %Ec %OY %Od %Ot", "2026 Fri Nov 27 00:38:51 2026 %OY 27 \t"),
        ("%Q %+ %v %i %", "%Q %+ %v %i %"),
        # Envoy looks for its own first, wherever a per cent sign stands.
        ("%% %%d %%%d %%s %%3f %%E3S", "% %d %27 %1795739931 %097 %S.097"),
        ("%E9999S", "%E9999S"),
        ("abc", "abc"),
    ],
)
def test_format(text: str, expected: str) -> None:
    assert expected == compile_time(text, is_local=False)(AT)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0, "1970-01-01 00 4 00 01 70"),
        (951_782_400, "2000-02-29 09 2 09 09 00"),
        (1_609_459_200, "2021-01-01 00 5 00 53 20"),
    ],
)
def test_weeks(at: int, expected: str) -> None:
    """As glibc counts them."""
    assert expected == compile_time("%F %U %u %W %V %g", is_local=False)(at * 1_000_000)


def test_no_parts_of_a_second_are_left_out() -> None:
    assert compile_time("%E*S|%E*f|%E3S", is_local=False)(5_000_000) == "05|0|05.000"


def test_local_time_says_its_distance() -> None:
    made = compile_time("", is_local=True)(AT)
    assert made[-5] in "+-"
    assert compile_time("%s", is_local=True)(AT) == "1795739931"
