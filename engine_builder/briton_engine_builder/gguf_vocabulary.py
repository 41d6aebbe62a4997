"""The tokenizer metadata of a GGUF, read and checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TypeVar

from gguf import GGUFReader, Keys, TokenType

from briton.errors import BuildError

_KEYS = Keys.Tokenizer
_METASPACE = "▁"
_SPECIAL_IDS = {
    "bos_token": _KEYS.BOS_ID,
    "eos_token": _KEYS.EOS_ID,
    "unk_token": _KEYS.UNK_ID,
    "pad_token": _KEYS.PAD_ID,
}
_T = TypeVar("_T", str, int, float, bool)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The `tokenizer.*` fields of a GGUF; lists are by token id."""

    model: str  # "gpt2": byte-level BPE; "llama": sentencepiece BPE
    pre: str  # how text is split before merging, for "gpt2"
    tokens: list[str]
    types: list[int]  # gguf.TokenType
    scores: list[float]  # of "llama": the higher, the earlier a piece is merged
    merges: list[str]  # of "gpt2": "left right", in order
    special_ids: dict[str, int]  # "bos_token", "eos_token", ... -> id
    add_bos: bool | None  # None: as is the custom of the model or pre-tokenizer
    add_eos: bool
    add_space_prefix: bool  # of "llama"
    chat_templates: dict[str, str]  # by name, the main one "default"
    context_length: int | None  # tokens

    def token(self, name: str) -> str | None:
        """The spelling of a special token ("bos_token"), None where the GGUF names none."""
        token_id = self.special_ids.get(name)
        return None if token_id is None else self.tokens[token_id]

    def is_present(self, token_id: int) -> bool:
        """False for ids that only fill up the embedding: no text has them."""
        return self.types[token_id] != TokenType.UNUSED and self.tokens[token_id] != ""

    def is_control(self, token_id: int) -> bool:
        """True for tokens that are no part of a text, BOS and EOS whatever their type says.

        A padding id proves nothing: files name token 0 for want of one, and that may be an exclamation mark.
        """
        if self.types[token_id] in (TokenType.CONTROL, TokenType.UNKNOWN):
            return True
        return token_id in (self.special_ids.get("bos_token"), self.special_ids.get("eos_token"))


def read_vocabulary(reader: GGUFReader) -> GgufVocabulary:
    """Read and check the tokenizer fields. Raises BuildError naming the field that is missing or wrong."""
    model = _scalar(reader, _KEYS.MODEL, str)
    if model not in ("gpt2", "llama"):
        known = "'gpt2' (byte-level BPE) and 'llama' (sentencepiece)"
        raise BuildError(f"{_KEYS.MODEL} is {model!r}; this builder knows {known}")
    tokens = _array(reader, _KEYS.LIST, str)
    if not tokens:
        raise BuildError(f"the GGUF has no {_KEYS.LIST}: it holds no tokenizer")
    types = _array(reader, _KEYS.TOKEN_TYPE, int) or [int(TokenType.NORMAL)] * len(tokens)
    scores = _array(reader, _KEYS.SCORES, float)
    merges = _array(reader, _KEYS.MERGES, str)
    if model == "gpt2" and not merges:
        raise BuildError(f"the GGUF has no {_KEYS.MERGES}, which its byte-level BPE needs")
    if len(types) != len(tokens):
        raise BuildError(f"{_KEYS.TOKEN_TYPE} has {len(types)} entries for {len(tokens)} tokens")
    if model == "llama" and len(scores) != len(tokens):
        raise BuildError(f"{_KEYS.SCORES} has {len(scores)} entries for {len(tokens)} tokens")
    pre = _scalar(reader, _KEYS.PRE, str)
    if model == "gpt2" and not pre:
        logger.warning("the GGUF does not say how its tokenizer splits words (%s): taking 'default'", _KEYS.PRE)
    architecture = _scalar(reader, Keys.General.ARCHITECTURE, str)
    space_prefix = _scalar(reader, _KEYS.ADD_PREFIX, bool)
    return GgufVocabulary(
        model=model,
        pre=pre or "default",
        tokens=[_raw_spelling(token, kind) for token, kind in zip(tokens, types, strict=True)],
        types=types,
        scores=scores,
        merges=merges,
        special_ids=_special_ids(reader, len(tokens)),
        add_bos=_scalar(reader, _KEYS.ADD_BOS, bool),
        add_eos=_scalar(reader, _KEYS.ADD_EOS, bool) or False,
        add_space_prefix=True if space_prefix is None else space_prefix,
        chat_templates=_chat_templates(reader),
        context_length=_scalar(reader, Keys.LLM.CONTEXT_LENGTH.format(arch=architecture), int),
    )


def _special_ids(reader: GGUFReader, num_tokens: int) -> dict[str, int]:
    special_ids: dict[str, int] = {}
    for name, key in _SPECIAL_IDS.items():
        token_id = _scalar(reader, key, int)
        if token_id is None:
            continue
        if not 0 <= token_id < num_tokens:
            raise BuildError(f"{key} is {token_id}, outside the vocabulary of {num_tokens} tokens")
        special_ids[name] = token_id
    return special_ids


def _chat_templates(reader: GGUFReader) -> dict[str, str]:
    keys = {name: _KEYS.CHAT_TEMPLATE_N.format(name=name) for name in _array(reader, _KEYS.CHAT_TEMPLATES, str)}
    keys["default"] = _KEYS.CHAT_TEMPLATE
    templates = {name: _scalar(reader, key, str) for name, key in keys.items()}
    return {name: template for name, template in templates.items() if template is not None}


def _raw_spelling(token: str, kind: int) -> str:
    """A user-defined token is matched in raw text, before spaces become metaspaces."""
    return token.replace(_METASPACE, " ") if kind == TokenType.USER_DEFINED else token


def _scalar(reader: GGUFReader, key: str, kind: type[_T]) -> _T | None:
    value = _contents(reader, key)
    if value is not None and type(value) is not kind:
        raise BuildError(f"{key} is of the wrong type: {type(value).__name__}, not {kind.__name__}")
    return value


def _array(reader: GGUFReader, key: str, kind: type[_T]) -> list[_T]:
    """The entries of an array field; [] where there is none."""
    value = _contents(reader, key)
    if value is None:
        return []
    if not isinstance(value, list) or (value and type(value[0]) is not kind):
        raise BuildError(f"{key} is of the wrong type: not an array of {kind.__name__}")
    return value


def _contents(reader: GGUFReader, key: str) -> object | None:
    field = reader.get_field(key)
    try:
        return None if field is None else field.contents()
    except UnicodeDecodeError as error:
        raise BuildError(f"{key} is not UTF-8: {error}") from None
