"""The local executor: scheduler, paged KV cache, sampler and model on OpenVINO, in one loop. Read it beside
TensorRT-LLM's batch manager.

    request -> Scheduler.schedule -> StepPlan -> ModelRunner.forward -> Sampler.sample -> Scheduler.update -> chunks

No torch, no text, no sockets. Only `model_runner` and `models` know OpenVINO.
"""
