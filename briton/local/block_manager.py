"""The paged KV cache's book-keeping: which block belongs to whom, and which old ones can be used again.

Knows block numbers and token ids; never touches the cache itself. A block is *used* (ref_count > 0, in some block
tables) or *free* (ref_count 0, in the free list). A free block may still be *cached*: its hash is known, and a later
prompt that begins the same way takes it back. Only full blocks of computed tokens are ever hashed, so reuse never sees
an unverified token.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator

from briton.local.sequence import SequenceState


class BlockManager:
    """Ref-counted blocks, prefix reuse by chained hashes, O(1) least-recently-used free list."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # oldest first
        self.num_cached_free_blocks = 0  # free blocks whose content can still be reused

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be taken, cached ones included."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, sequence: SequenceState) -> list[int]:
        """The cached blocks a sequence without blocks could start from. At least one token is left to compute: its
        logits are needed."""
        matched: list[int] = []
        for digest in self._chain(sequence, 0, (sequence.num_tokens - 1) // self.block_size):
            block = self._block_of.get(digest)
            if block is None:
                break
            matched.append(block)
        return matched

    def num_free_among(self, blocks: Iterable[int]) -> int:
        """How many of these would leave the free list if they were taken."""
        return sum(self._ref_counts[block] == 0 for block in blocks)

    def take_prefix(self, sequence: SequenceState, matched: list[int]) -> None:
        """Start a sequence from matched blocks: their tokens count as computed."""
        for block in matched:
            if self._ref_counts[block] == 0:
                del self._free[block]
                self.num_cached_free_blocks -= 1
            self._ref_counts[block] += 1
        sequence.block_table.extend(matched)
        sequence.num_committed_blocks = len(matched)
        sequence.num_computed_tokens = len(matched) * self.block_size

    def blocks_missing(self, sequence: SequenceState, num_tokens: int) -> int:
        """New blocks needed so that the table covers the first `num_tokens` tokens."""
        return max(0, self.blocks_for(num_tokens) - len(sequence.block_table))

    def can_extend(self, sequence: SequenceState, num_tokens: int) -> bool:
        """Whether `extend` would succeed."""
        return self.blocks_missing(sequence, num_tokens) <= len(self._free)

    def extend(self, sequence: SequenceState, num_tokens: int) -> None:
        """Give the sequence blocks for its first `num_tokens` tokens, the least recently used free ones; what they
        cached is forgotten."""
        for _ in range(self.blocks_missing(sequence, num_tokens)):
            block, _unused = self._free.popitem(last=False)
            self._forget(block)
            self._ref_counts[block] = 1
            sequence.block_table.append(block)

    def trim(self, sequence: SequenceState) -> None:
        """Take back what a draft was given and does not keep: blocks beyond the computed tokens. Nothing in them is
        worth remembering, so they are the first to be taken again."""
        for _ in range(len(sequence.block_table) - self.blocks_for(sequence.num_computed_tokens)):
            block = sequence.block_table.pop()
            self._ref_counts[block] = 0
            self._free[block] = None
            self._free.move_to_end(block, last=False)

    def commit(self, sequence: SequenceState) -> None:
        """Make the sequence's full computed blocks known for reuse. The first block of equal content stays the known
        one."""
        committed = sequence.num_committed_blocks
        num_full = sequence.num_computed_tokens // self.block_size
        if committed == num_full:
            return
        for block, digest in zip(
            sequence.block_table[committed:num_full], self._chain(sequence, committed, num_full), strict=True
        ):
            if digest not in self._block_of:
                self._hashes[block] = digest
                self._block_of[digest] = block
        sequence.num_committed_blocks = num_full

    def free(self, sequence: SequenceState) -> None:
        """Take all blocks from a sequence. Its last blocks become the least recently used ones: a prefix outlives
        its continuations."""
        for block in reversed(sequence.block_table):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free[block] = None
                self.num_cached_free_blocks += self._hashes[block] is not None
        sequence.block_table.clear()
        sequence.num_committed_blocks = 0
        sequence.num_computed_tokens = 0

    def check_invariants(self, sequences: Iterable[SequenceState]) -> None:
        """Raise AssertionError unless the books balance for exactly these sequences."""
        held: Counter[int] = Counter()
        for sequence in sequences:
            held.update(sequence.block_table)
            assert len(set(sequence.block_table)) == len(sequence.block_table), "a table holds a block twice"
            assert sequence.num_computed_tokens <= sequence.num_tokens
            assert sequence.num_computed_tokens <= len(sequence.block_table) * self.block_size
            assert len(sequence.block_table) >= self.blocks_for(sequence.num_computed_tokens)
            assert sequence.num_committed_blocks <= sequence.num_computed_tokens // self.block_size
        for block in range(self.num_blocks):
            assert self._ref_counts[block] == held[block], f"block {block}: ref count is not the number of tables"
            assert (block in self._free) == (held[block] == 0), f"block {block}: free and used, or neither"
            digest = self._hashes[block]
            assert digest is None or self._block_of[digest] == block, f"block {block}: its hash leads elsewhere"
        assert self.num_cached_free_blocks == sum(self._hashes[block] is not None for block in self._free)
        assert len(self._block_of) == sum(digest is not None for digest in self._hashes)

    def _forget(self, block: int) -> None:
        """Drop what a block that was just taken from the free list had cached."""
        digest = self._hashes[block]
        if digest is not None:
            del self._block_of[digest]
            self._hashes[block] = None
            self.num_cached_free_blocks -= 1

    def _chain(self, sequence: SequenceState, start: int, end: int) -> Iterator[bytes]:
        """Hashes of blocks start..end-1: each over the hash before it (at first: the salt's) and the block's token
        ids. The sequence remembers them: one that waits at the head of the queue is asked at every step."""
        known = sequence.block_hashes
        for i in range(start, end):
            if i == len(known):
                # the salt's own hash: a salt as it is could be made to look like the hash of somebody's prefix
                before = known[-1] if known else _digest(sequence.request.cache_salt.encode("utf-8", "surrogatepass"))
                tokens = array("I", sequence.token_ids[i * self.block_size : (i + 1) * self.block_size])
                known.append(_digest(before + tokens.tobytes()))
            yield known[i]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
