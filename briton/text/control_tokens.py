"""Control tokens that a message spells: text, and no turn of the conversation.

A chat template writes control tokens (<|im_end|>) as text, so the same letters in a user's message would end the turn
and begin another. As in transformers 5 (`apply_chat_template(..., sanitize_control_tokens=True)`), messages are marked
before they are rendered, and what is marked is encoded as text. Done here for every version: TensorRT-LLM brings
transformers 4.57, which has no such thing, and a prompt must not depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from briton.errors import InvalidRequest
from briton.text.chat_template import ChatTemplate
from briton.text.tokenizer import Tokenizer

# Private-use characters around each control token that a message spells; transformers' choice.
_START, _END = "\U000f0000", "\U000f0001"
# As Python and JSON spell them, for a template that prints a whole object.
_ANY_START, _ANY_END = (rf"(?:{mark}|\\U{ord(mark):08x}|\\udb80\\udc{ord(mark) & 0xFF:02x})" for mark in (_START, _END))
# Without one of these no mark is there; half of a pair that is spelled out is text.
_SPELLINGS = (_START, _END, f"\\U{ord(_START):08x}", f"\\udb80\\udc{ord(_START) & 0xFF:02x}")
_NOTHING = re.compile("(?!)")


class ControlTokens:
    """The control tokens of one model's chats: its special tokens, and others that its chat template names.

    Immutable. A name counts in every spelling that the tokenizer's normalizer makes that name. White space is no
    control token, whatever a tokenizer calls it.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        source = "\0".join(template.templates.values())
        added = tokenizer.backend.get_added_tokens_decoder()
        is_special = {token.content: token.special for token in added.values()}
        names = {name for name, special in is_special.items() if name.strip() and (special or name in source)}
        # <think> and </think> in an answer are the model's own words, which come back as its message.
        sections = {name for name in names if not is_special[name] and _other_end(name) in is_special}
        self._tokenizer = tokenizer
        self._any = _one_of(names)
        self._turns = _one_of(names - sections)
        self._any_ids = frozenset(i for i, token in added.items() if token.content in names)
        self._turn_ids = frozenset(i for i in self._any_ids if added[i].content not in sections)
        # Some are sought in what the normalizer made of a text, where other letters have become a name.
        self._normalizer = tokenizer.backend.normalizer if any(added[i].normalized for i in self._any_ids) else None
        self._marked = re.compile(f"{_ANY_START}({self._any.pattern}|.){_ANY_END}|[{_START}{_END}]", re.DOTALL)
        self._newline = tokenizer.encode("\n")
        size, longer = len(self._newline), tokenizer.encode("\na")
        self._adds_prefix = longer[:size] == self._newline and longer[size:] != tokenizer.encode("a")

    def mark(self, value: Any) -> Any:
        """A string, or whatever holds strings, with each control token in them marked; keys too."""
        return _mark(value, self._mark_any)

    def mark_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message with its control tokens marked; those that delimit a section of an answer may stand in one."""
        marked: dict[str, Any] = _mark(
            dict(message), self._mark_turns if message.get("role") == "assistant" else self._mark_any
        )
        return marked

    def encode(self, text: str, *, field: str) -> list[int]:
        """Token ids of what a template made of marked messages: its own control tokens, and text.

        Raises InvalidRequest naming `field` for text that is not Unicode, and for a control token of one character,
        which no tokenizer can read as text.
        """
        if not any(mark in text for mark in _SPELLINGS):  # nearly always, and no regular expression is as fast
            return self._tokenizer.encode(text, field=field)
        # Between marks stands what the template wrote; None where it took a mark from its other half.
        head, *pieces = self._marked.split(text)
        apart = {piece: self._apart(piece, field) for piece in set(pieces[::2]) if piece}
        parts: list[str] = []
        for i, piece in enumerate(pieces):
            if piece:
                parts += [piece] if i % 2 else apart[piece]
        distinct = list(dict.fromkeys(parts))
        ids_of = dict(zip(distinct, self._continued(distinct, field), strict=True))
        return [*self._tokenizer.encode(head, field=field), *(i for part in parts for i in ids_of[part])]

    def _mark_any(self, text: str) -> str:
        return self._mark_names(text, self._any, self._any_ids)

    def _mark_turns(self, text: str) -> str:
        return self._mark_names(text, self._turns, self._turn_ids)

    def _mark_names(self, text: str, names: re.Pattern[str], ids: frozenset[int]) -> str:
        if self._normalizer is None:
            return names.sub(f"{_START}\\g<0>{_END}", text)
        pieces = re.split(f"({names.pattern})", text)
        return "".join(f"{_START}{piece}{_END}" if i % 2 else self._torn(piece, ids) for i, piece in enumerate(pieces))

    def _torn(self, text: str, ids: frozenset[int]) -> str:
        """A text with no name in it; the first character of what the normalizer makes one of is marked."""
        if self._normalizer is None or not _is_unicode(text) or self._normalizer.normalize_str(text) == text:
            return text
        (encoding,) = self._tokenizer.backend.encode_batch([text], add_special_tokens=False)
        found = [where for i, where in zip(encoding.ids, encoding.offsets, strict=True) if i in ids]
        torn, done = "", 0
        for start, end in found:
            spelled = text[start:end]
            start += len(spelled) - len(spelled.lstrip() or spelled)  # a token may take the space before it
            torn += f"{self._torn(text[done:start], ids)}{_START}{text[start]}{_END}"
            done = start + 1
        return torn + (self._torn(text[done:], ids) if found else text)

    def _apart(self, name: str, field: str) -> list[str]:
        """A control token's name, or the first character of another spelling, in parts that are no control tokens."""
        parts: list[str] = []
        rest = name
        while (found := self._any.search(rest)) is not None and len(found[0]) > 1:
            cut = found.start() + 1
            parts.append(rest[:cut])
            rest = rest[cut:]
        parts.append(rest)
        for ids in self._tokenizer.encode_batch(parts, field=field):
            if not self._any_ids.isdisjoint(ids):
                raise InvalidRequest(f"{field}: the control token {name!r} cannot be read as text", field)
        return parts

    def _continued(self, texts: list[str], field: str) -> list[list[int]]:
        """Token ids of texts that go on, without the space that sentencepiece puts before the start of one."""
        alone = self._tokenizer.encode_batch(texts, field=field)
        if not self._adds_prefix:
            return alone
        # Encoded after a newline, which is taken off again unless it became one token with what follows.
        size, newline = len(self._newline), self._newline
        after = self._tokenizer.encode_batch(["\n" + text for text in texts], field=field)
        return [longer[size:] if longer[:size] == newline else ids for longer, ids in zip(after, alone, strict=True)]


def _mark(value: Any, mark: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        # Marks that a message brings along would make text of the template's own control tokens.
        return mark(value.replace(_START, "").replace(_END, ""))
    if isinstance(value, Mapping):
        return {_mark(key, mark): _mark(item, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark(item, mark) for item in value]
    return value


def _is_unicode(text: str) -> bool:
    """Whether `encode` takes it; it refuses half of a surrogate pair by name."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _one_of(names: set[str]) -> re.Pattern[str]:
    """Any of these names, the longest where several begin at one place."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first))) if names else _NOTHING


def _other_end(name: str) -> str:
    """</x> for <x>, and <x> for </x>."""
    return "<" + name[2:] if name.startswith("</") else "</" + name[1:]
