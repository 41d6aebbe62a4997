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

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class DecodeRule:
    """What a tokenizer's decoder does, as far as bytes are concerned."""

    byte_level: bool  # tokens are spelled in the GPT-2 byte map
    metaspace: str = ""  # the character that stands for a space
    byte_fallback: bool = False  # `<0xXX>` is one byte
    leading_spaces: int = 0  # as many spaces are dropped at the start of a text
    bare_first: bool = False  # the first token of a text loses every metaspace


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What tokens add to a text, by id."""

    bytes_of: list[bytes]  # b"" for control tokens and for ids that no token has
    names: dict[int, bytes]  # the spelling of control tokens
    first: dict[int, bytes]  # of tokens that add something else when they are the first of a text
    leading_spaces: int  # as many spaces are dropped at the start of a text


def table_of(tokenizer: tokenizers.Tokenizer) -> TokenTable | None:
    """The bytes of every token, or None when the tokenizer is of neither family."""
    rule = rule_of(tokenizer)
    if rule is None:
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    bytes_of = [b""] * (max(max(vocabulary.values(), default=-1), max(added, default=-1)) + 1)
    first: dict[int, bytes] = {}
    byte_map = _byte_map()
    for token, token_id in vocabulary.items():
        if token_id in added:
            continue
        if rule.byte_level:
            bytes_of[token_id] = _byte_level_bytes(token, byte_map)
            continue
        bytes_of[token_id] = _sentencepiece_bytes(token, rule)
        if rule.bare_first and rule.metaspace in token:
            first[token_id] = token.replace(rule.metaspace, "").encode()
    names: dict[int, bytes] = {}
    for token_id, added_token in added.items():
        content: str = added_token.content
        if added_token.special:
            names[token_id] = content.encode()
        else:  # matched in raw text, so spelled as the text is, not in the byte map
            bytes_of[token_id] = content.encode() if rule.byte_level else _sentencepiece_bytes(content, rule)
    return TokenTable(bytes_of, names, first, rule.leading_spaces)


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
    if kinds[0] == "Metaspace":
        metaspace, bare_first = steps[0]["replacement"], steps[0]["prepend_scheme"] != "never"
    else:
        metaspace, bare_first = steps[0]["pattern"].get("String", ""), False
        if len(metaspace) != 1 or steps[0]["content"] != " ":
            return None
    leading_spaces = 0
    for i, step in enumerate(steps[1:], start=1):
        if step["type"] == "Strip" and "Fuse" in kinds[:i] and step["content"] == " " and step["stop"] == 0:
            leading_spaces = step["start"]
        elif step["type"] not in ("ByteFallback", "Fuse"):
            return None
    return DecodeRule(False, metaspace, "ByteFallback" in kinds, leading_spaces, bare_first)


def _byte_map() -> dict[str, int]:
    """GPT-2's map of printable characters to bytes, the inverse of `bytes_to_unicode` in its encoder.py."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _byte_level_bytes(token: str, byte_map: dict[str, int]) -> bytes:
    try:
        return bytes([byte_map[character] for character in token])
    except KeyError:  # not spelled in the byte map: the decoder takes it literally
        return token.encode()


def _sentencepiece_bytes(token: str, rule: DecodeRule) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token) if rule.byte_fallback else None
    return bytes([int(match[1], 16)]) if match is not None else token.replace(rule.metaspace, " ").encode()
