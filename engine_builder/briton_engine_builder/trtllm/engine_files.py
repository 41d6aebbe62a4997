"""What the library saved: checked against the plan, and put where an executor looks for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from briton.errors import BuildError
from briton.trtllm.plan import TrtllmPlan
from briton_engine_builder.hf_checkpoint import CONFIG, read_json

_ENGINE_FILE = re.compile(rf"{re.escape(CONFIG)}|rank\d+\.engine")


@dataclass(frozen=True, slots=True)
class SavedEngine:
    """What of an engine's config.json is not in the plan."""

    vocab_size_padded: int  # width of its logits


def take_engine(output: Path, directory: Path, plan: TrtllmPlan, library_version: str) -> SavedEngine:
    """Move config.json and the ranks' engines from `output` into `directory`; the tokenizer that the library saves
    beside them is left. Raises BuildError for an engine that is not the one that was planned."""
    saved = _check(output, plan, library_version)
    for file in sorted(output.iterdir()):
        if _ENGINE_FILE.fullmatch(file.name):
            file.rename(directory / file.name)
    return saved


def _check(output: Path, plan: TrtllmPlan, library_version: str) -> SavedEngine:
    parallelism, features = plan.build.parallelism, plan.features
    for rank in range(parallelism.world_size):
        if not (output / f"rank{rank}.engine").is_file():
            raise BuildError(f"TensorRT-LLM saved no rank{rank}.engine")
    config = read_json(output / CONFIG)
    try:
        build, mapping = config["build_config"], config["pretrained_config"]["mapping"]
        found = {
            "version": str(config["version"]).partition("+")[0],
            "tp_size": mapping["tp_size"],
            "pp_size": mapping["pp_size"],
            "max_draft_len": build["max_draft_len"],
            "use_paged_context_fmha": build["plugin_config"]["use_paged_context_fmha"],
        }
        wanted: dict[str, Any] = {
            "version": library_version.partition("+")[0],
            "tp_size": parallelism.tensor,
            "pp_size": parallelism.pipeline,
            "max_draft_len": features.max_draft_len,
            "use_paged_context_fmha": features.use_paged_context_fmha,
        }
        for name in ("max_seq_len", "max_batch_size", "max_num_tokens"):
            wanted[name] = getattr(features, name)
            found[name] = min(build[name], wanted[name])  # more is fine
        vocab_size = int(config["pretrained_config"]["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise BuildError(f"TensorRT-LLM saved a {CONFIG} that has other keys than expected: {error!r}") from None
    for name, value in wanted.items():
        if found[name] != value:
            raise BuildError(f"TensorRT-LLM built an engine with {name} {found[name]}; the plan has {value}")
    return SavedEngine(vocab_size_padded=-(-vocab_size // parallelism.tensor) * parallelism.tensor)
