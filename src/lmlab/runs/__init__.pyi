from .recipe import Recipe, RecipeStage
from .runner import PlannedStage, plan_stages, print_plan, read_record, run_recipe, stored_stages
from .stage import Input, Stage, StageContext, find_stage

__all__ = [
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
    "stored_stages",
]
