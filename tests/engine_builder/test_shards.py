"""An engine for several ranks holds, bit for bit, what an engine for one holds: dealt out, and nothing of it lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from briton.config.environment import Environment
from briton.errors import BuildError, ConfigError
from briton.model.engine_dir import EngineManifest, load_manifest, rank_file
from briton.model.sharding import Shard, Span, shard_model
from briton_engine_builder import build_engine, convert, find_cached_engine
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for, open_engine
from tests.engine_builder.tiny_gguf import write_tiny_gguf

Build = Callable[..., Path]  # (repo, ranks, quantization, **options of config_for) -> engine directory
REPLICATED: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 1}
UNEVEN: dict[str, Any] = {
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 500,
    "intermediate_size": 224,
}
BIASES: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(cache_dir=tmp_path / "cache")


@pytest.fixture
def build(tmp_path: Path, environment: Environment) -> Build:
    """Builds an engine for some ranks."""

    def make(repo: Path, ranks: int, quantization: str = "no_quant", **options: str) -> Path:
        config = config_for(repo, tmp_path, quantization, tensor_parallel_count=ranks, **options)
        return build_engine(config, environment, progress=False)

    return make


def indices(spans: list[tuple[Span, int]]) -> NDArray[np.int64]:
    """The numbers of several spans, each from an offset on."""
    return np.concatenate([np.arange(span.begin + offset, span.end + offset) for span, offset in spans])


def rows_of(name: str, manifest: EngineManifest, shard: Shard, num_rows: int) -> NDArray[np.int64]:
    """Which rows of the whole matrix a rank has, by the words of `briton.model.sharding`."""
    model, everything = manifest.model, Span(0, num_rows)
    query, key = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    heads, shared = shard.heads.times(model.head_dim), shard.key_value_heads.times(model.head_dim)
    return indices(
        {
            "qkv": [(heads, 0), (shared, query), (shared, query + key)],
            "gate_up": [(shard.intermediate, 0), (shard.intermediate, model.intermediate_size)],
            "embed_tokens": [(shard.vocab, 0)],
            "lm_head": [(shard.vocab, 0)],
        }.get(name, [(everything, 0)])
    )


def columns_of(name: str, manifest: EngineManifest, shard: Shard, width: int) -> NDArray[np.int64]:
    """Which columns of an array a rank has, where a matrix's columns are split; one scale a row is everybody's."""
    model = manifest.model
    full, span = {
        "o": (model.num_attention_heads * model.head_dim, shard.heads.times(model.head_dim)),
        "down": (model.intermediate_size, shard.intermediate),
    }.get(name, (1, Span(0, 1)))
    if width == 1:
        return np.array([0])
    return np.arange(span.begin * width // full, span.end * width // full)


def assert_shards_are(whole: Path, sharded: Path, ranks: int) -> None:
    """Every array of every rank is its part of the whole engine's, and all parts together are all of it."""
    manifest, arrays = load_manifest(sharded), open_engine(whole)
    covered = {name: np.zeros(array.shape, bool) for name, array in arrays.items()}
    for rank, shard in enumerate(manifest.shards):
        for name, part in open_engine(sharded, rank).items():
            matrix = next(word for word in reversed(name.split(".")) if word not in ("scale", "zero", "bias"))
            array = arrays[name]
            assert part.dtype == array.dtype
            rows = rows_of(matrix, manifest, shard, len(array))
            if array.ndim == 1:
                assert not (matrix in ("o", "down") and rank > 0), "a sum over ranks would have this bias twice"
                place: tuple[NDArray[np.int64], ...] = (rows,)
            else:
                place = np.ix_(rows, columns_of(matrix, manifest, shard, array.shape[1]))
            assert part.tobytes() == np.ascontiguousarray(array[place]).tobytes(), f"{name} of rank {rank}"
            assert part.shape == array[place].shape
            covered[name][place] = True
    assert [name for name, places in covered.items() if not places.all()] == []
    assert not (sharded / rank_file(ranks)).exists()


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, matrices are written in pieces of a few rows, which end anywhere in a rank's part."""
    return lambda: monkeypatch.setattr(convert, "_SLICE_WEIGHTS", 7 * 128)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("quantization", "precision", "shape"),
    [
        ("no_quant", "f32", {}),
        ("no_quant", "auto", REPLICATED),
        ("weights_int8", "auto", UNEVEN),
        ("weights_int4", "auto", UNEVEN),
        ("fp4_mlp_only", "auto", REPLICATED),
        ("no_quant", "f32", UNEVEN | BIASES),
        ("weights_int8", "auto", REPLICATED | BIASES | {"tie_word_embeddings": True}),
    ],
    ids=["f32", "bf16-replicated", "int8-uneven", "int4-uneven", "mixed-replicated", "biases-uneven", "biases-tied"],
)
def test_shards_make_up_the_whole(
    build: Build,
    tiny_llama: TinyLlama,
    tmp_path: Path,
    small_slices: Callable[[], None],
    ranks: int,
    quantization: str,
    precision: str,
    shape: dict[str, Any],
) -> None:
    checkpoint = tiny_llama(tmp_path, **shape)
    whole = build(checkpoint, 1, quantization, precision=precision)
    small_slices()
    assert_shards_are(whole, build(checkpoint, ranks, quantization, precision=precision), ranks)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("types", "stored"),
    [({"weight": Type.Q4_1}, "int4"), ({"weight": Type.Q4_0, "attn": Type.Q8_0}, "int4/int8")],
)
def test_blocks_of_a_gguf_file(
    build: Build, tmp_path: Path, small_slices: Callable[[], None], ranks: int, types: dict[str, Type], stored: str
) -> None:
    """Rows are reordered in the file (llama.cpp's rotary order), and a scale belongs to 32 columns."""
    write_tiny_gguf(tmp_path / "model.gguf", types, **UNEVEN)
    whole = build(tmp_path / "model.gguf", 1)
    assert load_manifest(whole).weights_dtype == stored
    small_slices()
    sharded = build(tmp_path / "model.gguf", ranks)
    assert load_manifest(sharded).weights_dtype == stored
    assert_shards_are(whole, sharded, ranks)


