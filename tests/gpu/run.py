"""`make test-gpu`: executor, builder, guides, lookahead, LoRA and ranks on the real TensorRT-LLM, then a benchmark.

    python -m tests.gpu.run [--model ID_OR_DIRECTORY] [--no-benchmark]

Run with the interpreter that has tensorrt_llm. Says first what it runs on; on a machine that lacks something it ends
with one line that says what, and exit code 1. Engines are kept in the cache. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = ("openvino", "grpc", "yaml", "pytest", "pytest_asyncio", "pytest_timeout", "hypothesis", "jsonschema")
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


def main() -> int:
    """Run what there is; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help=f"default {MODEL}")
    parser.add_argument("--no-benchmark", action="store_true")
    arguments = parser.parse_args()
    missing = missing_here()
    if missing:
        print(f"test-gpu: {', and '.join(missing)}", file=sys.stderr)
        return 1
    print(describe(arguments.model), flush=True)
    tests = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "gpu"), "--gpu-model", arguments.model, "-v"]
    code = subprocess.call([*tests, "-o", "timeout=7200"], cwd=ROOT)
    if not arguments.no_benchmark:
        benchmark = [sys.executable, "benchmarks/bench_trtllm.py", "--model", arguments.model]
        code = subprocess.call(benchmark, cwd=ROOT) or code
    return code


def missing_here() -> list[str]:
    """What keeps the tests from running here, in a few words each."""
    packages = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    missing = []
    if packages:
        install = "pip install -c constraints/tensorrt-llm-1.2.1.txt -e '.[dev]'"
        missing.append(f"{sys.executable} lacks {', '.join(packages)} ({install})")
    from briton.trtllm.machine import this_machine

    return [*this_machine().missing, *missing]


def describe(model: str) -> str:
    """What the tests run on."""
    from briton.trtllm.machine import this_machine

    here = this_machine()
    gpus = ", ".join(f"{name} ({kind})" for name, kind in zip(here.gpus, here.gpu_architectures, strict=True))
    ranks = "two ranks" if len(here.gpus) > 1 else "NOT two ranks, for want of a second GPU"
    python = ".".join(str(part) for part in sys.version_info[:3])
    return (
        f"test-gpu runs on {gpus}; tensorrt_llm {here.library_version}, Python {python}; model {model}\n"
        f"test-gpu covers the builder, the executor's conformance, guides, lookahead, LoRA, {ranks}"
    )


if __name__ == "__main__":
    sys.exit(main())
