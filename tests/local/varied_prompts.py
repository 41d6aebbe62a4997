"""Prompts of many sorts, made from templates: prose, chat, code, lists, JSON, repetition, numbers, other languages."""

from __future__ import annotations

from collections.abc import Callable

_NAMES = [
    "Ada",
    "Bruno",
    "Chiara",
    "Dmitri",
    "Elif",
    "Farid",
    "Greta",
    "Hiro",
    "Ines",
    "Jonas",
    "Kofi",
    "Lena",
    "Mateo",
]
_THINGS = [
    "river",
    "engine",
    "garden",
    "violin",
    "market",
    "bridge",
    "lantern",
    "compass",
    "orchard",
    "harbour",
    "clock",
]
_VERBS = ["count", "merge", "filter", "parse", "sort", "split", "rotate"]


def _prose(i: int, name: str, thing: str) -> str:
    openings = [
        f"{name} walked slowly towards the old {thing} and",
        f"The history of the {thing} begins in the year {1500 + 7 * i}, when",
        f'"I have never seen a {thing} like this," said {name}. "It looks as if',
        f"To repair a {thing}, first make sure that you have the right tools. Then",
    ]
    return openings[i % 4]


def _chat(i: int, name: str, thing: str) -> str:
    questions = [
        f"What is a {thing} good for?",
        f"Repeat this sentence three times: {name} has a {thing}.",
        f"Correct the spelling: {name} hass boght a nue {thing} yesterdai.",
        f"Write one line about a {thing} for {name}.",
    ]
    return f"<|im_start|>user\n{questions[i % 4]}<|im_end|>\n<|im_start|>assistant\n"


def _code(i: int, name: str, thing: str) -> str:
    verb = _VERBS[i % len(_VERBS)]
    openings = [
        f"def {verb}_{thing}s({thing}s):\n    result = []\n    for {thing} in {thing}s:\n",
        f"class {name}{thing.title()}:\n    def __init__(self, {thing}):\n        self.{thing} = {thing}\n\n    def",
        f"SELECT {thing}_id, name FROM {thing}s WHERE name = '{name}' AND",
        f"for (int {thing} = 0; {thing} < {i}; {thing}++) {{\n    total += {thing};\n}}\nfor (int",
    ]
    return openings[i % 4]


def _list(i: int, name: str, thing: str) -> str:
    one, two, three = (_THINGS[(i + k) % len(_THINGS)] for k in (1, 2, 3))
    openings = [
        f"Things {name} needs:\n1. a {one}\n2. a {two}\n3. a {three}\n4.",
        f"- {one}: red\n- {two}: blue\n- {three}: green\n- {thing}:",
        f"| thing | owner |\n|---|---|\n| {one} | {name} |\n| {two} | {name} |\n|",
    ]
    return openings[i % 3]


def _json(i: int, name: str, thing: str) -> str:
    openings = [
        f'[{{"id": {i}, "name": "{name}", "likes": "{thing}"}}, {{"id": {i + 1}, "name":',
        f'{{\n  "{thing}": {{\n    "owner": "{name}",\n    "price": {i * 3}.50\n  }},\n  "',
        f'{{"event": "{thing}.created", "user": "{name.lower()}", "tags": ["a", "b"]}}\n{{"event": "',
    ]
    return openings[i % 3]


def _repetition(i: int, name: str, thing: str) -> str:
    openings = [
        f"{name} {name} {name} {name} {name}",
        f"The {thing} is old. The {thing} is red. The {thing} is",
        f"{thing}, {thing}, {thing}! " * 2,
        f"A{'b' * (i % 7 + 2)}A{'b' * (i % 7 + 2)}A",
    ]
    return openings[i % 4]


def _numbers(i: int, name: str, thing: str) -> str:
    openings = [
        ", ".join(str(i + k * (i % 9 + 1)) for k in range(6)) + ",",
        f"{name} has {i} {thing}s and buys {i + 2} more. Now there are",
        f"2024-01-{i % 27 + 1:02d} 10:00 {thing} {i}.5\n2024-01-{i % 27 + 2:02d} 10:00 {thing}",
        f"{i} + {i} = {2 * i}\n{i} + {i + 1} = {2 * i + 1}\n{i} + {i + 2} =",
    ]
    return openings[i % 4]


def _languages(i: int, name: str, thing: str) -> str:
    openings = [
        f"{name} geht jeden Morgen zum Markt und kauft",
        f"Il était une fois une petite fille nommée {name} qui",
        f"La capital de España es Madrid. {name} vive en",
        f"{name} ma {i} lat i mieszka w Krakowie. Jego",
        f"{name} 今天去市场买了{i}个苹果，",
        f"Меня зовут {name}. Мне {i} лет, и я",
        f"{name} bor i Göteborg och arbetar som",
    ]
    return openings[i % 7]


_SORTS: list[Callable[[int, str, str], str]] = [_prose, _chat, _code, _list, _json, _repetition, _numbers, _languages]


def varied_prompts(count: int) -> list[str]:
    """All different, all sorts alike often."""
    prompts = [
        _SORTS[i % len(_SORTS)](i // len(_SORTS) + 3, _NAMES[i % len(_NAMES)], _THINGS[i % len(_THINGS)])
        for i in range(count)
    ]
    assert len(set(prompts)) == count
    return prompts
