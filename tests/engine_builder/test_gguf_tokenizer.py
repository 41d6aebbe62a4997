"""The tokenizer of a GGUF: written, loaded again, compared with llama.cpp and with sentencepiece's algorithm."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from gguf import TokenType
from hypothesis import given
from hypothesis import strategies as st

from briton.errors import BuildError
from briton.text.chat_template import ChatTemplate
from briton.text.tokenizer import Tokenizer
from briton_engine_builder.gguf_pre_tokenizers import PreTokenizer, known_names, pre_tokenizer
from briton_engine_builder.gguf_tokenizer import write_tokenizer

GOLDENS = Path(__file__).parents[1] / "text" / "goldens"
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def write_gguf(path: Path, fields: Mapping[str, Any]) -> gguf.GGUFReader:
    """A GGUF of metadata alone."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        if value is None:
            continue
        add = {
            bool: writer.add_bool,
            str: writer.add_string,
            int: writer.add_uint32,
            list: writer.add_array,
        }
        add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return gguf.GGUFReader(path)


def byte_level_fields(**changes: Any) -> dict[str, Any]:
    """Two control tokens, a user-defined one, all bytes, "the" and " the", and a token that only fills up."""
    tokens = ["<|end|>", "<|start|>", "<tool>", *ALPHABET, "th", "the", "Ġthe", "[PAD262]"]
    types = [TokenType.CONTROL] * 2 + [TokenType.USER_DEFINED] + [TokenType.NORMAL] * (len(tokens) - 4)
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*map(int, types), int(TokenType.UNUSED)],
        "tokenizer.ggml.merges": ["t h", "th e", "Ġ the"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }
    return fields | {key.replace("__", "."): value for key, value in changes.items()}


PIECES = {  # score by piece: the order in which sentencepiece merges
    "▁a": -1.0, "ab": -2.0, "bc": -3.0, "▁ab": -4.0, "abc": -5.0, "▁abc": -6.0, "cc": -7.0, "ca": -8.0, "▁b": -9.0,
    "bca": -10.0, "▁▁": -11.0, "ccc": -12.0, "ccca": -13.0, "▁": -50.0, "a": -51.0, "b": -52.0, "c": -53.0,
}  # fmt: skip


