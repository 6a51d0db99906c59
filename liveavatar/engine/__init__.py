"""Engines: they run the stages of a plan."""
