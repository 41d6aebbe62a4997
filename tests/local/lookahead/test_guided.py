"""Drafts under a guide: allowed, worth their place, and never felt by the guide itself."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briton.guidance.grammar import GrammarCompiler
from briton.guidance.grammar_guide import GrammarGuide
from briton.guidance.guide import Guide
from briton.guidance.limits import GuideLimits
from briton.guidance.vocabulary import Vocabulary
from briton.local.lookahead import guided
from briton.local.lookahead.guided import GuidedDrafter, GuidedRates
from briton.local.lookahead.ngram import NgramIndex
from tests.guidance import vocabularies

WORDS = vocabularies.byte_level()
VOCABULARY = Vocabulary(
    WORDS.token_bytes, vocab_size=WORDS.vocab_size, stop_token_ids=WORDS.stop_token_ids, encode=WORDS.encode
)
GRAMMARS = GrammarCompiler(VOCABULARY, GuideLimits())
STRING = {"type": "string", "maxLength": 12}


@pytest.fixture(autouse=True)
def _small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """22 words of mask: free text is where more than 8 of them have a token."""
    monkeypatch.setattr(guided, "_FEW_WORDS", 8)


def schema_of(*names: str) -> dict[str, object]:
    return {
        "type": "object",
        "properties": dict.fromkeys(names, STRING),
        "required": list(names),
        "additionalProperties": False,
    }


def pattern(text: str) -> GrammarGuide:
    return GRAMMARS.compile_regex(text, "guided_regex")


class Engine:
    """What sequences share."""

    def __init__(self) -> None:
        self.rates = GuidedRates()

    def drafter(self, prompt: Sequence[int] = ()) -> GuidedDrafter:
        return GuidedDrafter(WORDS.vocab_size, self.rates, prompt)

    def steps(
        self, template: Guide, output: list[int], prompt: Sequence[int] = (), limit: int = 7, words: bool = True
    ) -> int:
        """Steps to an output: what each step's draft has right, and one token more."""
        drafter, guide, index = self.drafter(prompt if words else ()), template.copy(), NgramIndex()
        index.extend(prompt)
        at = steps = 0
        while at < len(output):
            chain, gains = drafter.propose(guide, at, index, limit)
            check_draft(guide, chain, gains, limit)
            right = 0
            while right < min(len(chain), len(output) - at - 1) and chain[right] == output[at + right]:
                right += 1
            tokens = output[at : at + right + 1]
            assert guide.advance(tokens)
            index.extend(tokens)
            drafter.observe(tokens)
            at, steps = at + len(tokens), steps + 1
        assert guide.is_terminated()
        return steps


def check_draft(guide: Guide, chain: list[int], gains: list[float], limit: int) -> None:
    assert len(chain) == len(gains) <= limit
    assert all(0 < gain <= 1 for gain in gains)
    assert gains == sorted(gains, reverse=True)
    ahead = guide.copy()
    for token_id in chain:
        assert token_id in WORDS.allowed(ahead)
        assert ahead.advance([token_id])


def written(values: dict[str, str], space: str = " ") -> list[int]:
    """JSON in a model's handwriting."""
    return WORDS.encode("{" + f",{space}".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in values.items()) + "}")


@pytest.mark.parametrize(
    "guide",
    [GRAMMARS.compile({"const": "over the lazy dog"}), pattern("category(cat|number){2}")],
    ids=["schema", "regex"],
)
def test_what_is_forced_is_drafted_and_certain(guide: Guide) -> None:
    drafter = Engine().drafter()
    forced = guide.forced_tokens()
    chain, gains = drafter.propose(guide, 0, None, 32)
    assert forced
    assert chain == forced
    assert gains == [1.0] * len(chain)
    assert drafter.propose(guide, 0, None, 1) == (forced[:1], [1.0])


def test_no_draft_where_the_guide_has_ended() -> None:
    guide, drafter = pattern("cat"), Engine().drafter()
    assert guide.advance(WORDS.encode("cat"))
    assert drafter.propose(guide, 1, None, 8) == ([], [])
    assert guide.advance([WORDS.stop_token_ids[0]])
    assert drafter.propose(guide, 2, None, 8) == ([], [])


def test_the_end_of_a_pattern_that_could_go_on_may_be_drafted() -> None:
    """A stop id is a token like others there. Nothing is drafted behind it."""
    engine, end = Engine(), WORDS.stop_token_ids[0]
    output = [*WORDS.encode("number 1"), end]
    for _ in range(3):
        engine.steps(pattern("number [0-9]+"), output)
    chain, _ = engine.drafter().propose(pattern("number [0-9]+"), 0, None, 32)
    assert chain == output


def test_the_form_of_one_key_is_expected_of_the_next() -> None:
    """The keys differ, so the index knows nothing of what follows them."""
    keys = ("name", "city", "category", "label", "kind", "tags")
    values = dict(zip(keys, ("Ada", "fox", "dog", "jumps", "lazy", "red"), strict=True))
    template, output = GRAMMARS.compile(schema_of(*keys)), written(values)
    num_values = sum(len(WORDS.encode(value)) for value in values.values())
    num_form = len(output) - num_values
    num_forced = sum(len(WORDS.encode(key)) for key in keys)
    steps = Engine().steps(template, output)
    assert steps < num_values + 0.5 * (num_form - num_forced), (steps, len(output), num_values)


