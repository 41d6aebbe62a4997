"""The Guide protocol: both implementations do the same."""

from __future__ import annotations

import json
import random

import pytest

from briton.guidance.compiler import GuideCompiler
from briton.guidance.guide import Guide, GuideKind, GuideSpec
from tests.guidance.vocabularies import TestVocabulary

SPECS = {
    "json_schema": GuideSpec(
        "json_schema",
        json.dumps(
            {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
                "required": ["name", "age"],
                "additionalProperties": False,
            }
        ),
    ),
    "json_object": GuideSpec("json_object"),
    "regex": GuideSpec("regex", r'\{"name": ?"[a-z ]{0,5}", ?"age": ?[0-9]+(\.[0-9]+)?\}'),
    "choice": GuideSpec("choice", choices=('{"name":"x","age":1}', '{"name":"x","age":12}', '{"name":"y"}')),
}
TEXT = '{"name":"x","age":1}'


@pytest.fixture(params=SPECS)
async def template(request: pytest.FixtureRequest, compiler: GuideCompiler) -> Guide:
    return await compiler.compile(SPECS[request.param])


async def test_a_guide_consumes_its_text_and_ends(template: Guide, vocabulary: TestVocabulary) -> None:
    guide = template.copy()
    tokens = vocabulary.tokens_of(TEXT)
    for token in tokens:
        assert not guide.is_terminated()
        assert guide.advance([token])
    stops = vocabulary.stop_token_ids
    assert vocabulary.allowed(guide) == sorted(stops)
    assert guide.is_terminated()
    assert guide.advance([stops[0]])
    assert guide.is_terminated()
    assert vocabulary.allowed(guide) == sorted(stops)
    assert not guide.advance(tokens[:1])
    assert guide.advance([stops[-1]])


async def test_all_of_an_advance_or_nothing(template: Guide, vocabulary: TestVocabulary) -> None:
    guide = template.copy()
    tokens = vocabulary.tokens_of(TEXT)
    assert guide.advance(tokens[:5])
    before = vocabulary.allowed(guide)
    assert not guide.advance([*tokens[5:8], vocabulary.tokens_of("}")[0], 5])
    assert vocabulary.allowed(guide) == before
    assert not guide.advance([*tokens[5:], vocabulary.stop_token_ids[0], tokens[0]])
    assert vocabulary.allowed(guide) == before
    assert guide.advance([])
    assert guide.advance(tokens[5:])


async def test_ids_that_are_no_text_are_refused_and_harm_nothing(template: Guide, vocabulary: TestVocabulary) -> None:
    """An id outside the vocabulary puts LLMatcher in error for good."""
    guide = template.copy()
    holes = [vocabulary.vocab_size - 1, vocabulary.vocab_size, 10**9, -1, vocabulary.stop_token_ids[0], 1]
    for token in holes:
        assert not guide.advance([token])
        assert not guide.advance([*vocabulary.tokens_of("{"), token])
    assert not set(holes) & set(vocabulary.allowed(guide))
    assert guide.advance(vocabulary.tokens_of(TEXT))


async def test_rollback_undoes_stop_ids_and_tokens(template: Guide, vocabulary: TestVocabulary) -> None:
    guide = template.copy()
    tokens = vocabulary.tokens_of(TEXT)
    masks = []
    for token in [*tokens, vocabulary.stop_token_ids[0]]:
        masks.append((vocabulary.allowed(guide), guide.is_terminated()))
        assert guide.advance([token])
    for consumed in range(len(tokens), -1, -1):
        guide.rollback(1)
        assert (vocabulary.allowed(guide), guide.is_terminated()) == masks[consumed]
    assert guide.advance([*tokens, vocabulary.stop_token_ids[-1]])
    guide.rollback(len(tokens) + 1)
    assert vocabulary.allowed(guide) == masks[0][0]
    guide.rollback(0)
    with pytest.raises(ValueError, match="cannot roll back 1 of 0 tokens"):
        guide.rollback(1)
    with pytest.raises(ValueError, match="cannot roll back -1"):
        guide.rollback(-1)


async def test_a_copy_goes_its_own_way(template: Guide, vocabulary: TestVocabulary) -> None:
    rng = random.Random(3)
    for _ in range(5):
        guide = template.copy()
        taken = []
        for _ in range(rng.randrange(12)):
            choices = [t for t in vocabulary.allowed(guide) if t not in vocabulary.stop_token_ids]
            if not choices:
                break
            taken.append(rng.choice(choices))
            assert guide.advance(taken[-1:])
        mask = vocabulary.allowed(guide)
        copy = guide.copy()
        assert vocabulary.allowed(copy) == mask
        assert copy.forced_tokens() == guide.forced_tokens()
        copy.advance([rng.choice(mask)])
        assert vocabulary.allowed(guide) == mask
        copy.rollback(1)
        copy.rollback(len(taken))
        assert vocabulary.allowed(copy) == vocabulary.allowed(template)
        assert vocabulary.allowed(guide) == mask


async def test_rows_are_overwritten_whole(template: Guide, vocabulary: TestVocabulary) -> None:
    """A row of another sequence, or of the last step, must not shine through."""
    ones, zeros = vocabulary.new_row(), vocabulary.new_row() * 0
    template.copy().fill_bitmask(ones)
    template.copy().fill_bitmask(zeros)
    assert (ones == zeros).all()


async def test_rows_of_a_batch_can_be_filled_in_place(template: Guide, vocabulary: TestVocabulary) -> None:
    import numpy as np

    batch = np.zeros((3, len(vocabulary.new_row())), np.int32)
    template.copy().fill_bitmask(batch[1])
    assert batch[1].any()
    assert not batch[0].any()
    assert not batch[2].any()


async def test_forced_tokens_are_allowed_and_leave_the_state_alone(template: Guide, vocabulary: TestVocabulary) -> None:
    guide = template.copy()
    for token in vocabulary.tokens_of(TEXT):
        before = vocabulary.allowed(guide)
        forced = guide.forced_tokens()
        assert vocabulary.allowed(guide) == before
        assert guide.copy().advance(forced)
        if forced:
            assert forced[0] in before
        assert guide.advance([token])
    assert guide.forced_tokens() == []


@pytest.mark.parametrize("kind", ["json_schema", "regex"])
async def test_a_forced_key_comes_in_canonical_tokens(
    compiler: GuideCompiler, vocabulary: TestVocabulary, kind: GuideKind
) -> None:
    schema = {
        "type": "object",
        "properties": {"category": {"type": "integer"}},
        "required": ["category"],
        "additionalProperties": False,
    }
    specs = {"json_schema": json.dumps(schema), "regex": r'\{"category":[0-9]+\}'}
    guide = await compiler.compile(GuideSpec(kind, specs[kind]))
    assert guide.advance(vocabulary.tokens_of('{"'))
    forced = guide.forced_tokens()
    assert b'category":'.startswith(vocabulary.spell(forced))
    assert forced
    assert len(forced) < len(vocabulary.spell(forced))
