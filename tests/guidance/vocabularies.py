"""Two small tokenizers, trained on the spot: byte-level BPE, and one like sentencepiece's with <0xXX> tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from briton.guidance.guide import Guide

CORPUS = [
    '{"name": "Ada Lovelace", "age": 36, "tags": ["red", "green"], "score": 3.14, "active": true, "next": null}',
    '{\n  "city": "Zürich",\n  "category": "cat",\n  "items": [{"id": 1, "kind": "number"}, {"id": 22}]\n}',
    "The quick brown fox jumps over the lazy dog, 2024-01-31 at 10:45, and says naïve café 猫 and yes or no.",
    "category cat catalogue label number one two three true false null 0.5 -17 1e10 user@example.com",
] * 20


@dataclass(frozen=True)
class TestVocabulary:
    """A tokenizer as a GuideCompiler gets it. The last ids are holes, so that a mask row ends inside a word."""

    __test__ = False

    name: str
    tokenizer: Tokenizer
    token_bytes: tuple[bytes | None, ...]
    stop_token_ids: tuple[int, ...]
    vocab_size: int  # logits width, more than the tokenizer has

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def spell(self, token_ids: list[int]) -> bytes:
        """The bytes of tokens; stop ids have none."""
        return b"".join(self.token_bytes[t] or b"" for t in token_ids)

    def tokens_of(self, text: str) -> list[int]:
        """Single-byte tokens of a text, where the vocabulary has them: never the canonical ones."""
        single = {data: i for i, data in enumerate(self.token_bytes) if data is not None and len(data) == 1}
        return [single[bytes([b])] for b in text.encode()]

    def new_row(self) -> np.ndarray:
        return np.full((self.vocab_size + 31) // 32, -1, np.int32)

    def allowed(self, guide: Guide) -> list[int]:
        """The ids in a guide's next mask; bits past the vocabulary must not be set."""
        row = self.new_row()
        guide.fill_bitmask(row)
        ids = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        assert not ids.size or ids[-1] < self.vocab_size
        return [int(token_id) for token_id in ids]


def byte_level(vocab_size: int = 700) -> TestVocabulary:
    """As GPT-2: every byte is a letter of the alphabet; of the control tokens, two end a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    controls = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(c, special=True) for c in controls],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    byte_of = _byte_of_letter()
    texts: list[bytes | None] = [None] * tokenizer.get_vocab_size()
    for token, i in tokenizer.get_vocab().items():
        texts[i] = None if token in controls else bytes(byte_of[c] for c in token)
    return TestVocabulary("byte_level", tokenizer, tuple(texts), (0, 2), len(texts) + 13)


def sentencepiece(vocab_size: int = 500) -> TestVocabulary:
    """As Llama 2: a space is U+2581, one comes before every text, unknown characters fall back to <0xXX> tokens."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
    learned = learner.get_vocab()
    merges = _merges(learner)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += sorted((t for t in learned if t not in tokens), key=learned.__getitem__)
    vocab = dict(zip(tokens, count(), strict=False))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    texts: list[bytes | None] = [None, None, None]
    texts += [bytes([b]) for b in range(256)]
    texts += [t.replace("▁", " ").encode() for t in tokens[259:]]
    return TestVocabulary("sentencepiece", tokenizer, tuple(texts), (2,), len(texts) + 5)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in merges)
    return [(left, right) for left, right in pairs]


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's map from letters back to bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
