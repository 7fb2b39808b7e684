"""The judges by key points, by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lmlab.errors import UserError
from lmlab.judging.answers.config import AnswerJudgeConfig
from lmlab.judging.measures.calibration import read_calibration
from lmlab.judging.offline.scorers import PointJudge, PointScorer


def _coverage(place: str) -> PointScorer:
    from lmlab.judging.offline.coverage import Coverage

    return Coverage.load(place or "minilm")


def _contrast(place: str) -> PointScorer:
    from lmlab.judging.offline.likelihood import Contrast, LocalModel

    return Contrast(LocalModel.load(_named("contrast", place)))


def _likelihood(place: str) -> PointScorer:
    from lmlab.judging.offline.likelihood import Likelihood, LocalModel

    return Likelihood(LocalModel.load(_named("likelihood", place)))


def _onnx_nli(place: str) -> PointScorer:
    from lmlab.judging.offline.nli import OnnxNli

    return OnnxNli.load(_named("onnx-nli", place))


_SCORERS: dict[str, Callable[[str], PointScorer]] = {
    "coverage": _coverage,
    "contrast": _contrast,
    "likelihood": _likelihood,
    "onnx-nli": _onnx_nli,
}


def joined(parts: Sequence[str], config: AnswerJudgeConfig) -> PointJudge:
    """The judge by several figures, such as coverage and contrast:MODEL.

    Raises:
        UserError: a model or an encoder is not there.
    """
    scorers = [_SCORERS[part.partition(":")[0]](part.partition(":")[2]) for part in parts]
    calibration = None if config.calibration is None else read_calibration(config.calibration)
    return PointJudge(scorers, calibration=calibration)


def coverage(text: str, config: AnswerJudgeConfig, cache: Path | None = None) -> PointJudge:
    """`coverage` or `coverage:ENCODER`."""
    return joined([text], config)


def contrast(text: str, config: AnswerJudgeConfig, cache: Path | None = None) -> PointJudge:
    """`contrast:MODEL`."""
    return joined([text], config)


def likelihood(text: str, config: AnswerJudgeConfig, cache: Path | None = None) -> PointJudge:
    """`likelihood:MODEL`."""
    return joined([text], config)


def onnx_nli(text: str, config: AnswerJudgeConfig, cache: Path | None = None) -> PointJudge:
    """`onnx-nli:FILE`."""
    return joined([text], config)


def offline(text: str, config: AnswerJudgeConfig, cache: Path | None = None) -> PointJudge:
    """`offline:MODEL`: coverage by MiniLM and contrast by the model."""
    return joined(["coverage", f"contrast:{_named('offline', text.partition(':')[2])}"], config)


def _named(kind: str, place: str) -> str:
    if not place:
        raise UserError(f"The judge '{kind}' names no file or directory.", f"Write {kind}:PLACE.")
    return place
