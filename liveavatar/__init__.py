"""Live Avatar: a portrait, a voice and a prompt become a talking video, block by block, on the devices you own.

This package is the library under the ComfyUI nodes; it never imports ComfyUI. Heavy libraries are imported where they
are used, so importing `liveavatar` costs nothing.
"""

__version__ = "0.1.0"
