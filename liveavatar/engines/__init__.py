"""Who runs the stages of a plan."""