def sentencepiece_fields(**changes: Any) -> dict[str, Any]:
    """Llama 2's layout: unknown, BOS, EOS, 256 bytes, pieces, and one user-defined token."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *PIECES, "▁▁▁▁"]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    types += [*[TokenType.NORMAL] * len(PIECES), TokenType.USER_DEFINED]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.scores": [0.0] * 259 + [*PIECES.values(), 0.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return fields | {key.replace("__", "."): value for key, value in changes.items()}


def written(directory: Path, fields: Mapping[str, Any]) -> Tokenizer:
    write_tokenizer(write_gguf(directory / "model.gguf", fields), directory)
    return Tokenizer.load(directory)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return written(tmp_path_factory.mktemp("byte_level"), byte_level_fields())


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return written(tmp_path_factory.mktemp("sentencepiece"), sentencepiece_fields())


@given(text=st.text())
def test_byte_level_round_trips(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text)) == text


@given(text=st.text())
def test_sentencepiece_round_trips(sentencepiece: Tokenizer, text: str) -> None:
    assert sentencepiece.decode(sentencepiece.encode(text)) == text


def test_byte_level_tokens(byte_level: Tokenizer) -> None:
    assert byte_level.encode("<|start|>the the<tool>") == [1, 260, 261, 2]
    assert byte_level.decode([1, 260, 261, 2]) == "the the<tool>"  # control tokens are no text, user-defined ones are
    vocabulary = byte_level.vocabulary_bytes(263)
    assert [vocabulary[i] for i in (0, 1, 2, 260, 261, 262)] == [None, None, b"<tool>", b"the", b" the", None]


def naive_sentencepiece(text: str) -> list[str]:
    """Merge the adjacent pair whose piece scores best, the leftmost of equals, until there is none."""
    symbols = list(text)
    while True:
        pairs = [(PIECES.get(a + b, -1e9), -i) for i, (a, b) in enumerate(pairwise(symbols))]
        if not pairs or (best := max(pairs))[0] == -1e9:
            return symbols
        i = -best[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@given(text=st.text(alphabet="abc ", max_size=24).filter(lambda text: "    " not in text))
def test_scores_become_the_merges_of_sentencepiece(sentencepiece: Tokenizer, text: str) -> None:
    expected = naive_sentencepiece(("▁" + text).replace(" ", "▁")) if text else []
    assert [sentencepiece.backend.id_to_token(i) for i in sentencepiece.encode(text)] == expected


def test_sentencepiece_tokens(sentencepiece: Tokenizer) -> None:
    tokens = [sentencepiece.backend.id_to_token(i) for i in sentencepiece.encode("é</s>ab    c")]
    assert tokens == ["▁", "<0xC3>", "<0xA9>", "</s>", "▁ab", "    ", "▁", "c"]
    user_defined = sentencepiece.vocab_size - 1
    assert sentencepiece.token_bytes(user_defined) == b"    "


def test_bos_and_eos(tmp_path: Path) -> None:
    plain = written(tmp_path, byte_level_fields())
    assert plain.encode("the", add_special_tokens=True) == [260]
    both = byte_level_fields(tokenizer__ggml__add_bos_token=True, tokenizer__ggml__add_eos_token=True)
    assert written(tmp_path, both).encode("the", add_special_tokens=True) == [1, 260, 0]
    assert written(tmp_path, both).encode("the") == [260]
    llama3 = byte_level_fields(tokenizer__ggml__pre="llama-bpe")  # BOS is its custom
    assert written(tmp_path, llama3).encode("the", add_special_tokens=True) == [1, 260]
    refused = llama3 | {"tokenizer.ggml.add_bos_token": False}
    assert written(tmp_path, refused).encode("the", add_special_tokens=True) == [260]
    assert written(tmp_path, sentencepiece_fields()).encode("", add_special_tokens=True)[0] == 1


def test_without_space_prefix(tmp_path: Path) -> None:
    """Gemma's way: spaces are kept where they are, at the start too."""
    tokenizer = written(tmp_path, sentencepiece_fields(tokenizer__ggml__add_space_prefix=False))
    assert [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("ab ab")] == ["ab", "▁ab"]
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"


def test_files(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    fields = byte_level_fields(tokenizer__chat_template=template, llama__context_length=2048)
    written(tmp_path, fields)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["model_max_length"] == 2048
    assert (config["bos_token"], config["eos_token"]) == ("<|start|>", "<|end|>")
    assert ChatTemplate.load(tmp_path).render([{"role": "user", "content": "é"}]) == "<|start|>é<|end|>"


def test_named_chat_templates(tmp_path: Path) -> None:
    named = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "tools"}
    written(tmp_path, byte_level_fields() | named | {"tokenizer.chat_template": "plain"})
    chat = ChatTemplate.load(tmp_path)
    assert (chat.render([]), chat.render([], tools=[{}])) == ("plain", "tools")


def test_no_chat_template(tmp_path: Path) -> None:
    written(tmp_path, byte_level_fields())
    assert not (tmp_path / "chat_template.jinja").exists()
    assert ChatTemplate.load(tmp_path).templates == {}


