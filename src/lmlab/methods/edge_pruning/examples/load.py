"""A model and a task from paths, as commands and stages name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lmlab.data.tokenizer import Tokenizer
from lmlab.distributed import world
from lmlab.errors import UserError
from lmlab.hardware import memory_bytes, select_device
from lmlab.methods.edge_pruning.config import Ablation, GraphOptions
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
    """

    model: Transformer
    examples: Examples
    tokenizer: Tokenizer | None
    embedding_names: Sequence[str]
    ground_truth: dict[str, list[tuple[str, str]]]
    dropped: int = 0
    model_hash: str = ""

    def task(
        self,
        ablation: Ablation,
        options: GraphOptions | None = None,
        batch_size: int = 16,
        recompute: bool = False,
        most: int | None = None,
        learn_rows: int | None = None,
    ) -> tuple[Counterfactuals, list[str]]:
        """The task on the masked model, and the memory plan that goes with it.

        Arguments:
            most: take only so many examples.
            learn_rows: examples at once in a training step, for the plan; `batch_size` by default.
        """
        graph = CircuitGraph(self.model.config, options, self.embedding_names)
        examples = self.examples if most is None else self.examples.take(slice(most))
        size = self.model.embedding.weight.itemsize
        planned = plan(graph, learn_rows or batch_size, examples.clean.shape[1], len(examples), size, recompute)
        masked = MaskedModel(self.model, graph, recompute)
        masked.check(examples.clean[:1].to(self.model.embedding.weight.device))
        free = memory_bytes() if self.model.embedding.weight.device.type == "cpu" else torch.cuda.mem_get_info()[0]
        lines = [
            (
                f"{graph.num_edges:,} edges, {len(graph.writers)} writers, {len(graph.readers)} readers;"
                f" {len(examples)} examples."
            ),
            *planned.lines(free),
        ]
        return Counterfactuals(masked, examples, ablation, batch_size), [
            *lines,
            *(f"Note: {each}" for each in graph.warnings()),
        ]


def load(
    model: Path,
    data: Path | None = None,
    split: str | None = None,
    tokenizer: Path | None = None,
    device: str = "auto",
    drop_mismatched: bool = False,
    first_token: bool = False,
    shard: bool = False,
) -> Loaded:
    """Read a model directory (or a compiled program, which brings its cases) and examples.

    Arguments:
        shard: spread the weights over the processes of the job (FSDP2), for models that do not fit into the memory of
            one.

    Raises:
        UserError: one of them is missing or wrong.
    """
    place = select_device(device)
    if model.is_dir() and is_tracr(model):
        program = load_tracr(model)
        examples, dropped = (
            (program.examples, 0) if data is None else read_examples(data, None, split, drop_mismatched, first_token)
        )
        return Loaded(
            program.model.to(place), examples, None, EMBEDDINGS, program.ground_truth, dropped, _hash(program.model)
        )
    source = Model.find(model)
    if data is None:
        raise UserError(
            "There are no examples.",
            "Give --data FILE; make one with: lmlab circuits data ioi --tokenizer DIR --out FILE",
        )
    reader = source.tokenizer_if_any() if tokenizer is None else Vocabulary.find(tokenizer).load()
    examples, dropped = read_examples(data, reader, split, drop_mismatched, first_token)
    network = source.load()
    fingerprint = _hash(network)
    if shard:
        parallelize(network.requires_grad_(False), ParallelConfig(), world(), place, torch.float32)
    return Loaded(network.to(place), examples, reader, ("tok_embeds", "pos_embeds"), {}, dropped, fingerprint)


def _hash(model: Transformer) -> str:
    return weights_fingerprint(model)[:16]
