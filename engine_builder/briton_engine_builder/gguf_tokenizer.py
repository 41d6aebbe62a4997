"""A GGUF's tokenizer as Hugging Face files (tokenizer.json and its companions), from its metadata alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from gguf import GGUFReader, Keys, TokenType

from briton.errors import BuildError
from briton.text.chat_template import TEMPLATE_FILE, TOKENIZER_CONFIG_FILE
from briton.text.tokenizer import TOKENIZER_FILE
from briton_engine_builder.gguf_pre_tokenizers import pre_tokenizer
from briton_engine_builder.gguf_vocabulary import GgufVocabulary, read_vocabulary

_METASPACE = "▁"


def write_tokenizer(reader: GGUFReader, directory: Path) -> None:
    """Write the tokenizer files of a GGUF into `directory`, which exists.

    Raises BuildError for a tokenizer model or pre-tokenizer this builder does not know, by name, and for damaged
    metadata; then nothing is written.
    """
    vocabulary = read_vocabulary(reader)
    text = json.dumps(tokenizer_json(vocabulary), ensure_ascii=False)
    try:
        tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception; a merge of unknown pieces ends here
        raise BuildError(f"the GGUF's tokenizer does not fit together: {error}") from None
    config = json.dumps(_tokenizer_config(vocabulary), ensure_ascii=False, indent=2)
    (directory / TOKENIZER_FILE).write_text(text + "\n", encoding="utf-8")
    (directory / TOKENIZER_CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
    template = vocabulary.chat_templates.get("default")
    if template is not None:
        (directory / TEMPLATE_FILE).write_text(template, encoding="utf-8")


def tokenizer_json(vocabulary: GgufVocabulary) -> dict[str, Any]:
    """The document of tokenizer.json, as the `tokenizers` library reads it. Raises BuildError."""
    ids: dict[str, int] = {}
    for token_id, token in enumerate(vocabulary.tokens):
        if not vocabulary.is_present(token_id):
            continue
        if token in ids:
            raise BuildError(f"{Keys.Tokenizer.LIST} has {token!r} twice, as ids {ids[token]} and {token_id}")
        ids[token] = token_id
    parts = _byte_level_parts(vocabulary, ids) if vocabulary.model == "gpt2" else _sentencepiece_parts(vocabulary, ids)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "post_processor": _post_processor(vocabulary),
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
    if vocabulary.add_space_prefix:
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
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        special = vocabulary.is_control(token_id)
        if vocabulary.is_present(token_id) and (special or kind == TokenType.USER_DEFINED):
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
            added.append({"id": token_id, "content": token, **flags})
    return added


def _post_processor(vocabulary: GgufVocabulary) -> dict[str, Any] | None:
    """What puts BOS and EOS around a text; None where neither is wanted."""
    add_bos = vocabulary.add_bos
    if add_bos is None:
        add_bos = vocabulary.model == "llama" or pre_tokenizer(vocabulary.pre).add_bos
    bos = vocabulary.token("bos_token") if add_bos else None
    eos = vocabulary.token("eos_token") if vocabulary.add_eos else None
    if bos is None and eos is None:
        return None
    before = [] if bos is None else [_special(bos)]
    after = [] if eos is None else [_special(eos)]
    ids = {"bos_token": bos, "eos_token": eos}
    return {
        "type": "TemplateProcessing",
        "single": [*before, _sequence("A", 0), *after],
        "pair": [*before, _sequence("A", 0), _sequence("B", 1), *after],
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.special_ids[name]], "tokens": [token]}
            for name, token in ids.items()
            if token is not None
        },
    }


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _tokenizer_config(vocabulary: GgufVocabulary) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: vocabulary.token(name) for name in vocabulary.special_ids},
    }
    if vocabulary.context_length is not None:
        config["model_max_length"] = vocabulary.context_length
    if vocabulary.chat_templates.keys() - {"default"}:
        config["chat_template"] = [{"name": n, "template": t} for n, t in vocabulary.chat_templates.items()]
    return config
