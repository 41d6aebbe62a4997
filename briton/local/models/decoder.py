"""The Llama-family decoder (Llama, Mistral, SmolLM, Falcon3) as an OpenVINO graph around paged attention.

The forms matter: RMSNorm, rotary embedding, the fused query/key/value and gate/up matrices are written as the CPU
plugin recognises them. One call is one engine step; tokens of all sequences are concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset14 as ops
from numpy.typing import NDArray
from openvino.op import _PagedAttentionExtension as PagedAttention

from briton.local.models.all_reduce import AllReduce, SumOverRanks
from briton.local.models.rope import rope_tables
from briton.local.models.weights import Weights
from briton.model.engine_dir import ModelConfig
from briton.model.sharding import Shard


def build_decoder(
    model: ModelConfig, weights: Weights, num_positions: int, shard: Shard, sum_over_ranks: SumOverRanks | None
) -> ov.Model:
    """The graph of one rank's `shard` of `model`, for positions 0..num_positions-1. Inputs are named as
    `briton.local.plan.StepInputs`, output is `logits` [rows, the shard's vocab].

    `sum_over_ranks` adds up what ranks computed: None where one rank has all.

    The key_cache.L and value_cache.L inputs have no type or shape: the plugin picks both, to be read off the
    compiled model.
    """
    return _Decoder(model, weights, shard, sum_over_ranks).build(num_positions)


class _Decoder:
    def __init__(self, model: ModelConfig, weights: Weights, shard: Shard, sum_over_ranks: SumOverRanks | None) -> None:
        self._model = model
        self._weights = weights
        self._shard = shard
        self._sum_over_ranks = sum_over_ranks
        self._params: list[ov.op.Parameter] = []

    def build(self, num_positions: int) -> ov.Model:
        m, w = self._model, self._weights
        token_ids = self._input("token_ids", [-1], np.int64)
        position_ids = self._input("position_ids", [-1], np.int64)
        self._batch = [
            self._input(name, [-1], np.int32).output(0)
            for name in ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
        ]
        self._max_context_len = self._input("max_context_len", [], np.int32).output(0)
        self._qq_bias = [
            self._input("qq_bias", [-1], np.uint8).output(0),
            self._input("qq_bias_begins", [-1], np.int32).output(0),
        ]
        sampled_rows = self._input("sampled_rows", [-1], np.int64)

        self._cos, self._sin = (
            ops.gather(ops.constant(table), position_ids, _ints(0)) for table in rope_tables(m, num_positions)
        )  # [tokens, 1, 1, head_dim]
        x = self._embedding(token_ids)  # [tokens, hidden]
        for layer in range(m.num_hidden_layers):
            x = ops.add(x, self._attention(layer, self._norm(x, f"layers.{layer}.input_norm")))
            x = ops.add(x, self._mlp(layer, self._norm(x, f"layers.{layer}.post_attention_norm")))
        x = self._norm(ops.gather(x, sampled_rows, _ints(0)), "norm")  # [rows, hidden]: only these need logits
        logits = self._linear(x, "lm_head" if "lm_head" in w else "embed_tokens")
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model([ops.result(logits)], self._params, m.architecture)

    def _embedding(self, token_ids: ov.Node) -> ov.Node:
        embedding = self._weights.matrix("embed_tokens")
        if self._sum_over_ranks is None:
            return ops.gather(embedding, token_ids, _ints(0))
        rows = ops.subtract(token_ids, _ints(self._shard.vocab.begin))
        own = ops.clamp(rows, 0, self._shard.vocab.size - 1)
        is_own = ops.unsqueeze(ops.convert(ops.equal(rows, own), np.float32), _ints(1))  # [tokens, 1]
        return self._summed(ops.multiply(ops.gather(embedding, own, _ints(0)), is_own))

    def _summed(self, part: ov.Node) -> ov.Node:
        return part if self._sum_over_ranks is None else AllReduce(part.output(0), self._sum_over_ranks)

    def _attention(self, layer: int, x: ov.Node) -> ov.Node:
        heads, kv_heads, dim = self._shard.heads.size, self._shard.key_value_heads.size, self._model.head_dim
        qkv = self._linear(x, f"layers.{layer}.qkv")
        sizes = np.array([heads * dim, kv_heads * dim, kv_heads * dim], np.int64)
        query, key, value = ops.variadic_split(qkv, _ints(1), ops.constant(sizes)).outputs()
        caches = [
            self._input(f"{kind}_cache.{layer}", [-1, -1, -1, -1], ov.Type.dynamic).output(0)
            for kind in ("key", "value")
        ]
        attended = self._paged_attention(self._rotary(query, heads), self._rotary(key, kv_heads), value, caches)
        return self._summed(self._linear(attended, f"layers.{layer}.o"))

    def _mlp(self, layer: int, x: ov.Node) -> ov.Node:
        gate, up = ops.split(self._linear(x, f"layers.{layer}.gate_up"), _ints(1), 2).outputs()
        return self._summed(self._linear(ops.multiply(ops.swish(gate), up), f"layers.{layer}.down"))

    def _linear(self, x: ov.Node | ov.Output, name: str) -> ov.Node:
        product = ops.matmul(x, self._weights.matrix(name), False, True)
        bias = f"{name}.bias"
        return (
            ops.add(product, ops.constant(self._weights.vector(bias).reshape(1, -1)))
            if bias in self._weights
            else product
        )

    def _norm(self, x: ov.Node, name: str) -> ov.Node:
        """x / sqrt(mean(x * x) + eps) * w, in the one form that becomes an RMS node."""
        mean = ops.reduce_mean(ops.multiply(x, x), _ints([-1]), True)
        inverse = ops.divide(
            ops.constant(np.float32(1)), ops.sqrt(ops.add(mean, ops.constant(np.float32(self._model.rms_norm_eps))))
        )
        return ops.multiply(ops.multiply(x, inverse), ops.constant(self._weights.vector(name).reshape(1, -1)))

    def _rotary(self, x: ov.Output, heads: int) -> ov.Output:
        """Rank 4 with Slice: the one form that becomes a RoPE node."""
        dim = self._model.head_dim
        x4 = ops.reshape(x, _ints([-1, heads, 1, dim]), False)
        first = ops.slice(x4, _ints([0]), _ints([dim // 2]), _ints([1]), _ints([3]))
        second = ops.slice(x4, _ints([dim // 2]), _ints([2**31 - 1]), _ints([1]), _ints([3]))
        turned = ops.concat([ops.multiply(second, ops.constant(np.full((1, 1, 1, 1), -1, np.float32))), first], -1)
        rotated = ops.add(ops.multiply(x4, self._cos), ops.multiply(turned, self._sin))
        return ops.reshape(rotated, _ints([-1, heads * dim]), False).output(0)

    def _paged_attention(
        self, query: ov.Output, key: ov.Output, value: ov.Output, caches: list[ov.Output]
    ) -> ov.Output:
        """The op's 28 inputs, those that are not used at their neutral value. The name is private:
        tests/local/test_goldens.py and tests/local/test_model_runner.py say what is relied on."""
        m = self._model
        off, no_ints, no_floats = _int32(0), _int32([]), ops.constant(np.zeros(0, np.float32)).output(0)
        scale = ops.constant(np.float32(m.head_dim**-0.5)).output(0)
        no_sinks = ops.constant(np.zeros((0, 0, 0, 0), np.float32)).output(0)
        node = PagedAttention(
            [
                *(query, key, value, *caches, *self._batch, scale),
                *(off, no_floats, self._max_context_len),  # sliding_window, alibi_slopes
                *(no_ints, no_ints, no_ints, no_floats, no_floats, off, off),  # rotation and xattention
                *(no_sinks, off, no_ints, no_ints, no_ints, no_ints),  # sinks, adaptive_rkv, token_type_ids
                *self._qq_bias,
            ]
        )
        info = node.get_rt_info()
        info["num_k_heads"] = info["num_v_heads"] = self._shard.key_value_heads.size
        info["k_head_size"] = info["v_head_size"] = m.head_dim
        return node.output(0)

    def _input(self, name: str, shape: Sequence[int], dtype: Any) -> ov.op.Parameter:
        node = ops.parameter(list(shape), dtype, name=name)
        node.output(0).get_tensor().set_names({name})
        self._params.append(node)
        return node


def _ints(values: int | list[int]) -> ov.Node:
    return ops.constant(np.array(values, np.int64))


def _int32(values: int | list[int]) -> ov.Output:
    array: NDArray[np.int32] = np.array(values, np.int32)
    return ops.constant(array).output(0)
