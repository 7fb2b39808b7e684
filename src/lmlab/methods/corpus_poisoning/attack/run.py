"""Crafting as a command does it: from a collection's name to an overlay."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlab.errors import Interrupted, UserError
from lmlab.methods.corpus_poisoning.attack.craft import Craft, craft
from lmlab.methods.corpus_poisoning.attack.late import check_late, late_means
from lmlab.methods.corpus_poisoning.config import CraftConfig
from lmlab.methods.corpus_poisoning.measure.evaluate import passage_scores
from lmlab.methods.corpus_poisoning.setup import Retriever, Target, chosen_queries
from lmlab.retrieval import Queries, read_queries
from lmlab.words import counted

_HELD_BACK = 10  # one of so many queries tells when to stop


def craft_for(
    retriever: Retriever,
    data: str,
    split: str,
    config: CraftConfig,
    out: Path,
    queries: str | None = None,
    max_seconds: float | None = None,
    ignore_missing: bool = False,
) -> Craft:
    """Craft passages with the queries of a collection's split, or others, as the attacker's.

    Of those, `concept` and `query_id` choose some. With `target_asr`, every tenth query is held back, and no passage is
    added once so large a share of those is hit.
    """
    if retriever.spec.late:
        return _craft_late(retriever, data, split, config, out, queries, max_seconds, ignore_missing)
    if queries is not None:
        target, asked = None, read_queries(queries)
        vectors = retriever.vectors(f"queries-{Path(queries).name}", asked.ids, asked.texts, "query")
    else:
        target = Target.load(retriever, data, split, ignore_missing, judged=False)
        asked, vectors = target.data.queries, target.queries()
    needs_corpus = config.objective == "coverage" or config.target_asr is not None
    if target is None and config.start == "gold":
        target = Target.load(retriever, data, split, ignore_missing)
    elif target is None and needs_corpus:
        target = Target.of_documents(retriever, data, asked)
    hits = None
    if needs_corpus and target is not None:
        if config.coverage_rank > target.depth(asked):
            others = " other" if target.depth(asked) < len(target.data.corpus) else ""
            raise UserError(
                f"coverage_rank {config.coverage_rank} is above the {target.depth(asked):,}{others} documents of"
                f" '{data}'.",
                "Lower --coverage-rank.",
            )
        name = None if queries is None else f"queries-{Path(queries).name}"
        hits = target.hits(config.coverage_rank, asked, name)
    stop: Any = None
    tau = None if hits is None else hits.tau(config.coverage_rank)
    if not config.is_all:
        rows = chosen_queries(asked, config)
        asked, vectors = asked.only([asked.ids[row] for row in rows]), vectors[rows]
        tau = None if tau is None else tau[rows]
    texts, attack = list(asked.texts), vectors
    if config.target_asr is not None and hits is not None:
        if len(texts) < 2 * _HELD_BACK:
            raise UserError(
                f"{counted(len(texts), 'queries are')} too few to hold some back for --target-asr.", "Leave it out."
            )
        held = [number for number in range(len(texts)) if number % _HELD_BACK == 0]
        kept = [number for number in range(len(texts)) if number % _HELD_BACK]
        threshold, aside = tau[held], vectors[held]  # type: ignore[index]

        def stop(found: list[str]) -> bool:
            scores = passage_scores(aside, retriever.encoder.encode_text(found))
            return bool((scores.max(1) > threshold).mean() >= config.target_asr)

        texts, attack = [texts[number] for number in kept], vectors[kept]
        tau = None if tau is None else tau[kept]
    golds = _golds(config, target, asked)
    if golds is not None and config.target_asr is not None:
        golds = [golds[number] for number in kept]
    with time_limit(max_seconds):
        return craft(retriever.spec, texts, attack, config, out, tau, stop, golds)


def _golds(config: CraftConfig, target: Target | None, asked: Queries) -> list[str] | None:
    """For the start gold a document that is relevant to each query.

    Raises:
        UserError: some have none.
    """
    if config.start != "gold":
        return None
    of = {} if target is None else gold_texts(target)
    if missing := sum(id not in of for id in asked.ids):
        raise UserError(
            f"{missing:,} of {counted(len(asked), 'queries have')} no relevant document to start from.",
            "Choose another --start.",
        )
    return [of[id] for id in asked.ids]


def gold_texts(target: Target) -> dict[str, str]:
    """Of each judged query the text of its first relevant document."""
    corpus = target.data.corpus
    place = {id: row for row, id in enumerate(corpus.ids)}
    texts = corpus.texts
    first = {
        query: next((id for id, grade in judged.items() if grade > 0), None)
        for query, judged in target.data.qrels.items()
    }
    return {query: texts[place[id]] for query, id in first.items() if id is not None}


def _craft_late(
    retriever: Retriever,
    data: str,
    split: str,
    config: CraftConfig,
    out: Path,
    queries: str | None,
    max_seconds: float | None,
    ignore_missing: bool,
) -> Craft:
    """Against late interaction, of whose vectors nothing is stored."""
    check_late(config)
    if queries is not None:
        target, asked = None, read_queries(queries)
    else:
        target = Target.load(retriever, data, split, ignore_missing, judged=False)
        asked = target.data.queries
    asked = asked.only([asked.ids[row] for row in chosen_queries(asked, config)])
    with time_limit(max_seconds):
        vectors = late_means(retriever.spec.load_late(), asked.texts, retriever.precision)
        golds = _golds(config, target, asked)
        return craft(retriever.spec, asked.texts, vectors, config, out, golds=golds)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End the work after some time as Ctrl-C would: what is done stays.

    Raises:
        KeyboardInterrupt: the time is over, whatever a library has made of it that was at work just then.
    """
    if seconds is None:
        yield
        return
    over = False

    def ring(number: int, frame: Any) -> None:
        nonlocal over
        over = True
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of jobs that a shell put into the background
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # a training that runs just then has a handler for it: it ends its step

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except (Interrupted, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what PyTorch's checkpointing makes of it is no Exception
        if over:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
