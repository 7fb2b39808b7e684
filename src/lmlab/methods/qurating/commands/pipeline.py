"""One file that describes a whole run: its sections become the stages of a recipe, which are skipped when nothing that
they depend on has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from lmlab.config import Config, validate
from lmlab.data import KEEP_ALL, source_settings
from lmlab.errors import UserError
from lmlab.judging.config import Judging
from lmlab.methods.qurating.config import AnalysisConfig, CriterionConfig, PairConfig
from lmlab.methods.qurating.selecting.settings import Mode, SelectionSettings
from lmlab.runs import Recipe


class CorpusSection(Config):
    """Where texts are.

    Attributes:
        path: file, glob, folder or URL.
        text, id, domain: dotted fields of records.
        tokenizer: a directory; without it a byte-level BPE of `vocab_size` is trained on the corpus.
    """

    path: str
    text: str = "text"
    id: str | None = None
    domain: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 2048


class JudgeSection(Judging):
    """Who judges: `backend` is `offline`, `exact`, `openai` or `local`; `model` its model.

    The others are those of the stage.
    """

    backend: str = "offline"
    model: str | None = None


class AnnotateSection(Config):
    """How the corpus is rated."""

    segment: int | None = None
    dtype: str = "auto"
    workers: int = 1
    block: int = 1024


class SelectSection(SelectionSettings):
    """What is chosen; `metric` is by default the first criterion, `domains: none` chooses from all at once."""

    mode: Mode = "sample"
    domains: Literal["proportional", "none"] | dict[str, float] = "proportional"  # type: ignore[assignment]
    drop_nonfinite: bool = True  # a corpus that was just rated has empty documents, and they are counted
    skip_empty: bool = True


class QualitySection(Config):
    """A whole run."""

    corpus: CorpusSection
    criteria: dict[str, CriterionConfig] = Field(min_length=1)
    judge: JudgeSection = JudgeSection()
    pairs: PairConfig = PairConfig()
    rater: dict[str, Any] = Field(default={})
    annotate: AnnotateSection = AnnotateSection()
    select: SelectSection
    report: AnalysisConfig = AnalysisConfig()


class QualityFile(Config):
    """The file."""

    name: str = "quality"
    seed: int = 0
    quality: QualitySection


_DTYPES = {"bfloat16": "bf16", "float32": "fp32", "auto": "auto", "bf16": "bf16", "fp32": "fp32"}


def pipeline_recipe(data: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of a file.

    Raises:
        UserError: an unknown key, a wrong type, or a corpus that is not there.
    """
    file = validate(QualityFile, dict(data), where)
    q = file.quality
    if q.annotate.dtype not in _DTYPES:
        raise UserError(
            f"{where}: quality.annotate.dtype: '{q.annotate.dtype}' is unknown.", "Use bfloat16, float32 or auto."
        )
    stages = {
        "documents": {"kind": "collect", "sources": [_source(q.corpus)], **KEEP_ALL},
        **_tokenizer(q.corpus),
        "judgments": {
            "kind": "quality_judge",
            "documents": "documents",
            "tokenizer": q.corpus.tokenizer or "tokenizer",
            "criteria": {name: each.model_dump(mode="json", exclude_none=True) for name, each in q.criteria.items()},
            "judge": _judge(q.judge, where),
            "pairs": q.pairs.model_dump(mode="json"),
        },
        "rater": _rater(q),
        "ratings": {
            "kind": "quality_annotate",
            "documents": "documents",
            "rater": "rater",
            "id": "id",
            "precision": _DTYPES[q.annotate.dtype],
            "workers": q.annotate.workers,
            "block": q.annotate.block,
        },
        "selection": _selection(q),
        "report": {"kind": "report", "title": "Data selection by quality"},
    }
    return Recipe.parse({"name": file.name, "seed": file.seed, "stages": stages}, where)


def _source(corpus: CorpusSection) -> dict[str, Any]:
    fields = {"text_field": corpus.text, "id_field": corpus.id, "domain_field": corpus.domain}
    return source_settings(corpus.path, {name: value for name, value in fields.items() if value is not None})


def _tokenizer(corpus: CorpusSection) -> dict[str, Any]:
    if corpus.tokenizer is not None:
        return {}
    return {"tokenizer": {"kind": "train_tokenizer", "documents": "documents", "vocab_size": corpus.vocab_size}}


def _judge(judge: JudgeSection, where: str) -> dict[str, Any]:
    if judge.backend != "offline" and judge.model is None:
        raise UserError(f"{where}: quality.judge.model is required for the back end '{judge.backend}'.")
    name = judge.backend if judge.backend == "offline" else f"{judge.backend}:{judge.model}"
    return {"judge": name, **judge.model_dump(mode="json", exclude_none=True, exclude={"backend", "model"})}


def _rater(q: QualitySection) -> dict[str, Any]:
    settings = dict(q.rater)
    init = settings.pop("init", None)
    if q.annotate.segment is not None:
        settings.setdefault("max_tokens", q.annotate.segment)
    start = {"init": init} if isinstance(init, str) else {"tokenizer": q.corpus.tokenizer or "tokenizer"}
    if isinstance(init, dict):
        settings["size"] = init
    if "val" in settings:
        settings["validation"] = settings.pop("val")
    return {"kind": "quality_rater", "judgments": "judgments", **start, "rater": settings}


def _selection(q: QualitySection) -> dict[str, Any]:
    chosen = q.select.model_dump(exclude={"domains"})
    if chosen["metric"] is None and not chosen["weights"] and chosen["mode"] != "uniform":
        chosen["metric"] = f"{next(iter(q.criteria))}_average"
    whole = q.select.domains == "none"
    domains = {"domain": None} if whole else {"domain": "domain", "domains": q.select.domains}
    report = q.report.model_dump(mode="json")
    return {
        "kind": "quality_select",
        "annotated": "ratings",
        "documents": "documents",
        **chosen,
        **domains,
        "report": report,
    }
