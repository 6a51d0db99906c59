"""The causal sound-to-video transformer in pure torch: no devices, no processes, no files.

Read `transformer.py` first; it names every piece in the order in which a block passes through them.
"""
