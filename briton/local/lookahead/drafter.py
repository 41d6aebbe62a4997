"""What one sequence's drafts are made from: n-gram index, lookahead window, guide; and how well they did."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from briton.config.lookahead import LookaheadConfig
from briton.local.draft import Draft
from briton.local.lookahead.acceptance import AcceptanceRates
from briton.local.lookahead.guided import GuidedDrafter, GuidedRates
from briton.local.lookahead.ngram import NgramIndex
from briton.local.lookahead.policy import Proposal, WindowWorth
from briton.local.lookahead.pool import NgramPool
from briton.local.lookahead.window import LookaheadWindow
from briton.local.sampler import StepLogits
from briton.local.sequence import SequenceState
from briton.local.verification import Verified

_MAX_SALTS = 64  # whose tokens are remembered, some 1 MB each at most
_LATER_BRANCH = 0.5  # how much less likely each further n-gram of the pool is than the one before it


class EngineRates:
    """What all sequences of an engine have learned, and a new one starts from: rates of everybody, tokens of the same
    cache_salt alone. Callers who share no prefixes learn nothing of each other's outputs either."""

    def __init__(self) -> None:
        self.index = AcceptanceRates()  # by the length of the match
        self.pool = AcceptanceRates()  # by depth in the n-gram
        self.window_worth = WindowWorth()
        self._shared = GuidedRates()
        self._guided: OrderedDict[str, GuidedRates] = OrderedDict()  # by salt, the latest last

    def guided(self, cache_salt: str) -> GuidedRates:
        """What sequences of this salt have learned under guides."""
        rates = self._guided.get(cache_salt)
        if rates is None:
            rates = self._guided[cache_salt] = GuidedRates()
            rates.index, rates.respelling = self._shared.index, self._shared.respelling
            if len(self._guided) > _MAX_SALTS:
                self._guided.popitem(last=False)
        self._guided.move_to_end(cache_salt)
        return rates