def test_what_is_a_control_token(tmp_path: Path) -> None:
    """EOS is, though the file calls it normal; a padding id that names a letter is not."""
    fields = byte_level_fields(tokenizer__ggml__eos_token_id=260, tokenizer__ggml__padding_token_id=3)
    tokenizer = written(tmp_path, fields)
    assert tokenizer.decode([260, 3]) == "!"
    assert tokenizer.special_token_ids == {0, 1, 260}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (byte_level_fields(tokenizer__ggml__pre="tide"), "tokenizer.ggml.pre is 'tide'.*it knows .*smollm"),
        (byte_level_fields(tokenizer__ggml__model="rwkv"), "tokenizer.ggml.model is 'rwkv'"),
        ({"general.name": "x"}, "tokenizer.ggml.model is None"),
        (byte_level_fields(tokenizer__ggml__tokens=None), "no tokenizer.ggml.tokens"),
        (byte_level_fields(tokenizer__ggml__merges=None), "no tokenizer.ggml.merges"),
        (byte_level_fields(tokenizer__ggml__merges=["t h", "x yz"]), "does not fit together: .*yz"),
        (byte_level_fields(tokenizer__ggml__merges=["th"]), "does not fit together"),
        (byte_level_fields(tokenizer__ggml__token_type=[1, 1]), "token_type has 2 entries for 263 tokens"),
        (byte_level_fields(tokenizer__ggml__tokens=["a"] * 263), "has 'a' twice, as ids 0 and 1"),
        (byte_level_fields(tokenizer__ggml__bos_token_id=263), "bos_token_id is 263, outside the vocabulary of 263"),
        (sentencepiece_fields(tokenizer__ggml__scores=[0.0]), "scores has 1 entries for 277 tokens"),
        (byte_level_fields(tokenizer__ggml__tokens=7), "tokens is of the wrong type: not an array of str"),
        (byte_level_fields(tokenizer__ggml__token_type=["a"]), "token_type is of the wrong type: not an array of int"),
        (byte_level_fields(tokenizer__ggml__eos_token_id="2"), "eos_token_id is of the wrong type: str, not int"),
        (byte_level_fields(tokenizer__ggml__eos_token_id=True), "eos_token_id is of the wrong type: bool, not int"),
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    reader = write_gguf(tmp_path / "model.gguf", fields)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(BuildError, match=message):
        write_tokenizer(reader, out)
    assert list(out.iterdir()) == []  # nothing half-written


def test_a_missing_pre_tokenizer_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        written(tmp_path, byte_level_fields(tokenizer__ggml__pre=None))
    assert "does not say how its tokenizer splits words" in caplog.text


def pieces(row: PreTokenizer, text: str) -> list[str]:
    """How a row splits a text, in the text's own spelling."""
    document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": row.to_json(), "model": {"type": "BPE"}}
    document["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    splits = tokenizers.Tokenizer.from_str(json.dumps(document)).pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in splits]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", ["It", "'s", " 12345", " o", "'", "Clock", "   ", " X", "\n\n"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", " o", "'", "Clock", "   ", " X", "\n\n"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", " o", "'Clock", "   ", " X", "\n\n"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", " o", "'Clock", "   ", " X", "\n\n"]),
        ("tekken", ["It", "'s", " ", "1", "2", "3", "4", "5", " o", "'Clock", "   ", " X", "\n\n"]),
        ("gpt-4o", ["It's", " ", "123", "45", " o", "'Clock", "   ", " X", "\n\n"]),
        ("default", ["It", "'", "s", " ", "123", "45", " o", "'", "Clock", "   ", " X", "\n\n"]),
        ("deepseek-coder", ["It", "'", "s", " ", "1", "2", "3", "4", "5", " o", "'", "Clock", "   ", " X", "\n", "\n"]),
    ],
)
def test_splits(name: str, expected: list[str]) -> None:
    assert pieces(pre_tokenizer(name), "It's 12345 o'Clock    X\n\n") == expected


@pytest.mark.parametrize("name", known_names())
def test_every_row_keeps_every_character(name: str) -> None:
    text = "It's naïve: 日本語 🎉 ½ Ω Ά ა\t\r\n\n  end "
    assert "".join(pieces(pre_tokenizer(name), text)) == text


@pytest.mark.slow
def test_smollm2(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Against the ids that llama.cpp gives, and against what transformers makes of the files."""
    write_tokenizer(gguf.GGUFReader(smollm2_gguf), tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    rows = json.loads((GOLDENS / "smollm2.json").read_text(encoding="utf-8"))
    for row in rows:
        assert tokenizer.encode(row["text"]) == row["ids"], row["text"]
        assert tokenizer.decode(row["ids"], skip_special_tokens=False) == row["text"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = ChatTemplate.load(tmp_path).render(question)
    ids = tokenizer.encode(prompt)
    assert len(ids) == 37
    assert None not in tokenizer.vocabulary_bytes(49152)[17:]

    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=False) == ids
    assert theirs.decode(ids) == prompt
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (1, 2, 8192)
