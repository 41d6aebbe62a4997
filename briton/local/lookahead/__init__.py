"""Lookahead decoding: tokens guessed ahead, computed with a sequence's next step, kept where the model agrees.

Who guesses: `ngram` (what followed the longest matching suffix), `window` (the Jacobi window and n-gram pool of Fu et
al. 2024), `guided` (what a grammar forces; between that, the tokens that are usual there, `token_priors`, and words of
the prompt, `prompt_respelling`). Who decides how much is tried: `policy`, by what a step of that many tokens costs
(`costs`) and by how often such guesses came true (`acceptance`). `speculator` joins them. No model here, no cache: a
draft changes how soon a token comes, never which one.
"""
