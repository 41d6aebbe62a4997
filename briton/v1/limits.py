"""How many of what one request may have: the limits of the contract, which an engine checks and a gateway may check before."""

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 256
MAX_BAD_WORDS = 256
MAX_LOGIT_BIAS = 1024