class Drafter:
    """Proposes drafts for one sequence, which it is told of as it grows."""

    def __init__(
        self,
        config: LookaheadConfig,
        max_draft_tokens: int,
        rates: EngineRates,
        *,
        use_index: bool,
        vocab_size: int,
        prompt: Sequence[int] = (),
        prediction: Sequence[int] = (),
        cache_salt: str = "",
    ) -> None:
        """`use_index`: draft what followed the longest matching suffix; else the window alone. `prediction`: what the
        output may repeat."""
        self._max_draft_tokens = max_draft_tokens
        self._config = config
        self._index = NgramIndex() if use_index else None
        self._untold = prediction if use_index else ()  # of the prediction
        self._pool = NgramPool(config) if config.has_window else None
        self._window: LookaheadWindow | None = None  # made when the prompt is known
        self._index_rates = AcceptanceRates(rates.index)
        self._pool_rates = AcceptanceRates(rates.pool)
        self._window_worth = rates.window_worth
        self._guided = GuidedDrafter(
            vocab_size, rates.guided(cache_salt), (*prediction, *prompt) if prediction else prompt
        )
        self._num_learned = 0  # tokens of the sequence that index and pool know
        self._chain: list[int] = []  # last proposed: by index and guide,
        self._branches: list[list[int]] = []  # and by the pool

    def learn(self, sequence: SequenceState, num_tokens: int, limit: int) -> int:
        """Take in the prediction and the sequence's first `num_tokens`, `limit` tokens at a time; how many it were."""
        predicted, self._untold = self._untold[:limit], self._untold[limit:]
        if self._index is not None and predicted:
            self._index.extend(predicted)
            if not self._untold:
                self._index.seal()
        end = min(num_tokens, self._num_learned + limit - len(predicted))
        tokens = sequence.token_ids[self._num_learned : end]
        self._num_learned = max(end, self._num_learned)
        if self._index is not None:
            self._index.extend(tokens)
        if self._pool is not None:
            self._pool.seed(tokens)
        return len(predicted) + len(tokens)

    def propose(self, sequence: SequenceState, max_seq_len: int) -> Proposal | None:
        """What may follow the sequence's last token; None when nothing is known, or no token is left to draft."""
        self._chain, self._branches = [], []
        limit = min(self._max_draft_tokens, sequence.max_num_tokens - sequence.num_tokens - 1)
        if limit < 1 or self._num_learned < sequence.num_tokens:
            return None
        self._chain, gains = self._continue(sequence, limit)
        if self._pool is None:
            if not self._chain:
                return None
            return Proposal(Draft.chain(self._chain), gains, sequence.num_tokens)
        self._branches = self._from_pool(sequence, limit)
        branches = [self._chain, *self._branches] if self._chain else self._branches
        if self._window is None:
            self._window = LookaheadWindow(self._config, sequence.token_ids, self._pool)
        if sequence.num_tokens + self._config.window_size + self._config.ngram_size > max_seq_len:
            draft = Draft.trie(branches).cut(self._max_draft_tokens)
            return Proposal(draft, self._trie_gains(draft, gains), sequence.num_tokens)
        window = self._window.attach(branches)
        draft = window.cut(self._max_draft_tokens)
        window = window.keep(max(0, self._max_draft_tokens - self._window.num_nodes))
        return Proposal(
            draft,
            self._trie_gains(draft, gains),
            sequence.num_tokens,
            window,
            self._window_worth.worth if window else 0.0,
        )

    def update(
        self, sequence: SequenceState, draft: Draft | None, verified: Verified, logits: StepLogits, row: int
    ) -> None:
        """Learn from a step: `row` is the first of the sequence's rows."""
        tokens = [token.token_id for token in verified.sampled]
        if self._num_learned + len(tokens) < sequence.num_tokens:
            return  # still learning the prompt: it will come to these tokens
        if self._index is not None:
            self._observe_index(tokens)
        if sequence.guide is not None:
            self._guided.observe(tokens)
        if self._pool is not None:
            self._observe_pool(tokens)
            self._pool.seed(tokens)
        if self._window is not None and tokens:
            rows = range(len(draft.window_rows)) if draft is not None else ()
            first = row + 1 + (0 if draft is None else draft.num_candidates)
            self._window.update([logits.argmax(first + i) for i in rows], tokens)
            if rows:
                self._window_worth.observe(max(0, len(verified.accepted) - _num_common(self._chain, tokens)))
            else:
                self._window_worth.observe_idle()
        self._num_learned += len(tokens)

    def _continue(self, sequence: SequenceState, limit: int) -> tuple[list[int], list[float]]:
        """The likeliest continuation of the text, and the probability that each of its tokens is accepted."""
        if sequence.guide is not None:
            return self._guided.propose(sequence.guide, sequence.num_output_tokens, self._index, limit)
        if self._index is None:
            return [], []
        found = self._index.propose(limit)
        return found.token_ids, self._index_rates.survival(found.match_length, len(found.token_ids))

    def _from_pool(self, sequence: SequenceState, limit: int) -> list[list[int]]:
        assert self._pool is not None
        found = self._pool.following(sequence.token_ids[-1], self._config.verification_set_size)
        branches = [list(ngram[:limit]) for ngram in found]
        if sequence.guide is not None:
            branches = [branch[: self._guided.num_valid(branch)] for branch in branches]
        return [branch for branch in branches if branch]

    def _trie_gains(self, draft: Draft, chain_gains: list[float]) -> list[float]:
        """Of each node: the chain's own, then the pool's by depth, ever less likely for later branches."""
        by_depth = self._pool_rates.survival(1, max(draft.depths(), default=0))
        gains = list(chain_gains)
        share = 1.0
        for depth in draft.depths()[len(chain_gains) :]:
            if depth == 1:
                share *= _LATER_BRANCH if gains else 1.0
            gains.append(by_depth[depth - 1] * share)
        return gains

    def _observe_index(self, tokens: Sequence[int]) -> None:
        """Would the index have been right? Asked of every token, drafted or not: that costs nothing and has no bias."""
        assert self._index is not None
        for token_id in tokens:
            guess = self._index.propose(1)
            if guess.token_ids:
                self._index_rates.observe(guess.match_length, guess.token_ids[0] == token_id)
            self._index.extend((token_id,))

    def _observe_pool(self, tokens: Sequence[int]) -> None:
        alive = self._branches
        for depth, token_id in enumerate(tokens):
            alive = [branch for branch in alive if len(branch) > depth]
            if not alive:
                return
            alive = [branch for branch in alive if branch[depth] == token_id]
            self._pool_rates.observe(depth + 1, bool(alive))


def _num_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
