from .artifacts import ADAPTERS, Artifact, Documents, Model, Questions, Tokens, Vocabulary
from .claims import one_job, require_same_work
from .many import PlannedRun, RunOutcome, parse_axes, run_many, vary
from .recipe import Recipe, RecipeStage
from .record import ReadResults, Results, StageRecord, is_finished
from .runner import PlannedStage, plan_stages, print_plan, run_recipe, stored_stages
from .stage import (
    DocumentsInput,
    Input,
    ModelInput,
    QuestionsInput,
    Stage,
    StageContext,
    TokensInput,
    VocabularyInput,
    find_stage,
)

__all__ = [
    "ADAPTERS",
    "Artifact",
    "Documents",
    "DocumentsInput",
    "Input",
    "Model",
    "ModelInput",
    "PlannedRun",
    "PlannedStage",
    "Questions",
    "QuestionsInput",
    "ReadResults",
    "Recipe",
    "RecipeStage",
    "Results",
    "RunOutcome",
    "Stage",
    "StageContext",
    "StageRecord",
    "Tokens",
    "TokensInput",
    "Vocabulary",
    "VocabularyInput",
    "find_stage",
    "is_finished",
    "one_job",
    "parse_axes",
    "plan_stages",
    "print_plan",
    "require_same_work",
    "run_many",
    "run_recipe",
    "stored_stages",
    "vary",
]
