"""The TensorRT-LLM executor: `briton.executor.Executor` over `tensorrt_llm.bindings.executor` 1.2.1.

    request -> translate -> enqueue_request -> (batch manager, on its own thread, calls LogitsProcessor) ->
    await_responses -> OpenRequest.take -> chunks

Written against release 1.2.1's public code and checked against a table of its API (`tests/trtllm`). Not yet run on a
GPU. The library, torch and MPI are imported in one place, `library.load_library`, and only when asked for.
"""
