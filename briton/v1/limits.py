"""How many of what one request may have: limits of the contract, checked by the engine and by the gateway."""

MAX_N = 128
MAX_CALLER_LENGTH = 256  # characters
MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 256
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 4096  # of all of them together
MAX_LOGIT_BIAS = 1024
