"""What was chosen where: likelier the more often, soon forgotten, shared by an engine's sequences."""

from __future__ import annotations

from briton.local.lookahead import habits as module
from briton.local.lookahead.habits import Habits


def test_habits_follow_what_is_chosen_now() -> None:
    habits = Habits(Habits())
    assert habits.usual(1) == (-1, 0.0)
    habits.observe(1, 7)
    first = habits.usual(1)
    habits.observe(1, 7)
    second = habits.usual(1)
    assert first[0] == second[0] == 7
    assert first[1] < second[1] < 1
    habits.observe(1, 9)
    habits.observe(1, 9)
    assert habits.usual(1)[0] == 9


def test_a_new_sequence_begins_with_the_engines_habits() -> None:
    engine = Habits()
    for _ in range(10):
        Habits(engine).observe(1, 7)
    another = Habits(engine)
    assert another.usual(1) == engine.usual(1)
    another.observe(1, 8)
    assert another.usual(1)[0] in (7, 8)
    another.observe(1, 8)
    assert another.usual(1)[0] == 8
    assert engine.usual(1)[0] == 7


def test_habits_are_bounded() -> None:
    engine = Habits()
    for place in range(2 * module._MAX_PLACES):
        engine.observe(place, 1)
        engine.observe(0, place)
    assert len(engine) == module._MAX_PLACES
    assert engine.usual(0)[0] == 2 * module._MAX_PLACES - 1, "what is seen again stays"
    assert len(engine._counts[0]) < 500
