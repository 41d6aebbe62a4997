"""Chat requests with prompts of a given length, as JSON bodies for HTTP and as token ids for the executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from briton.text.chat_template import ChatTemplate
from briton.text.tokenizer import Tokenizer

_WORDS = "river stone light paper music garden winter window market bridge copper travel island summer"


class ChatWorkload:
    """Random questions in words, different in each run, so that nothing but the template's head can be reused."""

    def __init__(self, engine_dir: Path, model_name: str) -> None:
        self._tokenizer = Tokenizer.load(engine_dir)
        self._template = ChatTemplate.load(engine_dir)
        self._model_name = model_name

    def prompt(self, num_tokens: int, seed: list[int]) -> tuple[str, list[int]]:
        """A message, and the ids of its whole prompt: `num_tokens` of them, or up to 2 more."""
        generator = np.random.default_rng(seed)
        text = "Tell a story with these words:"
        while len(ids := self._encode(text)) < num_tokens:
            text += f" {generator.choice(_WORDS.split())}"
        return text, ids

    def body(self, text: str, output_tokens: int) -> dict[str, Any]:
        """The request's JSON: greedy, exactly `output_tokens` long."""
        return {
            "model": self._model_name,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": output_tokens,
            "ignore_eos": True,
        }

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(self._template.render([{"role": "user", "content": text}]))
