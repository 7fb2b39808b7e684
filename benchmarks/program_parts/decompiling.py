"""Small GPT-2s, trained with lmlab's model and trainer on languages up to 20 symbols and read as programs.

A model answers at each place (its head gives the answer there), and is tested at up to twice the length of its
training. Where it learns positions, sequences begin anywhere in its table, so that all rows of it are trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from lmlab.data import Batch, Loader, Tokenizer
from lmlab.files import read_json, write_json, write_jsonl, write_text
from lmlab.hardware import machine_load
from lmlab.models import ModelConfig, Transformer, save_pretrained
from lmlab.train import OptimizerConfig, ScheduleConfig, StepOutput, Trainer, TrainerConfig
from program_parts.languages import LANGUAGES, running
from program_parts.languages import draw as draw_language

Drawn = tuple[list[str], list[str | None]]
Draw = Callable[[np.random.Generator, int], Drawn]
_LONGEST, _PLACES, _MANY, _DATA, _LONG, _BATCH = 20, 64, 8000, 2000, 500, 64
_BOS, _SEP, _EOS = "<s>", "|", "</s>"


@dataclass(frozen=True)
class Learned:
    """What a model learns, and how large it is.

    Attributes:
        draw: a sequence of so many symbols, and the answer at each place, None where there is none.
        positions: it learns positions.
    """

    draw: Draw
    layers: int = 1
    width: int = 32
    heads: int = 1
    positions: bool = False
    steps: int = 800
    rate: float = 3e-3


def _labeled(symbols: str, label: Callable[[Sequence[str]], list[str]]) -> Draw:
    def draw(random: np.random.Generator, length: int) -> Drawn:
        word = [str(each) for each in random.choice(list(symbols), length)]
        return word, list(label(word))

    return draw


def _of(name: str) -> Draw:
    language = LANGUAGES[name]

    def draw(random: np.random.Generator, length: int) -> Drawn:
        (word,) = draw_language(language, 1, length, length, random)
        return word, list(language.label(word))

    return draw


def _written(symbols: int, order: Callable[[list[str]], list[str]]) -> Draw:
    """Different symbols, a mark, and the same in another order, which is to be written from the mark on."""

    def draw(random: np.random.Generator, length: int) -> Drawn:
        word = [str(each) for each in random.permutation(symbols)[: max(1, length // 2)]]
        then = order(word)
        return [*word, _SEP, *then], [*[None] * len(word), *then, _EOS]

    return draw


def _most(prefix: Sequence[str]) -> str:
    """Whether there are as many a as b, or more."""
    return "a" if 2 * prefix.count("a") >= len(prefix) else "b"


def _last_kept(prefix: Sequence[str]) -> str:
    """The last symbol that is no c: what a flip-flop holds."""
    return next((each for each in reversed(prefix) if each != "c"), "-")


MODELS: dict[str, Learned] = {
    "majority": Learned(_labeled("ab", running(_most))),
    "interleaved majority": Learned(_of("interleaved majority")),
    "the one before": Learned(_labeled("abcdef", running(lambda p: p[-2] if len(p) > 1 else "-")), positions=True),
    "seen before": Learned(_labeled("abcdefghij", running(lambda p: "yes" if p[-1] in p[:-1] else "no"))),
    "sort": Learned(_written(40, lambda word: sorted(word, key=int)), width=64),
    "Tomita 1": Learned(_of("Tomita 1")),
    "Tomita 2": Learned(_of("Tomita 2"), layers=2, positions=True),
    "flip-flop": Learned(_labeled("abc", running(_last_kept)), positions=True),
    "both seen": Learned(_labeled("abcdefgh", running(lambda p: "yes" if {"a", "b"} <= set(p) else "no"))),
    "Dyck 1": Learned(_of("Dyck 1"), layers=2),
    "Tomita 7": Learned(_of("Tomita 7"), layers=2),
    "bigram copy": Learned(_of("bigram copy"), layers=2, width=64, positions=True, steps=1500),
    "count": Learned(_of("count")),
    "unique copy": Learned(_written(40, list), layers=2, width=64, positions=True, steps=1500),
}


class _Rows:
    """Sequences as rows of ids, drawn once."""

    def __init__(
        self, drawn: Sequence[Drawn], numbers: dict[str, int], offsets: int, random: np.random.Generator
    ) -> None:
        length = max(len(word) for word, _ in drawn) + 1
        self.ids = np.zeros((len(drawn), length), dtype=np.int64)
        self.labels = np.full((len(drawn), length), -100, dtype=np.int64)
        for row, (word, answers) in enumerate(drawn):
            self.ids[row, : len(word) + 1] = [numbers[each] for each in (_BOS, *word)]
            self.labels[row, 1 : len(word) + 1] = [-100 if each is None else numbers[each] for each in answers]
        begin = random.integers(0, offsets + 1, (len(drawn), 1))
        self.positions = np.arange(length) + begin

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.labels[index], "position_ids": self.positions[index]}


def _step(model: Any, batch: Batch) -> StepOutput:
    loss = model(batch["input_ids"], labels_BT=batch["labels"], position_ids_BT=batch["position_ids"]).loss
    return StepOutput(loss.sum, loss.count)


def read_with(learned: Learned, directory: Path) -> tuple[list[Drawn], list[Drawn]]:
    """Sequences that the model is not trained on, as long as those and up to twice as long; both are written, too."""
    random = np.random.default_rng(1)
    found = []
    for name, count, shortest, longest in (
        ("data", _DATA, 1, _LONGEST), ("long", _LONG, _LONGEST + 1, 2 * _LONGEST)
    ):  # fmt: skip
        part = [learned.draw(random, int(random.integers(shortest, longest + 1))) for _ in range(count)]
        directory.mkdir(parents=True, exist_ok=True)
        write_jsonl(directory / f"{name}.jsonl", ({"tokens": word, "labels": answers} for word, answers in part))
        found.append(part)
    return found[0], found[1]


def train_model(learned: Learned, directory: Path, seed: int = 0) -> tuple[int, float]:
    """Train, and write the model, its tokenizer and data.

    Returns:
        how many positions behind 0 sequences begin at, and CPU seconds.
    """
    random = np.random.default_rng(seed)
    before = time.process_time()
    drawn = [learned.draw(random, int(random.integers(1, _LONGEST + 1))) for _ in range(_MANY)]
    data, long = read_with(learned, directory)
    seen = {each for part in (*drawn, *data, *long) for side in part for each in side if each is not None}
    names = [_BOS, *sorted(seen)]
    numbers = {name: number for number, name in enumerate(names)}
    offsets = _PLACES - 2 * _LONGEST - 2 if learned.positions else 0
    rows = _Rows(drawn, numbers, _PLACES - max(len(word) for word, _ in drawn) - 1 if learned.positions else 0, random)
    config = ModelConfig(
        vocab_size=len(names), num_layers=learned.layers, d_model=learned.width, num_heads=learned.heads,
        d_ff=2 * learned.width, max_seq_len=_PLACES, norm="layernorm", norm_bias=True,
        positions="learned" if learned.positions else "none", gated=False, activation="gelu_tanh", qkv_bias=True,
        attention_output_bias=True, ffn_bias=True, init_std=0.05, tie_embeddings=False,
    )  # fmt: skip
    model = Transformer(config).initialize(seed)
    trainer = Trainer(
        model,
        _step,
        Loader(rows, _BATCH, seed),
        TrainerConfig(
            steps=learned.steps, batch_size=_BATCH, precision="fp32", device="cpu", checkpoint_every=10**6,
            optimizer=OptimizerConfig(learning_rate=learned.rate, weight_decay=0.03),
            schedule=ScheduleConfig(kind="cosine", warmup_fraction=0.05, final_fraction=0.02),
        ),
        directory / "run",
    )  # fmt: skip
    trainer.fit()
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token=_BOS))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, 0)])
    save_pretrained(model, directory / "model")
    Tokenizer(backend, _BOS, _BOS).save(directory / "model")
    spent = time.process_time() - before
    write_json(directory / "trained.json", {"offsets": offsets, "seconds": spent})
    return offsets, spent


def measure_decompiling(directory: Path, only: Sequence[str]) -> None:
    """A row a model; those that are trained already are not trained again."""
    from lmlab.methods.transformer_programs.config import DecompileConfig, SequencesConfig
    from lmlab.methods.transformer_programs.decompile.files import asked_of, names_of
    from lmlab.methods.transformer_programs.decompile.run import decompile, measure
    from lmlab.methods.transformer_programs.decompile.text import own_lines, to_text
    from lmlab.runs import Model

    head = "language | layers, width, heads | trained, CPU-s | model, % | as the model, % | program, % | most common, %"
    print(f"| {head} | maps | lines | CPU-s |\n{10 * '|---'}|")
    for name in only or MODELS:
        learned, place = MODELS[name], directory / name.replace(" ", "-")
        if not (place / "trained.json").exists():
            place.mkdir(parents=True, exist_ok=True)
            train_model(learned, place)
        trained = read_json(place / "trained.json")
        found = Model.find(place / "model")
        network, tokenizer, offsets = found.load(), found.tokenizer(), trained["offsets"]
        config = DecompileConfig(offsets=offsets)
        given = [SequencesConfig(data=str(place / f"{part}.jsonl")) for part in ("data", "long")]
        short, long = (asked_of(each, tokenizer) for each in given)
        program = decompile(network, short, names_of(tokenizer, network.config.vocab_size), config)
        text = to_text(program.form)
        write_text(place / "program.py", text)
        near, far = (measure(program, network, each, offsets) for each in (short, long))
        shape = f"{learned.layers}, {learned.width}, {learned.heads}{' with positions' if learned.positions else ''}"
        cells = [
            f"{100 * near[key]:.1f} / {100 * far[key]:.1f}"
            for key in ("model_accuracy", "match", "program_accuracy", "most_common")
        ]
        cells[1] = f"{100 * program.match:.1f} / {100 * far['match']:.1f}"
        counts = f"{program.paths['written']} to {program.paths['left']}"
        print(
            f"| {name} | {shape} | {trained['seconds']:.0f} | {' | '.join(cells)} | {counts} | {own_lines(text)} |"
            f" {program.seconds:.0f} |",
            flush=True,
        )
    print(f"two figures: up to {_LONGEST} symbols (as the model: held back), and up to twice as many")
    print(f"load {machine_load()}")
