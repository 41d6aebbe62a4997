"""The bytes each token stands for, read off a tokenizer's own decoder.

Two families cover nearly every text-generation model, and in both the text of a sequence is the concatenation of its
tokens' bytes: byte-level BPE (the GPT-2 byte map) and sentencepiece ("▁" for a space, `<0xXX>` for one byte). Whatever
else a tokenizer.json declares (WordPiece, CTC, ...) has no such bytes, and `table_of` says so by returning None.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import tokenizers

METASPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class DecodeRule:
    """What a tokenizer's decoder does, as far as bytes are concerned."""

    byte_level: bool  # tokens are spelled in the GPT-2 byte map
    metaspace: str | None = None  # the character that stands for a space
    byte_fallback: bool = False  # `<0xXX>` is one byte
    leading_spaces: int = 0  # this many spaces are dropped at the start of a text
    bare_first: bool = False  # the first token loses every metaspace, as the Metaspace decoder has it


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Bytes by token id; ids without a token have none (b"")."""

    rule: DecodeRule
    bytes_of: list[bytes]  # special tokens too: their names
    special: frozenset[int]  # control tokens, which are no part of a text
    holes: frozenset[int]  # ids below len(bytes_of) that no token has

    def first_bytes(self, token_id: int) -> bytes:
        """A token's bytes where it is the first of a text."""
        if self.rule.bare_first and self.rule.metaspace is not None:
            return self.bytes_of[token_id].replace(b" ", b"")
        return self.bytes_of[token_id]


def byte_map() -> dict[str, int]:
    """GPT-2's map from printable characters to bytes, as `bytes_to_unicode` of its encoder.py spells it, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    mapping = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    mapping.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return mapping


def rule_of(tokenizer: tokenizers.Tokenizer) -> DecodeRule | None:
    """Read the decoder's declaration. None when a token's text depends on more than the token itself."""
    if tokenizer.decoder is None:
        return None
    declared: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = declared["decoders"] if declared["type"] == "Sequence" else [declared]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return DecodeRule(byte_level=True)
    if not kinds or kinds[0] not in ("Replace", "Metaspace"):
        return None
    first = steps[0]
    if first["type"] == "Metaspace":
        metaspace, bare_first = first["replacement"], first["prepend_scheme"] != "never"
    elif first["content"] == " " and len(first["pattern"].get("String", "")) == 1:
        metaspace, bare_first = first["pattern"]["String"], False
    else:
        return None
    leading_spaces, fused = 0, False
    for step in steps[1:]:
        if step["type"] == "Fuse":
            fused = True
        elif step["type"] == "Strip" and fused and step["content"] == " " and step["stop"] == 0:
            leading_spaces = step["start"]
        elif step["type"] != "ByteFallback":
            return None
    return DecodeRule(False, metaspace, "ByteFallback" in kinds, leading_spaces, bare_first)


def table_of(tokenizer: tokenizers.Tokenizer) -> TokenTable | None:
    """The bytes of every token, or None when the tokenizer is of neither family."""
    rule = rule_of(tokenizer)
    if rule is None:
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    size = max(max(vocabulary.values(), default=-1), max(added, default=-1)) + 1
    bytes_of = [b""] * size
    holes = set(range(size))
    to_bytes = _byte_level_bytes if rule.byte_level else _sentencepiece_bytes
    mapping = byte_map()
    for token, token_id in vocabulary.items():
        bytes_of[token_id] = to_bytes(token, rule, mapping)
        holes.discard(token_id)
    for token_id, added_token in added.items():  # matched in raw text, so spelled as the text is
        content: str = added_token.content
        bytes_of[token_id] = content.encode() if rule.byte_level else _sentencepiece_bytes(content, rule, mapping)
        holes.discard(token_id)
    special = frozenset(token_id for token_id, token in added.items() if token.special)
    return TokenTable(rule, bytes_of, special, frozenset(holes))


def _byte_level_bytes(token: str, rule: DecodeRule, mapping: dict[str, int]) -> bytes:
    try:
        return bytes([mapping[character] for character in token])
    except KeyError:  # not spelled in the byte map: the decoder takes it literally
        return token.encode()


def _sentencepiece_bytes(token: str, rule: DecodeRule, mapping: dict[str, int]) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token) if rule.byte_fallback else None
    if match is not None:
        return bytes([int(match[1], 16)])
    return (token.replace(rule.metaspace, " ") if rule.metaspace else token).encode()
