"""The gateway: OpenAI's HTTP API in front of an engine's gRPC service.

It owns HTTP, chat templates, the tokenizer, stop strings and OpenAI's JSON. It knows no block, no batch and no model.
"""
