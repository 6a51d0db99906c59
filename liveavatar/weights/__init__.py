"""Checkpoints as tensor sources: read one tensor at a time, renamed, merged with a LoRA, put into modules."""
