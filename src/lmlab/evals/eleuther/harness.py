"""lmlab's models in EleutherAI's harness (`lm-eval`), so that all its tasks run on them.

Importing this module registers the model `lmlab`; `lmlab eval harness` does so and calls the harness.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  # its own models are registered only where there is none yet
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from lmlab.errors import UserError
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.perplexity import sliding_windows
from lmlab.evals.prefix_sharing import Window
from lmlab.evals.scoring import score_all
from lmlab.evals.tasks.questions import fit_window
from lmlab.models import GenerationConfig, generate

_BATCH = 16  # prompts of like length: more take memory for keys and values, fewer leave the machine idle
_MAX_NEW_TOKENS = 256  # the harness's own default for its models


@register_model("lmlab")
class HarnessModel(TemplateLM):
    """What the harness asks of a model.

    Arguments:
        pretrained: directory of a model.
        device, precision: as everywhere in lmlab.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str,
        device: str = "auto",
        precision: str = "auto",
        evaluator: Evaluator | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        self.evaluator = evaluator or Evaluator.load(Path(pretrained), device or "auto", precision)
        self.tokenizer = self.evaluator.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        return self.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """The model's window in tokens."""
        return self.evaluator.scorer.max_seq_len

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of chat templates."""
        return self.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, with what the tokenizer puts before every text unless that is refused or spelled there."""
        ids = self.tokenizer.encode(string)
        spelled = add_special_tokens is None and string.startswith(self.tokenizer.bos_token)
        return ids if add_special_tokens is False or spelled else [*self.tokenizer.begin_ids, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        windows = [Window([*context, *continuation], len(continuation)) for _, context, continuation in requests]
        fitted = [fit_window(window, self.max_length, "truncate", "A request")[0] for window in windows]
        return [
            (score.log_prob, score.greedy)
            for score in score_all(self.evaluator.scorer, [each for each in fitted if each], "log-likelihoods")
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in windows of the model's length that do not overlap in what they
        score. The harness also scores the begin token that a tokenizer puts before every text.
        """
        windows: list[Window] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            for window in sliding_windows(ids, self.max_length, self.max_length):
                windows.append(window)
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, score_all(self.evaluator.scorer, windows, "log-likelihoods"), strict=True):
            totals[owner] += score.log_prob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy (or, where a task asks for it, sampled) text up to one of the task's stop strings."""
        model = self.evaluator.model
        if model is None:
            raise UserError(
                "Tasks in which the model writes need one of lmlab's architectures; this one runs by"
                f" {self.evaluator.scorer.description}."
            )
        texts = [""] * len(requests)
        groups: dict[GenerationConfig, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(number)
        for settings, members in groups.items():
            members.sort(key=lambda number: -len(requests[number].args[0]))
            for start in range(0, len(members), _BATCH):
                batch = members[start : start + _BATCH]
                room = self.max_length - settings.max_new_tokens
                if room < 1:
                    raise UserError(
                        f"The task asks for {settings.max_new_tokens} new tokens, and the model reads {self.max_length}"
                        " in all."
                    )
                prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in batch]
                for number, (done,) in zip(
                    batch, generate(model, prompts, settings, decode=self.tokenizer.decode), strict=True
                ):
                    texts[number] = done.text or ""
        return texts

    def _settings(self, asked: dict[str, Any]) -> GenerationConfig:
        stop = asked.get("until") or []
        temperature = float(asked.get("temperature") or 0) if asked.get("do_sample") else 0.0
        return GenerationConfig(
            max_new_tokens=int(asked.get("max_gen_toks", _MAX_NEW_TOKENS)),
            temperature=temperature,
            top_p=asked.get("top_p") if temperature else None,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            eos_ids=self.evaluator.end_ids,
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text, by the tokenizer's own template."""
        if self.tokenizer.chat_template is None:
            raise UserError("The tokenizer has no chat template.")
        return self.tokenizer.chat_template.render(chat_history, add_generation_prompt)


def run_harness(
    evaluator: Evaluator,
    tasks: Sequence[str],
    limit: int | None = None,
    num_fewshot: int | None = None,
    include: Path | None = None,
) -> dict[str, Any]:
    """The results of the harness's tasks, as the harness gives them.

    Arguments:
        tasks: names that the harness knows.
        include: a folder with further task files of the harness.

    Raises:
        UserError: a task is unknown.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise UserError(f"The harness has no task '{unknown[0]}'.", "`lm-eval ls tasks` lists its tasks.")
    model = HarnessModel("", evaluator=evaluator)
    found: dict[str, Any] = simple_evaluate(
        model, tasks=list(tasks), limit=limit, num_fewshot=num_fewshot, task_manager=manager, bootstrap_iters=0
    )
    return found
