"""Text above the token ids: tokenizer, chat template, incremental detokenizer, stop strings.

Shared by the gateway, the engine's service layer and the builder. Knows no model, no request, no socket.
"""
