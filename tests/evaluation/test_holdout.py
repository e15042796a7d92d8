import math

import pytest

from lightning_vos.evaluation.holdout import held_out, is_held_out


def drawn_names(count: int) -> list[str]:
    """10 hexadecimal digits, as the videos of YouTube-VOS are named."""
    return [f"{index * 2654435761 % 16**10:010x}" for index in range(count)]


def test_the_rule_never_changes():
    """Models were trained without these videos; with another rule they would be scored on what they saw."""
    names = [f"{index:010x}" for index in range(0x80)]
    assert [int(name, 16) for name in held_out(names)] == [
        0x0F, 0x18, 0x22, 0x2D, 0x35, 0x3C, 0x57, 0x69, 0x78, 0x7E,
    ]  # fmt: skip
    assert not is_held_out("00000000df")
    assert is_held_out("00000000de")


def test_names_are_sorted_whatever_their_order():
    names = drawn_names(500)
    assert held_out(reversed(names)) == held_out(iter(names)) == sorted(filter(is_held_out, names)) != []


@pytest.mark.parametrize(("videos", "expected", "deviation"), [(3471, 174, 13), (2238, 112, 10), (2985, 149, 12)])
def test_about_one_in_twenty(videos, expected, deviation):
    assert (round(0.05 * videos), round(math.sqrt(0.05 * 0.95 * videos))) == (expected, deviation)
    found = len(held_out(drawn_names(100 * videos)))
    assert abs(found - 5 * videos) < 4 * math.sqrt(100 * 0.05 * 0.95 * videos)
