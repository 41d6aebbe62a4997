"""Writes the token ids that llama.cpp gives to texts.json, for a GGUF that a llama.cpp server has loaded.

llama-server -m MODEL.gguf --port 8081
python tests/text/goldens/make_llama_cpp_ids.py http://127.0.0.1:8081 smollm2.json

smollm2.json: SmolLM2-135M-Instruct Q4_1, llama.cpp b11549 (the xllamacpp 2026.10 wheel), 2026-11-23.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx

HERE = Path(__file__).parent


def main(url: str, name: str) -> None:
    """One request a text to /tokenize, control tokens read as such, BOS and EOS left out."""
    texts: list[str] = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
    rows = []
    for text in texts:
        reply = httpx.post(f"{url}/tokenize", json={"content": text, "add_special": False, "parse_special": True})
        rows.append(json.dumps({"text": text, "ids": reply.raise_for_status().json()["tokens"]}, ensure_ascii=True))
    (HERE / name).write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
