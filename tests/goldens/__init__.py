"""Reference logits and greedy tokens of transformers in float32, and what is needed to compare with them."""
