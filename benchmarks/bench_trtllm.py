"""`briton serve` on TensorRT-LLM beside the library's own `trtllm-serve`, on one engine and in one run, taking turns.

    python benchmarks/bench_trtllm.py [--model ID_OR_DIRECTORY] [--rounds N]

Both hold the same engine on the same GPU, each with its own share of the memory; while one is measured the other waits.
N clients send a prompt of 512 tokens each at the same time and read 128 streamed tokens each, for N = 1, 16 and 64. A
ratio above 1 says that ours is faster. The last line is one JSON document. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import yaml
from chat_workload import ChatWorkload
from serving import Serving, free_ports
from stream_client import Stream, chat

from briton.config.environment import load_environment
from briton.config.loader import load_config
from briton.trtllm.machine import this_machine
from briton_engine_builder import build_engine

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
CONCURRENCIES = (1, 16, 64)
PROMPT_TOKENS, OUTPUT_TOKENS, ROUNDS = 512, 128, 5
MEMORY_FRACTION = 0.4  # of what is free when a server starts: ours is first
PEER_START_S = 600.0


class TrtllmServe:
    """The library's server as a process, on the engine of ours. A context."""

    def __init__(self, engine_dir: Path) -> None:
        self.host = "127.0.0.1"
        (self.port,) = free_ports(1)
        options = [
            "--backend",
            "tensorrt",
            "--tokenizer",
            str(engine_dir),
            "--host",
            self.host,
            "--port",
            str(self.port),
        ]
        options += ["--kv_cache_free_gpu_memory_fraction", str(MEMORY_FRACTION)]
        self._process = subprocess.Popen(
            ["trtllm-serve", "serve", str(engine_dir), *options], stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> TrtllmServe:
        deadline = time.monotonic() + PEER_START_S
        while not self._is_healthy():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"trtllm-serve is not ready: exit code {code}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@dataclass
class Figures:
    """What the rounds of one server at one concurrency gave."""

    rates: list[float] = field(default_factory=list)  # output tokens a second
    streams: list[Stream] = field(default_factory=list)

    def first_token_ms(self, percent: float) -> float:
        """A percentile over all streams."""
        return 1e3 * float(np.percentile([stream.time_to_first_token for stream in self.streams], percent))


def main() -> None:
    """Build, serve both, measure, print a table and the JSON document."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing started here is left running
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    here = this_machine()
    missing = [*here.missing, *([] if shutil.which("trtllm-serve") else ["trtllm-serve is not on the path"])]
    if missing:
        sys.exit(f"bench_trtllm: {', and '.join(missing)}")
    environment = load_environment()
    config_path = write_config(environment.cache_dir / "benchmarks", arguments.model)
    config = load_config(config_path)
    engine_dir = build_engine(config, environment)
    workload = ChatWorkload(engine_dir, config.served_model_name)
    print(f"{len(here.gpus)} x {here.gpus[0]}, tensorrt_llm {here.library_version}, {arguments.model}", flush=True)
    with Serving(config_path) as ours, TrtllmServe(engine_dir) as peer:
        figures = measure(workload, {"briton": ours, "trtllm-serve": peer}, arguments.rounds)
    result: dict[str, float] = {}
    for number, by_server in figures.items():
        for name, each in by_server.items():
            print(
                f"{number:3} at once, {name:12} {median(each.rates):8.1f} output tokens/s, "
                f"first token p50 {each.first_token_ms(50):.1f} ms, p99 {each.first_token_ms(99):.1f} ms"
            )
        mine, other = by_server["briton"], by_server["trtllm-serve"]
        result[f"throughput_c{number}_vs_trtllm_serve"] = round(median(mine.rates) / median(other.rates), 3)
        result[f"ttft_p50_c{number}_vs_trtllm_serve"] = round(other.first_token_ms(50) / mine.first_token_ms(50), 3)
    print(json.dumps(result))


def measure(
    workload: ChatWorkload, servers: dict[str, Serving | TrtllmServe], rounds: int
) -> dict[int, dict[str, Figures]]:
    """In a round, each concurrency is run on both servers, by turns first. Round 0 warms up."""
    figures = {number: {name: Figures() for name in servers} for number in CONCURRENCIES}
    for number in range(rounds + 1):
        for concurrency, by_server in figures.items():
            output_tokens = OUTPUT_TOKENS if number else 8
            prompts = [workload.prompt(PROMPT_TOKENS, [number, concurrency, i]) for i in range(concurrency)]
            bodies = [workload.body(text, output_tokens) for text, _ in prompts]
            for name in sorted(servers, reverse=bool(number % 2)):
                answers = chat(servers[name].host, servers[name].port, bodies)
                if any(stream.output_tokens != output_tokens for stream in answers.streams):
                    raise RuntimeError(f"{name} did not generate {output_tokens} tokens for each request")
                if number:
                    by_server[name].rates.append(answers.output_rate)
                    by_server[name].streams += answers.streams
    return figures


def write_config(folder: Path, model: str) -> Path:
    """A config of the model for TensorRT-LLM."""
    source = "LOCAL" if Path(model).is_dir() else "HF"
    content = {
        "model_name": "benchmark",
        "model_metadata": {"tags": ["openai-compatible"]},
        "trt_llm": {
            "build": {
                "checkpoint_repository": {"source": source, "repo": model},
                "max_seq_len": 2048,
                "max_batch_size": max(CONCURRENCIES),
                "max_num_tokens": 8192,
            },
            "runtime": {"kv_cache_free_gpu_mem_fraction": MEMORY_FRACTION},
        },
        "briton": {"executor": "trtllm", "logging": {"level": "warning"}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trtllm.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
