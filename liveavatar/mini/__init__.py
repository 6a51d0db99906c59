"""The embedded default: a small untrained model of the same architecture, a picture and a voice."""
