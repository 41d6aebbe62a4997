"""What every rank of tests/gpu/test_ranks.py runs: rank 0 answers and prints JSON, the others follow.

mpirun -n 2 python -m tests.gpu.rank_program CONFIG ENGINE_DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from briton.config.loader import load_config
from briton.text.tokenizer import Tokenizer
from briton.trtllm.library import load_library
from briton.trtllm.loader import create_trtllm_executor, follow_trtllm_executor
from tests.request_runner import RequestRunner
from tests.scripted_guide import ScriptedGuide


def main() -> None:
    """Rank 0: a few requests at once, one of them with a guide."""
    config, directory = load_config(Path(sys.argv[1])), Path(sys.argv[2])
    library = load_library()
    if library.rank != 0:
        follow_trtllm_executor(config, directory, lambda: None, library)
        return
    executor = create_trtllm_executor(config, directory, library=library)
    try:
        runner, tokenizer = RequestRunner(executor), Tokenizer.load(directory)
        prompt = tokenizer.encode("The capital of France is")
        free = [runner.submit(prompt, max_tokens=8) for _ in range(8)]
        guide = ScriptedGuide([{100}, {101}, {102}], executor.info.stop_token_ids)
        guided = runner.submit(prompt, guide=guide, max_tokens=8)
        runner.finish()
        answers = {
            "ranks": executor.info.tensor_parallel_size,
            "free": [list(result.tokens()) for result in free],
            "guided": list(guided.tokens()),
        }
        print("ANSWERS " + json.dumps(answers), flush=True)
    finally:
        executor.shutdown()


if __name__ == "__main__":
    main()
