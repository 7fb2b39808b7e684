"""Who grades, by name: a model behind an endpoint, or one of the core's judges that ask nobody."""

from __future__ import annotations

from pathlib import Path

from lmlab.endpoints import Backend
from lmlab.errors import UserError
from lmlab.files import read_mapping
from lmlab.judging import AnswerJudge, Asking, GradingRubric, RubricJudge
from lmlab.methods.tutor.answering.run import RUN
from lmlab.methods.tutor.config import EndpointConfig, JudgingConfig
from lmlab.methods.tutor.endpoints import endpoint_of

_BACKENDS = ("openai", "local", "replay", "mock")


def names_the_tutor(judge: str, directory: Path) -> bool:
    """Whether a judge is the model whose answers it is to grade."""
    run = read_mapping(directory / RUN) if (directory / RUN).exists() else {}
    backend, _, model = judge.partition(":")
    if backend == "local" and model and Path(model).exists() and Path(str(run.get("model"))).exists():
        return Path(model).resolve() == Path(str(run["model"])).resolve()
    return bool(model) and str(run.get("model")).partition(":")[2] == model


def judge_of(
    name: str, config: JudgingConfig, endpoint: EndpointConfig, directory: Path, backend: Backend | None = None
) -> AnswerJudge:
    """The judge of a name, such as `offline` or `openai:MODEL`. Without an endpoint in it nothing is sent.

    Raises:
        UserError: there is none of that name.
    """
    if name.partition(":")[0] not in _BACKENDS:
        raise UserError(f"There is no judge '{name}'.", "Name one: openai:MODEL, local:DIRECTORY.")
    rubric = GradingRubric.load(config.rubric)
    asking = Asking(config.reading, config.samples, config.temperature, config.max_tokens)
    replies = None if config.replies is None else Path(config.replies)
    return RubricJudge(rubric, endpoint_of(name, endpoint, replies), asking, directory / "replies.sqlite", backend)
