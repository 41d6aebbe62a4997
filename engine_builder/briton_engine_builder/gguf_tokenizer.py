"""A GGUF's tokenizer as Hugging Face files (tokenizer.json and its companions), from its metadata alone."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from gguf import GGUFReader, Keys, TokenType

from briton.errors import BuildError
from briton.text.chat_template import TEMPLATE_FILE, TOKENIZER_CONFIG_FILE
from briton.text.tokenizer import TOKENIZER_FILE
from briton_engine_builder.gguf_pre_tokenizers import pre_tokenizer

_METASPACE = "▁"
_KEYS = Keys.Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """The `tokenizer.ggml.*` fields of a GGUF, checked."""

    model: str  # "gpt2": byte-level BPE; "llama": sentencepiece BPE
    pre: str
    tokens: list[str]  # by id
    types: list[int]  # gguf.TokenType, by id
    scores: list[float]  # by id; empty for gpt2
    merges: list[str]  # "left right", most frequent first; empty for llama
    special_ids: dict[str, int]  # "bos_token" -> id
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None

    def token(self, name: str) -> str | None:
        """The spelling of a special token ("bos_token"), None where the GGUF names none."""
        token_id = self.special_ids.get(name)
        return None if token_id is None else self.tokens[token_id]

    def present(self, token_id: int) -> bool:
        """False for ids that only fill up the embedding: no text has them."""
        return self.types[token_id] != TokenType.UNUSED and self.tokens[token_id] != ""


def write_tokenizer(reader: GGUFReader, directory: Path) -> None:
    """Write the tokenizer files of a GGUF into `directory`, which exists.

    Raises BuildError for a tokenizer model or pre-tokenizer this builder does not know, by name, and for damaged
    metadata.
    """
    vocabulary = read_vocabulary(reader)
    document = tokenizer_json(vocabulary)
    text = json.dumps(document, ensure_ascii=False)
    try:
        tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception; a merge of unknown pieces ends here
        raise BuildError(f"the GGUF's tokenizer does not fit together: {error}") from None
    (directory / TOKENIZER_FILE).write_text(text + "\n", encoding="utf-8")
    config = _tokenizer_config(reader, vocabulary)
    (directory / TOKENIZER_CONFIG_FILE).write_text(
        json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    template = _field(reader, _KEYS.CHAT_TEMPLATE)
    if template is not None:
        (directory / TEMPLATE_FILE).write_text(str(template), encoding="utf-8")


def read_vocabulary(reader: GGUFReader) -> GgufVocabulary:
    """Read and check the tokenizer fields. Raises BuildError naming the field that is missing or wrong."""
    model = _field(reader, _KEYS.MODEL)
    if model not in ("gpt2", "llama"):
        raise BuildError(
            f"{_KEYS.MODEL} is {model!r}; this builder knows 'gpt2' (byte-level BPE) and 'llama' (sentencepiece)"
        )
    tokens = _field(reader, _KEYS.LIST)
    if not tokens:
        raise BuildError(f"the GGUF has no {_KEYS.LIST}: it holds no tokenizer")
    types = _field(reader, _KEYS.TOKEN_TYPE) or [int(TokenType.NORMAL)] * len(tokens)
    scores = _field(reader, _KEYS.SCORES) or []
    merges = _field(reader, _KEYS.MERGES) or []
    if model == "gpt2" and not merges:
        raise BuildError(f"the GGUF has no {_KEYS.MERGES}, which its byte-level BPE needs")
    if len(types) != len(tokens):
        raise BuildError(f"{_KEYS.TOKEN_TYPE} has {len(types)} entries for {len(tokens)} tokens")
    if model == "llama" and len(scores) != len(tokens):
        raise BuildError(f"{_KEYS.SCORES} has {len(scores)} entries for {len(tokens)} tokens")
    pre = _field(reader, _KEYS.PRE)
    if model == "gpt2" and not pre:
        logger.warning("the GGUF does not say how its tokenizer splits words (%s): taking 'default'", _KEYS.PRE)
    return GgufVocabulary(
        model=model,
        pre=pre or "default",
        tokens=[_raw_spelling(token, kind) for token, kind in zip(tokens, types, strict=True)],
        types=[int(kind) for kind in types],
        scores=[float(score) for score in scores],
        merges=list(merges),
        special_ids=_special_ids(reader, len(tokens)),
        add_bos=_field(reader, _KEYS.ADD_BOS),
        add_eos=_field(reader, _KEYS.ADD_EOS),
        add_space_prefix=_field(reader, _KEYS.ADD_PREFIX),
    )


def tokenizer_json(vocabulary: GgufVocabulary) -> dict[str, Any]:
    """The document of tokenizer.json, as the `tokenizers` library reads it."""
    ids: dict[str, int] = {}
    for token_id, token in enumerate(vocabulary.tokens):
        if not vocabulary.present(token_id):
            continue
        if token in ids:
            raise BuildError(f"{_KEYS.LIST} has {token!r} twice, as ids {ids[token]} and {token_id}")
        ids[token] = token_id
    parts = _byte_level_parts(vocabulary, ids) if vocabulary.model == "gpt2" else _sentencepiece_parts(vocabulary, ids)
    default_bos = pre_tokenizer(vocabulary.pre).add_bos if vocabulary.model == "gpt2" else True
    bos = vocabulary.token("bos_token") if _or(vocabulary.add_bos, default_bos) else None
    eos = vocabulary.token("eos_token") if _or(vocabulary.add_eos, False) else None
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "post_processor": _post_processor(vocabulary, bos, eos),
        **parts,
    }


def _byte_level_parts(vocabulary: GgufVocabulary, ids: dict[str, int]) -> dict[str, Any]:
    row = pre_tokenizer(vocabulary.pre)
    merges: list[list[str]] = []
    for merge in vocabulary.merges:
        left, _, right = merge[1:].partition(" ")  # a piece is never empty, so its first character is no separator
        merges.append([merge[:1] + left, right])
    return {
        "normalizer": {"type": "NFC"} if row.nfc else None,
        "pre_tokenizer": row.to_json(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(ids, merges, ignore_merges=row.ignore_merges),
    }


def _sentencepiece_parts(vocabulary: GgufVocabulary, ids: dict[str, int]) -> dict[str, Any]:
    to_metaspace = {"type": "Replace", "pattern": {"String": " "}, "content": _METASPACE}
    from_metaspace = {"type": "Replace", "pattern": {"String": _METASPACE}, "content": " "}
    normalizer: dict[str, Any] = to_metaspace
    decoders: list[dict[str, Any]] = [from_metaspace, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if _or(vocabulary.add_space_prefix, True):
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _METASPACE}, to_metaspace]}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            ids,
            merges_of_scores(vocabulary, ids),
            unk_token=vocabulary.token("unk_token"),
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def merges_of_scores(vocabulary: GgufVocabulary, ids: dict[str, int]) -> list[list[str]]:
    """Sentencepiece's merge order as a list of merges: every way to make a piece of two, the best score first."""
    mergeable = {token for token, i in ids.items() if vocabulary.types[i] == TokenType.NORMAL}
    by_score: list[tuple[float, int, int, list[str]]] = []
    for token in mergeable:
        score = -vocabulary.scores[ids[token]]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in mergeable and right in mergeable:
                by_score.append((score, ids[left], ids[right], [left, right]))
    by_score.sort(key=lambda entry: entry[:3])
    return [pair for _, _, _, pair in by_score]


