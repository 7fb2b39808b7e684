"""Open-book answers of a model: four questions about one chapter with the chapter read once, each alone, and by
`transformers.generate` in a batch padded on the left.

    OMP_NUM_THREADS=1 python benchmarks/tutor_answers.py models/smollm2 CHAPTER [CHAPTER ...] --tokens 2048 6144

CHAPTER is any file that `lmlab.data.chapters` reads; it is cut to so many tokens, prompt and question together. Seconds
are those of the processor, so that other work on the machine does not count; runs alternate, the fastest is shown, and
greedy answers are compared.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from lmlab.data import Reject
from lmlab.data.chapters.source import read_chapters
from lmlab.methods.tutor.answering.local import LocalTutor
from lmlab.methods.tutor.answering.window import prompts_for
from lmlab.methods.tutor.config import AnswerConfig
from lmlab.methods.tutor.items.item import TutorItem

QUESTIONS = (
    "What is this chapter about?",
    "Which idea of the chapter is the hardest, and why?",
    "Can you give an example of what the chapter explains?",
    "What should I remember of it?",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("chapters", nargs="+")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--ways", nargs="+", default=["shared", "alone", "transformers"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = "\n\n".join(
        each.text
        for path in given.chapters
        for each in read_chapters(path, min_words=0)
        if not isinstance(each, Reject)
    )
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, one thread, {given.precision}")
    for size in given.tokens:
        measure(given.model, text, size, given.new, given.runs, given.precision, given.ways)


def measure(model: str, text: str, size: int, new: int, runs: int, precision: str, chosen: list[str]) -> None:
    """One length."""
    config = AnswerConfig(max_new_tokens=new, overflow="truncate_middle", window=size + new, precision=precision)
    config = config.model_copy(update={"device": "cpu"})
    items = [TutorItem(str(n), question, text, path_to_chapter="c") for n, question in enumerate(QUESTIONS)]
    tutor = LocalTutor.load(model, config)
    # one chapter for all questions, so that they share it as they would without a cut
    shortest = min(prompts_for(tutor.asking, items, "open", size + new, new, "truncate_middle"), key=lambda p: -p.cut)
    kept = tutor.asking.tokenizer.encode(text, "as_text")[
        : len(tutor.asking.tokenizer.encode(text, "as_text")) - shortest.cut
    ]
    chapter = tutor.asking.tokenizer.decode(kept)
    items = [TutorItem(item.id, item.question, chapter, path_to_chapter="c") for item in items]
    prompts = prompts_for(tutor.asking, items, "open", size + 64 + new, new, "error")
    peer = Peer(model, precision) if "transformers" in chosen else None
    ways = {
        "shared": lambda: by_lmlab(tutor, prompts, True),
        "alone": lambda: by_lmlab(tutor, prompts, False),
        "transformers": lambda: peer.answer([prompt.ids for prompt in prompts], new, tutor.ends),
    }
    ways = {name: way for name, way in ways.items() if name in chosen}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    outputs: dict[str, list[str]] = {}
    for _ in range(runs):
        for name, way in ways.items():
            started = time.process_time()
            outputs[name] = way()
            seconds[name].append(time.process_time() - started)
    best = {name: min(each) for name, each in seconds.items()}
    longest = max(len(prompt.ids) for prompt in prompts)
    print(f"\n{longest} tokens of prompt, {len(prompts)} questions, {new} new tokens each; best of {runs} runs")
    for name, each in best.items():
        same = sum(a == b for a, b in zip(outputs[name], outputs["shared"], strict=True))
        told = f"{each / best['shared']:5.2f} x shared   {same} of {len(prompts)} answers as shared"
        print(f"  {name:13s} {each:7.1f} CPU s   {told}")
    print(f"  load {os.getloadavg()[0]:.1f}")


def by_lmlab(tutor: LocalTutor, prompts: list, share: bool) -> list[str]:
    """Answers by lmlab, in the order of the prompts."""
    tutor.config = tutor.config.model_copy(update={"share": share})
    found = {prompt.item.id: answer.output for prompt, answer in tutor.answer(prompts)}
    return [found[prompt.item.id] for prompt in prompts]


class Peer:
    """The same model in `transformers`."""

    def __init__(self, place: str, precision: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(Path(place), dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(Path(place))

    @torch.no_grad()
    def answer(self, prompts: list[list[int]], new: int, ends: tuple[int, ...]) -> list[str]:
        """One batch, padded on the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[ends[0]] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0]
        )
        return [self.tokenizer.decode(row[longest:], skip_special_tokens=True) for row in out]


if __name__ == "__main__":
    main()
