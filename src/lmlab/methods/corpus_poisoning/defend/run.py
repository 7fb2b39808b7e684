"""Defenses as commands use them: a context from options, a gate that is fitted and asked, a table for the report."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from lmlab.errors import UserError
from lmlab.files import MAX_JSON_BYTES, open_binary, parse_json, read_mapping, require_mapping
from lmlab.methods.corpus_poisoning.attack.crafted import AdversarialSet
from lmlab.methods.corpus_poisoning.config import DetectorsConfig
from lmlab.methods.corpus_poisoning.defend.detector import DetectorContext, Passages, make_detector
from lmlab.methods.corpus_poisoning.defend.gate import AdmissionGate, require_clean, to_json
from lmlab.methods.corpus_poisoning.defend.measure import PARTS, measure_defenses, measure_fusion, sweep
from lmlab.methods.corpus_poisoning.measure.run import attackers, evaluate_on, held_out
from lmlab.methods.corpus_poisoning.setup import Retriever, Target
from lmlab.retrieval import read_corpus, read_queries
from lmlab.retrieval.collections.records import document_text
from lmlab.stats import roc_auc


def context_of(target: Target, settings: DetectorsConfig, seed: int = 0) -> DetectorContext:
    """What detectors may use: all sentinel questions as text, and the vectors of a sample of them."""
    texts: list[str] = []
    vectors = None
    if settings.sentinels is not None:
        asked = read_queries(settings.sentinels)
        picked = np.random.default_rng(seed).permutation(len(asked))[: settings.sentinel_count]
        texts = list(asked.texts)
        sample = [texts[number] for number in sorted(picked.tolist())]
        vectors = target.retriever.encoder.encode_text(sample, "query")
    encoder = target.retriever.encoder
    models = (settings.language_model, settings.masked_model)
    return DetectorContext(encoder, target.index, texts, vectors, *models)


def fit_gate(target: Target, context: DetectorContext, names: Sequence[str], rate: float, out: Path) -> AdmissionGate:
    """A gate fitted on one half of a corpus, its threshold set on the other, written to a folder."""
    require_clean((len(target.data.corpus) + 1) // 2, rate, of=2)  # before anything is encoded
    documents = Passages(target.data.corpus.texts, target.documents)
    order = np.random.default_rng(0).permutation(len(documents)).tolist()
    half = len(order) // 2
    gate = AdmissionGate.fit(names, context, documents.part(order[:half]), documents.part(order[half:]), rate)
    gate.save(out)
    return gate


def run_gate(gate: AdmissionGate, source: IO[str], sink: IO[str], where: str, at_once: int = 1) -> tuple[int, int]:
    """Verdicts on records of JSON lines, one a line; how many there were, and how many are refused.

    Arguments:
        at_once: records that are encoded together; one where somebody waits for each verdict.

    Raises:
        UserError: a line is no record with text; with its number.
    """
    if "near_duplicate" in gate.detectors:
        raise UserError(
            "The gate has the detector near_duplicate, which compares new passages with one another; here each comes"
            " alone, and it would admit all.",
            "Fit a gate without it, or use `lmlab poison detect score` on all at once.",
        )
    total = refused = 0
    for some in _gathered(_records(source, where), at_once):
        verdicts = gate.check_all(Passages.of([text for _, text in some], gate.encoder))
        for (id, _), verdict in zip(some, verdicts, strict=True):
            sink.write(to_json(id, verdict) + "\n")
            total, refused = total + 1, refused + (not verdict.admit)
        sink.flush()
    return total, refused


def _gathered(records: Iterator[tuple[str, str]], at_once: int) -> Iterator[list[tuple[str, str]]]:
    """Records in groups; those before a bad one are not lost with it."""
    some: list[tuple[str, str]] = []
    try:
        for record in records:
            some.append(record)
            if len(some) == at_once:
                yield some
                some = []
    except UserError:
        if some:
            yield some
        raise
    if some:
        yield some


def _lines(source: IO[str], where: str) -> Iterator[str]:
    try:
        yield from iter(lambda: source.readline(MAX_JSON_BYTES + 1), "")
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8.") from None


def _records(source: IO[str], where: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(source, where), 1):
        if line.strip():
            place = f"{where}, line {number}"
            row = require_mapping(parse_json(line, place), place)
            if not isinstance(row.get("text"), str):
                raise UserError(f"{place}: the key 'text' must hold a passage.")
            title = row.get("title")
            yield str(row.get("_id", row.get("id", number))), document_text(title or "", row["text"])


def open_gate(
    retriever: Retriever, directory: Path, language_model: str | None = None, masked_model: str | None = None
) -> AdmissionGate:
    """A stored gate.

    Arguments:
        language_model, masked_model: where those of its detectors are, if they are not where the gate was fitted.
    """
    if not (directory / "gate.json").exists():
        raise UserError(f"'{directory}' holds no gate.", "Run: lmlab poison detect fit")
    context = DetectorContext(retriever.encoder, language_model=language_model, masked_model=masked_model)
    return AdmissionGate.load(directory, context)


def score_passages(gate: AdmissionGate, texts: Sequence[str], clean: Passages | None) -> dict[str, Any]:
    """Scores of passages by each detector, and how well they part from clean documents, if there are some: from those
    that no detector was fitted on (`clean`; `clean_left_out` are the others).

    Raises:
        UserError: there are none, or the gate does not say which they are.
    """
    unseen = None if clean is None else clean.part(gate.unseen(clean))
    passages = Passages.of(list(texts), gate.encoder)
    scores = gate.scores(passages)
    verdicts = gate.check_all(passages)
    found: dict[str, Any] = {
        "passages": len(passages),
        "refused": sum(not verdict.admit for verdict in verdicts),
        "mean": {name: float(values.mean()) for name, values in scores.items()},
    }
    if clean is not None and unseen is not None:
        own = gate.scores(unseen)
        found |= {"clean": len(unseen), "clean_left_out": len(clean) - len(unseen)}
        found["auroc"] = {name: roc_auc(own[name], values) for name, values in scores.items()}
    return found


def sweep_passages(
    target: Target, context: DetectorContext, names: Sequence[str], passages: Path, sample: int = 1000
) -> dict[str, Any]:
    """Curves of refused clean and crafted passages, for each detector."""
    crafted = Passages.of(AdversarialSet.load(passages).texts, context.encoder)
    step = max(1, len(target.data.corpus) // sample)
    clean = Passages(target.data.corpus.texts, target.documents).part(range(0, len(target.data.corpus), step))
    curves = {}
    for name in names:
        detector = make_detector(name, context)
        detector.fit(clean.part(range(0, len(clean), 2)))
        curves[name] = sweep(detector, clean.part(range(1, len(clean), 2)), crafted)
    return curves


def report_rows(
    target: Target,
    context: DetectorContext | None,
    places: Sequence[Path],
    names: Sequence[str],
    stack: Sequence[str],
    k_values: Sequence[int],
    fusion: bool,
    rate: float = 0.005,
    allow_overlap: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """What a report shows: figures of each set of passages, and of each defense against each; no defenses without a
    context.

    Arguments:
        stack: detectors of the gate that is measured as a whole, which refuses a share `rate` of clean passages.
    """
    if context is not None and stack:
        require_clean(len(target.data.corpus) // PARTS, rate, of=PARTS)  # before anything is encoded
    data, split = _place_of(target), target.data.split
    attacks = []
    sets: dict[str, Passages] = {}
    asked: dict[str, list[int]] = {}  # as undefended: who crafted passages knew the others
    for place in places:
        crafted = AdversarialSet.load(place)
        name = place.name if place.name not in sets else str(place)
        sets[name] = Passages.of(crafted.texts, target.retriever.encoder)
        asked[name] = held_out(target.data.queries, attackers(None, place), allow_overlap, [])
        summary = place / "craft.json"
        examples = [{"id": each.id, "text": each.text, "payload": each.payload} for each in crafted.passages[:3]]
        attacks.append(
            {
                "name": name,
                "found": evaluate_on(target.retriever, data, split, place, k_values, allow_overlap=allow_overlap),
                "examples": examples,
                "notes": [f"{each.id}: {each.note}" for each in crafted.passages if each.note],
                "summary": read_mapping(summary) if place.is_dir() and summary.exists() else {},
            }
        )
    if context is None:
        return attacks, None
    depths = defended_depths(k_values)
    rows = measure_defenses(names, context, target, sets, depths, stack=stack, stack_rate=rate, asked=asked)
    rows += measure_fusion(target, sets, depths, asked=asked) if fusion else []
    return attacks, [row.row() for row in rows]


def defended_depths(k_values: Sequence[int]) -> list[int]:
    """The depths at which defenses are measured: 10 and 20, or else the largest of those asked for."""
    return [k for k in k_values if k in (10, 20)] or [max(k_values)]


def _place_of(target: Target) -> str:
    assert target.place is not None
    return target.place


def read_texts(path: Path) -> list[str]:
    """The texts of a corpus file or of crafted passages."""
    return read_corpus(path / "adversarial.jsonl" if path.is_dir() else path, "keep").texts


def standard_streams(source: str, out: Path | None) -> tuple[IO[str], Any]:
    """Where records come from and verdicts go: a file, or the terminal's streams for `-`."""
    if source == "-":
        return sys.stdin, out
    if not Path(source).exists() or Path(source).is_dir():  # a pipe is one too
        raise UserError(f"No such file: '{source}'.")
    return io.TextIOWrapper(open_binary(source), encoding="utf-8"), out


def dump(value: Any) -> str:
    """JSON for the terminal."""
    return json.dumps(value, ensure_ascii=False)
