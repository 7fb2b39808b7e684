"""Decoding with tokens looked up in the text (`draft_tokens`) beside decoding without, and beside `transformers`.

    python benchmarks/drafts.py --model DIR [--draft-tokens 8] [--new-tokens 96] [--rounds 3] [--threads 1]

DIR is a Hugging Face directory of a chat model that both read. Greedy answers to two kinds of requests: to repeat
functions of the standard library, whose answers are drafted well, and to write freely, where drafts seldom hold. All
contenders answer in turns, in bf16 and in one process; medians of the rounds are added up over the requests.
"""

from __future__ import annotations

import argparse
import fractions
import inspect
import os
import statistics
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lmlab.data import ChatConfig, chat_tokenizer, encode_for_answer
from lmlab.hardware import reuse_memory
from lmlab.models import GenerationConfig, generate
from lmlab.runs import Model

_COPIED = (statistics.mean, statistics.fmean, fractions.Fraction.limit_denominator, textwrap.indent)
_FREE = (
    "Write a short story about a lighthouse keeper.",
    "Why is the sky blue?",
    "What should I see in Rome?",
    "How do I bake bread?",
)


def main() -> None:
    """Measure both kinds and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--draft-tokens", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-peer", action="store_true", help="lmlab alone")
    arguments = parser.parse_args()
    reuse_memory()
    torch.set_num_threads(arguments.threads)
    found = Model.find(arguments.model)
    model, tokenizer = found.load_in("bf16"), chat_tokenizer(found.tokenizer(), ChatConfig())
    theirs = None
    if not arguments.without_peer:
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).eval()
    ends = tuple(found.end_token_ids())

    def lmlab(ids: list[int], draft_tokens: int) -> list[int]:
        config = GenerationConfig(
            max_new_tokens=arguments.new_tokens, temperature=0, eos_ids=ends, draft_tokens=draft_tokens
        )
        return generate(model, [ids], config)[0][0].ids

    def transformers(ids: list[int], draft_tokens: int) -> list[int]:
        assert theirs is not None
        given = torch.tensor([ids])
        drafts = {"prompt_lookup_num_tokens": draft_tokens} if draft_tokens else {}
        out = theirs.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=arguments.new_tokens,
            do_sample=False,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
            **drafts,
        )[0, len(ids) :].tolist()
        return [each for each in out if each not in ends]

    contenders: list[tuple[str, Callable[[list[int], int], list[int]], int]] = [
        ("lmlab", lmlab, 0),
        ("lmlab, drafts", lmlab, arguments.draft_tokens),
    ]
    if theirs is not None:
        contenders += [
            ("transformers", transformers, 0),
            ("transformers, drafts", transformers, arguments.draft_tokens),
        ]
    print("| requests | " + " | ".join(name for name, _, _ in contenders) + " | speed-up | same ids | load |")
    print("|" + "---|" * (len(contenders) + 4))
    requests = {
        "repeat a function": [
            f"Repeat this Python function exactly:\n```python\n{inspect.getsource(each)}```" for each in _COPIED
        ],
        "write freely": list(_FREE),
    }
    for kind, texts in requests.items():
        seconds, tokens, same = [0.0] * len(contenders), [0] * len(contenders), 0
        for text in texts:
            ids = encode_for_answer(tokenizer, [{"role": "user", "content": text}])
            answers = [run(ids, most) for _, run, most in contenders]  # warms up
            same += answers[0] == answers[1]
            taken: list[list[float]] = [[] for _ in contenders]
            for _ in range(arguments.rounds):
                for number, (_, run, most) in enumerate(contenders):
                    start = time.perf_counter()
                    run(ids, most)
                    taken[number].append(time.perf_counter() - start)
            for number, each in enumerate(taken):
                seconds[number] += statistics.median(each)
                tokens[number] += len(answers[number])
        rates = [count / spent for count, spent in zip(tokens, seconds, strict=True)]
        cells = [*(f"{rate:.1f} tokens/s" for rate in rates), f"{rates[1] / rates[0]:.2f}x"]
        print(
            f"| {kind} | " + " | ".join(cells) + f" | {same} of {len(texts)} | {os.getloadavg()[0]:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
