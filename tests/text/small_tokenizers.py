"""Tokenizers small enough to read, one of each kind that decodes differently."""

from __future__ import annotations

from hypothesis.strategies import SearchStrategy, integers, lists, one_of, sampled_from
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from briton.text.tokenizer import Tokenizer as BritonTokenizer

_WORDS = ("th", "the", " the", " c", " ca", "at", "cat", " cat", "é", "日", "日本", "\n\n", "  ", "🎉")


def byte_level() -> BritonTokenizer:
    """Every byte, a few merges, two control tokens and two added tokens that are text."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        ((spelled, _),) = spell.pre_tokenize_str(word)
        for end in range(2, len(spelled) + 1):
            piece = spelled[:end]
            if piece not in vocab:
                vocab[piece] = len(vocab)
                merges.append((piece[:-1], piece[-1]))
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = spell
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|start|>"])
    backend.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("    ", normalized=False)])
    return BritonTokenizer(backend)


def sentencepiece(space_prefix: bool = True) -> BritonTokenizer:
    """Llama 2's kind: metaspace, byte fallback, and the space it puts before a text taken off again."""
    backend = _sentencepiece_model()
    replace = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if space_prefix else replace
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_prefix else steps)
    return BritonTokenizer(backend)


def metaspace() -> BritonTokenizer:
    """The Metaspace decoder, whose first token loses every metaspace."""
    backend = _sentencepiece_model()
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Metaspace()
    return BritonTokenizer(backend)


def word_piece() -> BritonTokenizer:
    """A tokenizer whose tokens have no bytes of their own."""
    vocab = {token: i for i, token in enumerate(["[UNK]", "un", "##able", "##s", "cat", "日", "the"])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(["[SEP]"])
    return BritonTokenizer(backend)


def byte_level_in_disguise() -> BritonTokenizer:
    """Byte-level, with a decoder of a form that is not recognised: decoded by its library, a window at a time."""
    backend = byte_level().backend
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return BritonTokenizer(backend)


def some_tokens(tokenizer: BritonTokenizer, alphabet: str) -> SearchStrategy[list[int]]:
    """Token ids: most of them of these letters, so that texts are found in them, some of any kind."""
    of_letters = sorted({i for letter in alphabet for i in tokenizer.encode(letter)})
    anything = integers(0, tokenizer.vocab_size - 1)
    return lists(one_of(sampled_from(of_letters), sampled_from(of_letters), anything), min_size=1, max_size=16)


def _sentencepiece_model() -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"acehtdog", "é", "日", "▁▁"]
    words = ("▁the", "▁cat", "▁▁▁▁")
    merges = [("▁", "▁")]
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return backend
