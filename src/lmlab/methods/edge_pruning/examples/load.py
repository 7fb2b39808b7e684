"""A model and a task from paths, as commands and stages name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lmlab.data.tokenizer import Tokenizer
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.hardware import memory_bytes, select_device
from lmlab.methods.edge_pruning.config import Ablation, GraphOptions, TaskOptions
from lmlab.methods.edge_pruning.examples.examples import Examples, read_examples, splits_of
from lmlab.methods.edge_pruning.examples.spans import spans_of
from lmlab.methods.edge_pruning.examples.tracr import EMBEDDINGS, is_tracr, load_tracr
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph, Spans
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.masked import MaskedModel
from lmlab.methods.edge_pruning.search.plan import plan
from lmlab.models import ModelConfig, Transformer, weights_fingerprint
from lmlab.runs import Model, Vocabulary
from lmlab.train import ParallelConfig, parallelize
from lmlab.words import counted

_LEAST_TO_SPLIT = 10  # examples; a share of fewer would leave one or two to measure on


@dataclass(frozen=True)
class Loaded:
    """A model with its task.

    Attributes:
        ground_truth: edges of the known circuit, by ablation, for a compiled program.
        dropped: examples that were left out.
        model_hash: of the weights.
        places: where model and examples come from, as they were named.
        held_out: examples that a search does not see, if there are any.
        seen: those whose prompt is among the prompts of the search all the same, clean or corrupted, where the file's
            splits have it so or no line stands apart from the others.
    """

    model: Transformer
    examples: Examples
    tokenizer: Tokenizer | None
    embedding_names: Sequence[str]
    ground_truth: dict[str, list[tuple[str, str]]]
    dropped: int = 0
    model_hash: str = ""
    places: Mapping[str, str] = field(default_factory=dict)
    held_out: Examples | None = None
    seen: int = 0

    def written(self, token: int) -> str:
        """The text of a token; of a program without a tokenizer its number."""
        return str(token) if self.tokenizer is None else self.tokenizer.decode([token])

    def about(self) -> dict[str, str]:
        """What a circuit notes of them: where they are, and hashes by which others are told from them."""
        known = {**self.places, "model_hash": self.model_hash, "data_hash": self.examples.fingerprint}
        return known | ({} if self.tokenizer is None else {"tokenizer_hash": self.tokenizer.fingerprint[:16]})

    def task(
        self,
        ablation: Ablation,
        graph: GraphOptions | None = None,
        options: TaskOptions | None = None,
        spans: Spans | None = None,
    ) -> tuple[Counterfactuals, list[str]]:
        """The task on the masked model, and the memory plan that goes with it.

        Arguments:
            spans: of the graph; by default those of the examples, where the graph tells positions apart.
        """
        options = options or TaskOptions()
        examples = self._taken(self.examples, options)
        spans = spans or spans_of(examples, "shared" if graph is None else graph.positions)
        drawn = CircuitGraph(self.model.config, graph, self.embedding_names, spans)
        rows, size = options.batch_size, self.model.embedding.weight.itemsize
        planned = plan(drawn, rows, examples.clean.shape[1], len(examples), size, options.recompute)
        masked = MaskedModel(self.model, drawn, options.recompute)
        masked.check(examples.clean[:1].to(self.model.embedding.weight.device))
        free = memory_bytes() if self.model.embedding.weight.device.type == "cpu" else torch.cuda.mem_get_info()[0]
        lines = [
            (
                f"{counted(drawn.num_edges, 'edges')}, {len(drawn.writers)} writers, {len(drawn.readers)} readers;"
                f" {counted(len(examples), 'examples')}."
            ),
            *planned.lines(free),
        ]
        notes = [f"Note: {each}" for each in drawn.warnings()]
        same = int((examples.clean == examples.corrupted).all(1).sum())
        if same and ablation == "interchange":
            notes.append(
                f"Warning: in {same:,} of {counted(len(examples), 'examples')} the corrupted prompt is the clean one,"
                " so that every circuit does them; distances are too small."
            )
        if self.seen and self.held_out is not None:
            notes.append(
                f"Warning: of {counted(len(self.held_out), 'examples')} that are held out {self.seen:,} have a prompt"
                " of the search, so that figures on them are too good."
            )
        return Counterfactuals(masked, examples, ablation, options.batch_size), [*lines, *notes]

    def held_out_task(self, task: Counterfactuals, options: TaskOptions) -> Counterfactuals | None:
        """The same task on the examples that were held out."""
        if self.held_out is None:
            return None
        return Counterfactuals(task.masked, self._taken(self.held_out, options), task.ablation, options.batch_size)

    @staticmethod
    def _taken(examples: Examples, options: TaskOptions) -> Examples:
        return examples if options.num_examples is None else examples.take(slice(options.num_examples))

    def apart(self, options: TaskOptions) -> Loaded:
        """With a share of the examples held out from the search, drawn in the same way each time; none where there are
        fewer than ten, or all have one prompt.
        """
        count = len(self._taken(self.examples, options))
        held = round(options.held_out * count)
        if self.held_out is not None or count < _LEAST_TO_SPLIT or not held:
            return self
        if held >= count:
            raise UserError(
                f"Of {counted(count, 'examples')} a share of {options.held_out:g} leaves none to search on.",
                "Hold out fewer, such as --held-out 0.2.",
            )
        examples = self._taken(self.examples, options)
        # a prompt that stands in several lines is held out in all of them, or in none; so is one that is the corrupted
        # input of another line, unless that joins nearly all lines, as where each takes the prompt of the next
        taken = _drawn(_alike(examples, corrupted=True), held, count)
        if 2 * len(taken) < held:
            taken = _drawn(_alike(examples), held, count)
        if not taken:
            return self
        inside = torch.zeros(count, dtype=torch.bool)
        inside[taken] = True
        searched, kept = (examples.take(each.nonzero()[:, 0]) for each in (~inside, inside))
        return replace(self, examples=searched, held_out=kept, seen=seen_in(kept, searched))


def _alike(examples: Examples, corrupted: bool = False) -> list[list[int]]:
    """Examples by their clean prompts, in groups that have none in common.

    Arguments:
        corrupted: nor is a clean prompt of one group a corrupted one of another; corrupted ones may be the same.
    """
    clean, other = examples.prompts, examples.corrupted_prompts
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(clean):
        groups.setdefault(prompt, []).append(number)
    if corrupted:
        for number, prompt in enumerate(other):
            one, two = groups[clean[number]], groups.get(prompt)
            if two is not None and two is not one:
                one, two = (one, two) if len(one) >= len(two) else (two, one)
                one += two
                for each in two:
                    groups[clean[each]] = one
    return list({id(each): each for each in groups.values()}.values())


def _drawn(groups: list[list[int]], held: int, count: int) -> list[int]:
    """Whole groups, until so many examples are held out; none where there is one group."""
    taken: list[int] = []
    if len(groups) > 1:
        for place in torch.randperm(len(groups), generator=torch.Generator().manual_seed(0)).tolist():
            if len(taken) < held and len(taken) + len(groups[place]) <= max(held, count // 2):
                taken += groups[place]
    return taken


def seen_in(held: Examples, searched: Examples) -> int:
    """How many examples have a clean prompt that a search on others read, clean or corrupted."""
    read = {*searched.prompts, *searched.corrupted_prompts}
    return sum(prompt in read for prompt in held.prompts)


def load_to_search(model: Path, options: TaskOptions, shard: bool = False) -> Loaded:
    """Read a model and examples to search on, with others held out: of a file whose lines name splits those of `test`
    or else `validation`, and of another a share. A compiled program is searched on all its cases.
    """
    if options.data is None:
        return load(model, options, shard)
    splits = [] if options.split is not None else splits_of(options.data)
    if "train" not in splits or not {"validation", "test"} & set(splits):
        return load(model, options, shard).apart(options)
    other = "test" if "test" in splits else "validation"
    found = load(model, options.model_copy(update={"split": "train"}), shard)
    held, dropped = _read(options.data, found, options.model_copy(update={"split": other}))
    return replace(found, held_out=held, dropped=found.dropped + dropped, seen=seen_in(held, found.examples))


def _read(data: Path, like: Loaded, options: TaskOptions) -> tuple[Examples, int]:
    how = options.split, options.drop_mismatched, options.first_token
    return read_examples(data, like.tokenizer, *how, **_limits(like.model.config))


def _limits(config: ModelConfig) -> dict[str, Any]:
    # rotary positions have no table that could be too short
    return {
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_seq_len if config.positions == "learned" else None,
    }


def load(model: Path, options: TaskOptions | None = None, shard: bool = False) -> Loaded:
    """Read a model directory (or a compiled program, which brings its cases) and examples.

    Arguments:
        shard: spread the weights over the processes of the job (FSDP2), for models that do not fit into the memory of
            one.

    Raises:
        UserError: one of them is missing or wrong.
    """
    options = options or TaskOptions()
    place, data = select_device(options.device), options.data
    how = options.split, options.drop_mismatched, options.first_token
    places = {"model": str(model), "data": str(data or model)}
    if model.is_dir() and is_tracr(model):
        program = load_tracr(model)
        examples, dropped = (
            (program.examples, 0) if data is None else read_examples(data, None, *how, **_limits(program.model.config))
        )
        known, digest = program.ground_truth, _hash(program.model)
        return Loaded(program.model.to(place), examples, None, EMBEDDINGS, known, dropped, digest, places)
    source = Model.find(model)
    if data is None:
        raise UserError(
            "There are no examples.",
            "Give --data FILE; make one with: lmlab circuits data ioi --tokenizer DIR --out FILE",
        )
    own = options.tokenizer
    reader = source.tokenizer_if_any() if own is None else Vocabulary.find(own).load()
    examples, dropped = read_examples(data, reader, *how, **_limits(source.config))
    network = source.load()
    digest = _hash(network)
    if shard:
        parallelize(network.requires_grad_(False), ParallelConfig(), world(), place, torch.float32)
    return Loaded(network.to(place), examples, reader, ("tok_embeds", "pos_embeds"), {}, dropped, digest, places)


def _hash(model: Transformer) -> str:
    return weights_fingerprint(model)[:16]
