"""What was chosen where: likelier the more often, soon forgotten, shared by an engine's sequences."""

from __future__ import annotations

from briton.local.lookahead import token_priors as module
from briton.local.lookahead.drafter import EngineRates
from briton.local.lookahead.token_priors import TokenPriors


def test_token_priors_follow_what_is_chosen_now() -> None:
    priors = TokenPriors(TokenPriors())
    assert priors.usual(1) == (-1, 0.0)
    priors.observe(1, 7)
    first = priors.usual(1)
    priors.observe(1, 7)
    second = priors.usual(1)
    assert first[0] == second[0] == 7
    assert first[1] < second[1] < 1
    priors.observe(1, 9)
    priors.observe(1, 9)
    assert priors.usual(1)[0] == 9


def test_a_new_sequence_begins_with_the_engines_token_priors() -> None:
    engine = TokenPriors()
    for _ in range(10):
        TokenPriors(engine).observe(1, 7)
    another = TokenPriors(engine)
    assert another.usual(1) == engine.usual(1)
    another.observe(1, 8)
    assert another.usual(1)[0] in (7, 8)
    another.observe(1, 8)
    assert another.usual(1)[0] == 8
    assert engine.usual(1)[0] == 7


def test_token_priors_are_bounded() -> None:
    engine = TokenPriors()
    for place in range(2 * module._MAX_PLACES):
        engine.observe(place, 1)
        engine.observe(0, place)
    assert len(engine) == module._MAX_PLACES
    assert engine.usual(0)[0] == 2 * module._MAX_PLACES - 1, "what is seen again stays"
    assert len(engine._counts[0]) < 500


def test_what_one_tenant_chose_is_not_offered_to_another() -> None:
    """Engine-wide habits kept the very tokens, and offered them to the next request with the same schema, whose usage
    said whether they came true."""
    rates = EngineRates()
    mine = TokenPriors(rates.guided("tenant a").token_priors)
    for _ in range(5):
        mine.observe(7, 42)
    assert TokenPriors(rates.guided("tenant a").token_priors).usual(7)[0] == 42
    assert TokenPriors(rates.guided("tenant b").token_priors).usual(7) == (-1, 0.0)
    assert TokenPriors(rates.guided("").token_priors).usual(7) == (-1, 0.0)
    assert rates.guided("tenant a").index is rates.guided("tenant b").index, "rates say nothing of tokens"


def test_tenants_are_remembered_up_to_a_bound() -> None:
    rates = EngineRates()
    rates.guided("first").token_priors.observe(1, 2)
    for i in range(200):
        rates.guided(f"tenant {i}")
    assert rates.guided("first").token_priors.usual(1) == (-1, 0.0)
