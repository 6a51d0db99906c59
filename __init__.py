"""Live Avatar nodes for ComfyUI."""

try:
    import comfy.model_management  # noqa: F401
except ImportError:  # used as a library, or read by a tool
    pass
else:
    from .nodes import comfy_entrypoint  # noqa: F401

    WEB_DIRECTORY = "./web"
