"""The table of plans in docs/hardware.md is what the planner says today."""

from tools.plan_table import PAGE, rewritten


def test_the_page_and_the_planner_agree():
    page = PAGE.read_text(encoding="utf-8")
    assert rewritten(page) == page, "run python -m tools.plan_table"