def _bpe(ids: dict[str, int], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": ids,
        "merges": merges,
    }


def _added_tokens(vocabulary: GgufVocabulary) -> list[dict[str, Any]]:
    """Control tokens as special added tokens, user-defined ones as added tokens that are text."""
    added: list[dict[str, Any]] = []
    specials = set(vocabulary.special_ids.values())
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        special = kind in (TokenType.CONTROL, TokenType.UNKNOWN) or token_id in specials
        if not vocabulary.present(token_id) or not (special or kind == TokenType.USER_DEFINED):
            continue
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
        added.append({"id": token_id, "content": token, **flags})
    return added


def _post_processor(vocabulary: GgufVocabulary, bos: str | None, eos: str | None) -> dict[str, Any] | None:
    if bos is None and eos is None:
        return None
    before = [{"SpecialToken": {"id": bos, "type_id": 0}}] if bos is not None else []
    after = [{"SpecialToken": {"id": eos, "type_id": 0}}] if eos is not None else []
    names = {"bos_token": bos, "eos_token": eos}
    return {
        "type": "TemplateProcessing",
        "single": [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after],
        "pair": [*before, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}, *after],
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.special_ids[name]], "tokens": [token]}
            for name, token in names.items()
            if token is not None
        },
    }


def _tokenizer_config(reader: GGUFReader, vocabulary: GgufVocabulary) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in vocabulary.special_ids:
        config[name] = vocabulary.token(name)
    architecture = _field(reader, Keys.General.ARCHITECTURE)
    context_length = _field(reader, Keys.LLM.CONTEXT_LENGTH.format(arch=architecture))
    if context_length is not None:
        config["model_max_length"] = int(context_length)
    names = _field(reader, _KEYS.CHAT_TEMPLATES) or []
    named = {name: _field(reader, _KEYS.CHAT_TEMPLATE_N.format(name=name)) for name in names}
    if named:
        named["default"] = _field(reader, _KEYS.CHAT_TEMPLATE)
        config["chat_template"] = [{"name": n, "template": t} for n, t in named.items() if t is not None]
    return config


def _special_ids(reader: GGUFReader, num_tokens: int) -> dict[str, int]:
    keys = {"bos_token": _KEYS.BOS_ID, "eos_token": _KEYS.EOS_ID, "unk_token": _KEYS.UNK_ID, "pad_token": _KEYS.PAD_ID}
    special_ids: dict[str, int] = {}
    for name, key in keys.items():
        token_id = _field(reader, key)
        if token_id is None:
            continue
        if not 0 <= token_id < num_tokens:
            raise BuildError(f"{key} is {token_id}, outside the vocabulary of {num_tokens} tokens")
        special_ids[name] = int(token_id)
    return special_ids


def _raw_spelling(token: str, kind: int) -> str:
    """A user-defined token is matched in raw text, before spaces become metaspaces."""
    return token.replace(_METASPACE, " ") if kind == TokenType.USER_DEFINED else token


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else bool(value)