def test_biases_of_sums_are_rank_0s(build: Build, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    directory = build(tiny_llama(tmp_path, **BIASES), 2)
    biases = [{name for name in open_engine(directory, rank) if name.endswith(".bias")} for rank in range(2)]
    layers = [f"layers.{i}." for i in range(2)]
    assert biases[0] == {f"{layer}{name}.bias" for layer in layers for name in ("qkv", "o", "gate_up", "down")}
    assert biases[1] == {f"{layer}{name}.bias" for layer in layers for name in ("qkv", "gate_up")}


def test_each_rank_has_about_its_share(build: Build, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path)
    whole = (build(checkpoint, 1) / rank_file(0)).stat().st_size
    sharded = build(checkpoint, 2)
    for rank in range(2):
        assert 0.49 < (sharded / rank_file(rank)).stat().st_size / whole < 0.52


def test_the_manifest_records_it(build: Build, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    directory = build(tiny_llama(tmp_path), 3)
    manifest = load_manifest(directory)
    assert manifest.tensor_parallel_size == 3
    assert manifest.shards == shard_model(manifest.model, 3)
    for rank in range(3):
        assert manifest.files[rank_file(rank)]["size"] == (directory / rank_file(rank)).stat().st_size


def test_another_number_of_ranks_is_another_engine(
    build: Build, tiny_llama: TinyLlama, tmp_path: Path, environment: Environment
) -> None:
    checkpoint = tiny_llama(tmp_path)
    one = build(checkpoint, 1)
    assert find_cached_engine(config_for(checkpoint, tmp_path, tensor_parallel_count=2), environment) is None
    two = build(checkpoint, 2)
    assert one != two
    assert find_cached_engine(config_for(checkpoint, tmp_path), environment) == one


def test_a_rank_needs_its_own_weights_alone(build: Build, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    """Hosts need not have the files of other hosts' ranks."""
    directory = build(tiny_llama(tmp_path), 3)
    complete = load_manifest(directory)
    (directory / rank_file(0)).unlink()
    (directory / rank_file(2)).write_bytes(b"cut off")
    assert load_manifest(directory, 1) == complete
    for rank in (None, 0, 2):
        with pytest.raises(BuildError, match=r"rank[02]\.safetensors is missing or truncated"):
            load_manifest(directory, rank)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(BuildError, match=r"tokenizer\.json is missing"):
        load_manifest(directory, 1)


@pytest.mark.parametrize(
    ("quantization", "shape", "part"),
    [
        ("weights_int4", {"num_key_value_heads": 4, "head_dim": 16}, r"layers\.0\.o: columns 32 to 48"),
        ("fp4_mlp_only", {"intermediate_size": 64}, r"layers\.0\.down: columns 0 to 22"),
    ],
)
def test_groups_that_ranks_cannot_share(
    build: Build,
    tiny_llama: TinyLlama,
    tmp_path: Path,
    environment: Environment,
    quantization: str,
    shape: dict[str, Any],
    part: str,
) -> None:
    checkpoint = tiny_llama(tmp_path, **shape)
    with pytest.raises(BuildError, match=f"{part} of one rank do not end with a group of .* another number of ranks"):
        build(checkpoint, 3, quantization)
    assert not list((environment.cache_dir / "engines").glob("*/engine.json"))
    build(checkpoint, 2, quantization)


def test_more_ranks_than_heads(build: Build, tiny_llama: TinyLlama, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 ranks is too much for a model with 4 attention heads"):
        build(tiny_llama(tmp_path), 5)
