"""The prompts of `bench_lookahead.py`: twenty of each kind, as token ids through the model's chat template.

A file of `prompts/` is one kind. Each of its prompts is a user's message; `example` names an exchange that precedes it,
`schema` the JSON schema that its answer should have, `max_tokens` how long an answer may be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from briton.text.chat_template import ChatTemplate
from briton.text.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "prompts"
KINDS = ("chat", "code", "edit", "extract", "quote")
COPYING = ("edit", "extract", "quote")  # kinds whose answers repeat much of the prompt


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready to be sent."""

    kind: str
    name: str
    token_ids: tuple[int, ...]
    max_tokens: int
    schema: str | None = None  # JSON text


def load_prompts(engine_dir: Path) -> dict[str, list[Prompt]]:
    """All prompts by kind, in the order of their files."""
    tokenizer, template = Tokenizer.load(engine_dir), ChatTemplate.load(engine_dir)
    prompts = {}
    for kind in KINDS:
        document = yaml.safe_load((FOLDER / f"{kind}.yaml").read_text(encoding="utf-8"))
        prompts[kind] = [
            Prompt(
                kind,
                entry["name"],
                tuple(tokenizer.encode(template.render(_messages(document, entry)))),
                entry.get("max_tokens") or document["max_tokens"],
                json.dumps(document["schemas"][entry["schema"]]) if "schema" in entry else None,
            )
            for entry in document["prompts"]
        ]
    return prompts


def _messages(document: dict[str, Any], entry: dict[str, Any]) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": entry["message"]}]
    if "example" in entry:
        example = document["examples"][entry["example"]]
        messages = [
            {"role": "user", "content": example["question"]},
            {"role": "assistant", "content": example["answer"]},
            *messages,
        ]
    return messages
