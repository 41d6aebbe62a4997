"""TensorRT-LLM 1.2.1: what would be built, how it would be run, whether it fits; and the executor over its bindings.

`tensorrt_llm` and torch are imported where an engine is built or run, and nowhere at module level: every plan can be
made, and read, on any machine.
"""