def test_token_priors_of_one_request_help_the_next_under_another_schema() -> None:
    engine = Engine()
    first, second = {"name": "Ada", "age": "fox"}, {"category": "dog", "city": "red", "label": "lazy"}
    template, output = GRAMMARS.compile(schema_of(*second)), written(second)
    before = Engine().steps(template, output)
    for _ in range(3):
        engine.steps(GRAMMARS.compile(schema_of(*first)), written(first))
    after = engine.steps(template, output)
    assert after < before
    assert engine.steps(template, written(second, space="\n")) < len(output)  # another form costs no more than none


def test_a_value_of_the_prompt_is_copied_to_where_the_grammar_ends_it() -> None:
    text = "The quick brown fox"
    prompt = WORDS.encode(f'"{text} jumps over the lazy dog"')
    template = GRAMMARS.compile({**schema_of("name"), "properties": {"name": {"type": "string"}}})
    output = written({"name": text})
    assert Engine().steps(template, output, prompt) <= Engine().steps(template, output) - 3


def test_a_value_that_is_spelled_otherwise_in_the_prompt_is_found_by_its_beginning() -> None:
    """`Lovelace` behind a quote is two tokens; the index knows ` Lovelace`, which is one."""
    prompt = WORDS.encode("When did Lovelace jump over the lazy dog?")
    assert not set(WORDS.encode("Lovelace")) & set(prompt)
    template = GRAMMARS.compile({**schema_of("name"), "properties": {"name": {"type": "string"}}})
    output = written({"name": "Lovelace"})
    assert Engine().steps(template, output, prompt) == Engine().steps(template, output, prompt, words=False) - 1


def test_what_the_index_says_is_cut_where_the_grammar_forbids_it() -> None:
    guide, index = pattern("[a-z]{3}[0-9]"), NgramIndex()
    index.extend(WORDS.encode("abc") * 3)
    chain, _ = Engine().drafter().propose(guide, 0, index, 8)
    assert chain
    assert WORDS.spell(chain) in (b"abc", b"bca", b"cab", b"ab", b"bc", b"a", b"b")


@given(seed=st.integers(0, 2**32), limit=st.integers(1, 16), through_pool=st.booleans())
@settings(max_examples=40, deadline=None)
def test_whatever_comes_the_guide_is_untouched_and_drafts_are_allowed(
    seed: int, limit: int, through_pool: bool
) -> None:
    """Outputs that follow a draft for a while, and go on by other branches, with steps that nobody told of."""
    rng = random.Random(seed)
    template = rng.choice(GUIDES)
    guide, drafter, index = template.copy(), SHARED.drafter(), NgramIndex()
    index.extend(WORDS.encode(vocabularies.CORPUS[rng.randrange(4)]))
    num_tokens = 0
    while num_tokens < 60 and not guide.is_terminated():
        allowed = WORDS.allowed(guide)
        chain, gains = drafter.propose(guide, num_tokens, index, limit)
        assert WORDS.allowed(guide) == allowed
        check_draft(guide, chain, gains, limit)
        tokens = chain[: rng.randint(0, len(chain))]
        assert guide.advance(tokens)
        for _ in range(rng.randint(1, 3) if through_pool else 1):
            if not guide.is_terminated():
                tokens = [*tokens, rng.choice(WORDS.allowed(guide))]
                assert guide.advance(tokens[-1:])
        index.extend(tokens)
        num_tokens += len(tokens)
        if rng.random() < 0.8:
            drafter.observe(tokens)
    assert drafter.propose(guide, num_tokens, index, limit)[0] == [] or not guide.is_terminated()


def test_a_branch_is_counted_to_where_the_grammar_forbids_it() -> None:
    guide, drafter = pattern("[a-z]{3}"), Engine().drafter()
    assert drafter.num_valid(WORDS.encode("a")) == 0, "no guide yet"
    drafter.propose(guide, 0, None, 4)
    assert drafter.num_valid(WORDS.tokens_of("abcd")) == 3
    assert drafter.num_valid(WORDS.tokens_of("7")) == 0
    assert drafter.num_valid([]) == 0
    assert drafter.num_valid(WORDS.tokens_of("abc")) == 3, "it stands where it stood"


def test_a_draft_into_a_parser_limit_harms_nobody() -> None:
    """2,000 optional properties fail the parser behind `{`; the output goes elsewhere."""
    wide = {"type": "object", "properties": {f"p{i}": STRING for i in range(2000)}}
    guide = GRAMMARS.compile({"anyOf": [wide, {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}]})
    index, drafter = NgramIndex(), Engine().drafter()
    brace = WORDS.tokens_of("{")
    index.extend([*brace * 6])
    for _ in range(2):
        assert drafter.propose(guide, 0, index, 8)[0] == brace
        assert drafter.num_valid(WORDS.tokens_of("[")) == 0
    assert guide.advance(WORDS.encode("[true]"))
    assert guide.is_terminated()


def test_of_a_failed_guide_there_is_no_draft(caplog: pytest.LogCaptureFixture) -> None:
    guide, drafter = GRAMMARS.compile({"type": "object"}), Engine().drafter()
    guide._matcher.consume_token(WORDS.tokens_of("7")[0])
    assert guide.forced_tokens() == []
    for _ in range(2):
        assert drafter.propose(guide, 0, None, 8) == ([], [])
    drafter.observe([5])
    assert drafter.propose(guide, 1, None, 8) == ([], [])


GUIDES: list[Guide] = [
    GRAMMARS.compile(schema_of("name", "city")),
    GRAMMARS.compile({"type": "array", "items": {"enum": ["red", "green", 3, None]}, "minItems": 1, "maxItems": 3}),
    GRAMMARS.compile({"type": "object"}),
    pattern(r'\{"name": ?"[a-z ]{0,5}", ?"age": ?[0-9]+(\.[0-9]+)?\}'),
    pattern("(yes|no|number one)"),
]
SHARED = Engine()
