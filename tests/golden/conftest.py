"""What no folder holds is not collected: no skip stands for a comparison that was never possible."""

import pytest
from _pytest.compat import NOTSET


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the placeholders pytest makes of empty parameter sets."""
    empty = [i for i in items if any(v is NOTSET for v in getattr(getattr(i, "callspec", None), "params", {}).values())]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [i for i in items if i not in empty]
