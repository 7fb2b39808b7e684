"""A model and a task from paths, as commands and stages name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lmlab.data.tokenizer import Tokenizer
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.hardware import memory_bytes, select_device
from lmlab.methods.edge_pruning.config import Ablation, GraphOptions, TaskOptions
from lmlab.methods.edge_pruning.examples.examples import Examples, read_examples
from lmlab.methods.edge_pruning.examples.tracr import EMBEDDINGS, is_tracr, load_tracr
from lmlab.methods.edge_pruning.graph.graph import CircuitGraph
from lmlab.methods.edge_pruning.masking.counterfactuals import Counterfactuals
from lmlab.methods.edge_pruning.masking.masked import MaskedModel
from lmlab.methods.edge_pruning.search.plan import plan
from lmlab.models import Transformer, weights_fingerprint
from lmlab.runs import Model, Vocabulary
from lmlab.train import ParallelConfig, parallelize


@dataclass(frozen=True)
class Loaded:
    """A model with its task.

    Attributes:
        ground_truth: edges of the known circuit, by ablation, for a compiled program.
        dropped: examples that were left out.
        model_hash: of the weights.
        places: where model and examples come from, as they were named.
    """

    model: Transformer
    examples: Examples
    tokenizer: Tokenizer | None
    embedding_names: Sequence[str]
    ground_truth: dict[str, list[tuple[str, str]]]
    dropped: int = 0
    model_hash: str = ""
    places: Mapping[str, str] = field(default_factory=dict)

    def about(self) -> dict[str, str]:
        """What a circuit notes of them: where they are, and hashes by which others are told from them."""
        known = {**self.places, "model_hash": self.model_hash, "data_hash": self.examples.fingerprint}
        return known | ({} if self.tokenizer is None else {"tokenizer_hash": self.tokenizer.fingerprint[:16]})

    def task(
        self, ablation: Ablation, graph: GraphOptions | None = None, options: TaskOptions | None = None
    ) -> tuple[Counterfactuals, list[str]]:
        """The task on the masked model, and the memory plan that goes with it."""
        options = options or TaskOptions()
        drawn = CircuitGraph(self.model.config, graph, self.embedding_names)
        examples = self.examples if options.examples is None else self.examples.take(slice(options.examples))
        rows, size = options.batch_size, self.model.embedding.weight.itemsize
        planned = plan(drawn, rows, examples.clean.shape[1], len(examples), size, options.recompute)
        masked = MaskedModel(self.model, drawn, options.recompute)
        masked.check(examples.clean[:1].to(self.model.embedding.weight.device))
        free = memory_bytes() if self.model.embedding.weight.device.type == "cpu" else torch.cuda.mem_get_info()[0]
        lines = [
            (
                f"{drawn.num_edges:,} edges, {len(drawn.writers)} writers, {len(drawn.readers)} readers;"
                f" {len(examples)} examples."
            ),
            *planned.lines(free),
        ]
        notes = [f"Note: {each}" for each in drawn.warnings()]
        return Counterfactuals(masked, examples, ablation, options.batch_size), [*lines, *notes]


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
        examples, dropped = (program.examples, 0) if data is None else read_examples(data, None, *how)
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
    examples, dropped = read_examples(data, reader, *how)
    network = source.load()
    digest = _hash(network)
    if shard:
        parallelize(network.requires_grad_(False), ParallelConfig(), world(), place, torch.float32)
    return Loaded(network.to(place), examples, reader, ("tok_embeds", "pos_embeds"), {}, dropped, digest, places)


def _hash(model: Transformer) -> str:
    return weights_fingerprint(model)[:16]
