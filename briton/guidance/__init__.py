"""Constrained decoding: JSON schema, regex and choice -> Guide -> token bitmask. No model, no HTTP."""
