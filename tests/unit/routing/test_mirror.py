from meshlib.model.matcher import Fraction
from meshlib.model.route import MirrorPolicy
from meshlib.routing.mirror import pick_mirrors


def test_each_policy_has_its_share() -> None:
    policies = (MirrorPolicy("all", Fraction(100)), MirrorPolicy("half", Fraction(50)), MirrorPolicy("no", Fraction(0)))
    assert pick_mirrors(policies, 49) == ("all", "half")
    assert pick_mirrors(policies, 50) == ("all",)


def test_no_policy_no_mirror() -> None:
    assert pick_mirrors((), 1) == ()
