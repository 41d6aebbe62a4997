"""The local executor: scheduler, paged KV cache, sampler and model on OpenVINO, in one loop. Read it beside
TensorRT-LLM's batch manager.

    request -> Scheduler.schedule -> StepPlan -> ModelRunner.forward -> Sampler.sample -> Scheduler.update -> chunks

No torch, no text, no sockets. Only `model_runner`, `step_graphs` and `models` know OpenVINO.
"""

import sys

# `import openvino` reports itself to Google Analytics, from a process that it forks, unless this package is missing:
# then it takes its own stub. A server tells nobody that it started, and forks nothing once gRPC has threads.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
