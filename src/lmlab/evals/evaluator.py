"""A model that can be measured: ours, or any other architecture by way of `transformers`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from lmlab.data import Tokenizer
from lmlab.errors import UserError, missing_extra
from lmlab.evals.prefix_sharing import Window
from lmlab.evals.scoring import ModelScorer, Score, Scorer
from lmlab.hardware import select_device, select_dtype
from lmlab.models import Transformer, family_of, read_config
from lmlab.runs import Model

_TOKENS_A_BATCH = 2048  # of logits over the whole vocabulary, which take the most memory here
_DEFAULT_WINDOW = 2048  # as EleutherAI's harness takes where a configuration does not tell


@dataclass(frozen=True)
class Evaluator:
    """Whatever measures need of a model.

    Attributes:
        scorer: log-probabilities of tokens.
        model: the transformer itself, for tasks in which it writes; None for an architecture that is not ours.
        more_ends: tokens that end what it writes, beside the tokenizer's end: those of its generation settings.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    model: Transformer | None = None
    more_ends: tuple[int, ...] = ()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All tokens that end what the model writes; tuned models often end a turn with another than a text."""
        return tuple(dict.fromkeys((self.tokenizer.eos_id, *self.more_ends)))

    @classmethod
    def load(cls, place: Model | str | Path, device: str = "auto", precision: str = "auto") -> Evaluator:
        """From wherever `Model.find` finds one.

        An architecture that lmlab does not have is run by `transformers`, and the scorer's description says so.

        Raises:
            UserError: there is no model, or nobody knows its architecture.
        """
        found = place if isinstance(place, Model) else Model.find(place)
        where = select_device(device)
        dtype = select_dtype(precision, where)
        if found.form == "directory":
            try:
                read_config(found.path)
            except UserError as reason:
                return cls(TransformersScorer(_load_other(found.path, where, dtype, reason)), found.tokenizer())
        model = found.load_in(precision, where)
        return cls(ModelScorer(model, precision), found.tokenizer(), model, found.end_token_ids())

    @property
    def begins_windows(self) -> bool:
        """Whether the model is lost in a text that does not begin with the begin mark, also in the midst of one, as
        Gemma is.
        """
        family = None if self.model is None else family_of(self.model.config, self.model.read_as)
        return family is not None and family.begins_windows


class TransformersScorer:
    """Scores by a causal language model of `transformers`: padded batches by length, every window read whole."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self.max_seq_len = next(
            (int(n) for key in ("max_position_embeddings", "n_positions") if (n := getattr(config, key, None))),
            _DEFAULT_WINDOW,
        )
        self.description = (
            f"transformers ({type(model).__name__}: not an architecture of lmlab),"
            f" {str(model.dtype).removeprefix('torch.')}"
        )

    @torch.no_grad()
    def score(self, windows: Sequence[Window]) -> Iterator[tuple[int, Score]]:
        """The number of each window and its score, in any order, as they come."""
        order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
        while order:
            size = max(1, _TOKENS_A_BATCH // len(windows[order[0]].ids))
            batch, order = order[:size], order[size:]
            yield from zip(batch, self._run([windows[index] for index in batch]), strict=True)

    def _run(self, windows: Sequence[Window]) -> Iterator[Score]:
        longest = len(windows[0].ids) - 1
        inputs = torch.tensor(
            [[*window.ids[:-1], *[0] * (longest + 1 - len(window.ids))] for window in windows], device=self.model.device
        )
        lengths = torch.tensor([len(window.ids) - 1 for window in windows], device=self.model.device)
        mask = torch.arange(longest, device=self.model.device)[None] < lengths[:, None]
        logits = self.model(input_ids=inputs, attention_mask=mask.long()).logits
        for row, window in enumerate(windows):
            stop = len(window.ids) - 1
            found = logits[row, stop - window.num_scored : stop].float()
            labels = torch.tensor(window.ids[len(window.ids) - window.num_scored :], device=found.device)
            log_prob = -F.cross_entropy(found, labels, reduction="none").double().sum()
            greedy = found.argmax(-1) == labels
            yield Score(float(log_prob), bool(greedy.all()), int(greedy.sum()))


def _load_other(directory: Path, device: torch.device, dtype: torch.dtype, reason: UserError) -> Any:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise missing_extra("transformers", "An architecture that lmlab does not have") from None
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # it checks configurations by errors of many kinds
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{reason.message} Nor can transformers load it: {told}", reason.remedy) from None
    return model.to(device).eval()
