"""A config.yaml to begin with: `briton init MODEL`."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError

from briton.config.checkpoint import CheckpointRepository
from briton.config.enums import CheckpointSource
from briton.config.object_url import SCHEMES
from briton.errors import BritonError, ConfigError
from briton_engine_builder.hf_config import SUPPORTED_ARCHITECTURES
from briton_engine_builder.sources.local import fetch_local
from briton_engine_builder.sources.shapes import read_shapes_at

_HUB = ("huggingface.co", "hf.co")
_HUB_PATH = re.compile(r"/([^/]+/[^/]+)(?:/tree/([^/]+))?/?")
_GGUF_SUFFIX = re.compile(r"([.-](I?Q\d\w*|B?F16|F32))?\.gguf$", re.IGNORECASE)  # how it is stored is no name
_REVISIONS = {
    CheckpointSource.HF: "main # a branch, tag or commit; the default branch where it is left out",
    CheckpointSource.PYPI: "1.0.0 # a version; the newest where it is left out",
}
_TEMPLATE = """\
# {about}
# Every value may be changed: `briton config check FILE` says what a config serves, `briton config explain FILE` what it
# becomes in detail, and whether that fits into memory.
model_metadata:
  tags:
    - openai-compatible
trt_llm:
  build:
    base_model: decoder
    checkpoint_repository:
      source: {source}
      repo: {repo}
{revision}    quantization_type: {quantization}
    max_batch_size: {batch} # sequences that are computed in one step
    # max_seq_len: 4096 # tokens of prompt and answer together; the checkpoint's own limit where it is left out
    # tensor_parallel_count: 2 # ranks that share each layer, on one machine or several
  runtime:
    served_model_name: {name} # what requests call it
    enable_chunked_context: true # a long prompt does not hold up the other requests
    # request_default_max_tokens: 1024 # of a request that says none; up to max_seq_len where it is left out
briton:
  host: 127.0.0.1 # there is no TLS: a proxy belongs in front of anything wider
  http_port: 8000
  # executor: local # or trtllm; where it is left out, what runs on this machine
  # max_queue_size: 256 # requests that may wait; the next one gets 429
  # cache_dir: cache # checkpoints and engines, beside this file; ~/.cache/briton where it is left out
"""


@dataclass(frozen=True, slots=True)
class StarterConfig:
    """What is written, and what is said of it."""

    text: str
    checkpoint: CheckpointRepository
    notes: tuple[str, ...] = ()


def starter_config(model: str, folder: Path, *, has_gpu: bool) -> StarterConfig:
    """A config for `model`, to be written into `folder`; `has_gpu`: TensorRT-LLM runs here.

    `model` is a path (a directory or a .gguf file), ORG/NAME[@REVISION] or a URL of the Hugging Face hub,
    NAME[==VERSION] of a Python package, or the URL of an object store or a tar.gz. No network is used. Raises
    ConfigError for what is none of these, or a path without a model.
    """
    source, repo, revision = _parse(model)
    about, notes, is_gguf = "", list[str](), False
    if source is CheckpointSource.LOCAL:
        path = _find_model(repo)
        repo, is_gguf = _written_path(path, folder), path.suffix == ".gguf"
        about, notes = _describe(path)
    checkpoint = _checkpoint(model, source, repo, revision)
    name = _GGUF_SUFFIX.sub("", checkpoint.name)
    text = _TEMPLATE.format(
        about=f"{name}{about}. Written by `briton init`.",
        source=source,
        repo=_scalar(repo),  # of a URL all: a config is where its signature belongs
        revision=_revision(source, revision),
        quantization=_quantization(is_gguf, has_gpu),
        batch=64 if has_gpu else 16,
        name=_scalar(name),
    )
    return StarterConfig(text, checkpoint, tuple(notes))


def _parse(model: str) -> tuple[CheckpointSource, str, str | None]:
    """(source, repo, revision) that a user means."""
    for source, scheme in SCHEMES.items():
        if model.startswith(f"{scheme}://"):
            return source, model, None
    if model.startswith(("http://", "https://")):
        url = urlsplit(model)
        if url.hostname in _HUB and (match := _HUB_PATH.fullmatch(url.path)):
            return CheckpointSource.HF, match[1], match[2]
        return CheckpointSource.REMOTE_URL, model, None
    path = os.path.expanduser(model)
    if os.path.exists(path) or model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf"):
        return CheckpointSource.LOCAL, path, None
    if "/" in model:
        repo, _, revision = model.partition("@")
        return CheckpointSource.HF, repo, revision or None
    package, _, version = model.partition("==")
    return CheckpointSource.PYPI, package, version or None


def _find_model(repo: str) -> Path:
    try:
        return fetch_local(repo).path
    except (BritonError, OSError) as error:
        raise ConfigError(str(error).removeprefix("checkpoint_repository.repo "), "MODEL") from None


def _checkpoint(model: str, source: CheckpointSource, repo: str, revision: str | None) -> CheckpointRepository:
    try:
        return CheckpointRepository.model_validate({"source": source, "repo": repo, "revision": revision})
    except ValidationError as error:
        told = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ConfigError(f"this is no model of source {source}: {told}", "MODEL") from None


def _describe(path: Path) -> tuple[str, list[str]]:
    """What the files say of themselves, for the first line; and what is to be said of them."""
    try:
        shapes = read_shapes_at(path)
    except BritonError as error:  # for whoever builds to say in full
        return "", [str(error)]
    about = (
        f": {shapes.architecture}, {shapes.num_parameters / 1e9:.2g} billion parameters, "
        f"up to {shapes.max_position_embeddings} tokens"
    )
    if shapes.architecture in SUPPORTED_ARCHITECTURES:
        return about, []
    return about, [f"{shapes.architecture} is not supported by the local executor: it takes TensorRT-LLM and a GPU"]


def _written_path(path: Path, folder: Path) -> str:
    """Relative to the config where it lies below it, so that both can be moved together."""
    path, folder = path.absolute(), folder.absolute()
    return f"./{path.relative_to(folder)}" if folder in path.parents else str(path)


def _revision(source: CheckpointSource, revision: str | None) -> str:
    if revision is not None:
        return f"      revision: {_scalar(revision)}\n"
    return f"      # revision: {_REVISIONS[source]}\n" if source in _REVISIONS else ""


def _quantization(is_gguf: bool, has_gpu: bool) -> str:
    if is_gguf:
        return "no_quant # keeps the 4 and 8 bit blocks of the file; weights_int8 is faster for small models"
    if has_gpu:
        return "no_quant # or fp8, fp8_kv on H100, L4 and newer; fp4 on B200 and newer; weights_int8, weights_int4"
    return "weights_int8 # or no_quant: as the checkpoint is, and twice the memory; weights_int4: half of it"


def _scalar(text: str) -> str:
    """YAML for a string: in quotes where it would be something else without."""
    is_plain = re.fullmatch(r"[A-Za-z0-9_./~][\w./+-]*", text, re.ASCII)
    return text if is_plain and yaml.safe_load(text) == text else json.dumps(text, ensure_ascii=False)
