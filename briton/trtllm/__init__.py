"""TensorRT-LLM 1.2.1: a config's plan, and `briton.engine.executor.Executor` over `tensorrt_llm.bindings.executor`.

    config, shapes -> plan.plan_of -> what is built, how it is run -> library_objects.make
    request -> translate -> enqueue_request -> (batch manager, on its own thread, calls LogitsProcessor) ->
    await_responses -> OpenRequest.take -> chunks

Written against release 1.2.1's public code and checked against a table of its API (`tests/trtllm`). Not yet run on a
GPU. The library and torch are imported in one place, `library.load_library`, and only when asked for.
"""
