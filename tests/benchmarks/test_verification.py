from __future__ import annotations

from benchmarks.verification import Verification


def test_what_is_added_is_the_median_of_the_rounds_and_has_a_target() -> None:
    found = Verification("a/b:1", {"without": [1.0, 5.0, 1.0], "with": [1.1, 5.2, 2.0]})
    assert round(found.added, 9) == 0.2
    assert found.met
    assert found.table().rows[-1] == ("added, median of the rounds", "0.200 s", "≤ 0.3 s", "yes")
    slow = Verification("a/b:1", {"without": [1.0], "with": [1.4]})
    assert not slow.met
    assert slow.table().rows[-1][-1] == "**no**"
