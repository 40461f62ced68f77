"""How fast the service scores, against the engine alone, stock vLLM and plain Hugging Face, and what it does under
more load than it can answer."""
