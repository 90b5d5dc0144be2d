"""Vision-language models that somebody else trained: from the transformers library, or behind a server."""
