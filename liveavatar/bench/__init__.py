"""Measurements: what the machinery really delivers, beside what was predicted."""
