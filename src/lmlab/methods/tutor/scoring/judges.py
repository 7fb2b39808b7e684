"""Who grades: the judges of the core by name, with the prices of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmlab.files import read_mapping
from lmlab.judging import AnswerJudge, AnswerJudgeConfig, make_answer_judge
from lmlab.methods.tutor.answering.run import REPLIES, RUN
from lmlab.methods.tutor.endpoints import price_of, refuse_secrets
from lmlab.methods.tutor.scoring.score import SELF_JUDGING


def judge_of(config: AnswerJudgeConfig, directory: Path, prices: Path | None = None) -> AnswerJudge:
    """The judge that a configuration names; replies of an endpoint are kept beside the answers. Without an endpoint in
    its name nothing is sent.

    Raises:
        UserError: there is none of that name, or the address of an endpoint holds a secret.
        BadPriceTable: the table of prices is wrong.
    """
    refuse_secrets(config.base_url)
    if prices is not None and config.judge:
        config = config.model_copy(update={"price": price_of(prices, config.judge[0])})
    return make_answer_judge(config, directory / REPLIES)


def flag_of(judges: Sequence[str], directory: Path) -> str | None:
    """What every grade is marked with where a judge is the model whose answers it grades."""
    run = read_mapping(directory / RUN) if (directory / RUN).exists() else {}
    tutor = str(run.get("model", ""))
    return SELF_JUDGING if any(is_same_model(name, tutor) for name in judges) else None


def is_same_model(judge: str, tutor: str) -> bool:
    """Whether a judge, as BACKEND:MODEL, is a tutor, as BACKEND:MODEL or by its folder."""
    backend, _, model = judge.partition(":")
    if backend not in ("openai", "local", "exact", "replay", "mock") or not model or not tutor:
        return False
    own = tutor if Path(tutor).exists() else tutor.partition(":")[2]
    if own and Path(model).exists() and Path(own).exists():
        return Path(model).resolve() == Path(own).resolve()
    return own == model
