"""Prompt and sound as the network hears them: pure functions over transformers modules."""
