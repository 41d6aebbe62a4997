"""Prompt lookup as openvino-genai and llama.cpp do it: each with over itself without, on the same prompts in turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comparison import Rate
from peer_process import PeerProcess, start_peer
from prompt_set import Prompt
from served_model import Limits


class Setting(NamedTuple):
    """Of a peer's drafts: tokens a step (0: no drafts), and the longest n-gram looked up."""

    draft_tokens: int
    max_ngram: int

    def __str__(self) -> str:
        return f"{self.draft_tokens} drafts"


OFF = Setting(0, 3)
SETTINGS = {  # its documentation's, and as many drafts as our n-gram mode may make
    "genai_lookup": (Setting(5, 3), Setting(15, 3)),
    "llamacpp_lookup": (Setting(10, 2), Setting(15, 2)),
}
BATCHED = ("genai_lookup",)  # the others answer one request at a time


def compare_peers(limits: Limits, gguf: Path, prompts: dict[str, list[Prompt]]) -> dict[str, dict[str, float]]:
    """Ratios by "peer, setting" and workload, printed as well; nothing of a peer that is not installed."""
    ratios: dict[str, dict[str, float]] = {}
    for name, settings in SETTINGS.items():
        peer = start_peer(name, limits.peer_arguments(name, gguf))
        if peer is None:
            continue
        try:
            print(f"\n{name} {peer.version}: output tokens/s with over without, end to end, tokens a step")
            for kind, of in prompts.items():
                _note(ratios, peer, settings, f"{kind}_b1", [[prompt] for prompt in of], batched=False)
            if name in BATCHED:
                mixed = [prompt for column in zip(*prompts.values(), strict=True) for prompt in column]
                _note(ratios, peer, settings, f"mixed_b{limits.batch}", [mixed, mixed], batched=True)
        finally:
            peer.close()
    return ratios


def _note(
    ratios: dict[str, dict[str, float]],
    peer: PeerProcess,
    settings: Sequence[Setting],
    workload: str,
    batches: list[list[Prompt]],
    *,
    batched: bool,
) -> None:
    """Every setting answers each batch of prompts, by turns first."""
    of = (OFF, *settings)
    _ask(peer, batches[0][:1], OFF)  # warm-up
    decode, end_to_end = {setting: Rate() for setting in of}, {setting: Rate() for setting in of}
    steps = dict.fromkeys(of, 0)
    for i, batch in enumerate(batches):
        for setting in (*of[i % len(of) :], *of[: i % len(of)]):
            answer = _ask(peer, batch, setting)
            decode[setting].add(answer["decode_tokens"], answer["wall_s"] - answer["first_tokens_s"])
            end_to_end[setting].add(answer["output_tokens"], answer["wall_s"])
            steps[setting] += answer["num_steps"]
    line = f"{workload:12}"
    for setting in settings:
        total = end_to_end[setting].per_second / end_to_end[OFF].per_second
        ratio = total if batched else decode[setting].per_second / decode[OFF].per_second
        ratios.setdefault(f"{peer.name}, {setting}", {})[workload] = round(ratio, 3)
        per_step = end_to_end[setting].tokens / steps[setting]
        line += f" | {setting}: {ratio:6.3f} {total:6.3f}" + ("" if batched else f" {per_step:6.2f}")
    print(line, flush=True)


def _ask(peer: PeerProcess, prompts: Sequence[Prompt], setting: Setting) -> dict[str, Any]:
    return peer.ask(
        prompts=[prompt.token_ids for prompt in prompts],
        max_tokens=[prompt.max_tokens for prompt in prompts],
        **setting._asdict(),
    )
