"""Where checkpoints come from: a path, the Hugging Face hub, a package that ships weights, object stores, a URL."""
