"""Encoding prompt and audio for the network: pure functions over transformers modules."""
