"""Run directories and recipes: stages that are skipped when nothing they depend on has changed, and resume when they
were cut off.
"""

from lmlab.runs.recipe import Recipe, RecipeStage
from lmlab.runs.runner import PlannedStage, plan_stages, print_plan, read_record, run_recipe
from lmlab.runs.stage import NO_INFLUENCE, Input, Stage, StageContext, find_stage

__all__ = [
    "NO_INFLUENCE",
    "Input",
    "PlannedStage",
    "Recipe",
    "RecipeStage",
    "Stage",
    "StageContext",
    "find_stage",
    "plan_stages",
    "print_plan",
    "read_record",
    "run_recipe",
]
