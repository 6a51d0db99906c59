"""The README's table of plans is what the planner says today."""

from tools.plan_table import README, rewritten


def test_the_readme_and_the_planner_agree():
    readme = README.read_text(encoding="utf-8")
    assert rewritten(readme) == readme, "run python -m tools.plan_table"
