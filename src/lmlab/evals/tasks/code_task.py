"""Tasks in which the model writes code that is run: pass@k (Chen et al. 2021, section 2.1).

```yaml
name: humaneval
kind: code
requests: HumanEval.jsonl   # HumanEval's or MBPP's layout, or a plain one (`lmlab.evals.code.problems`)
samples: 20
k: [1, 10]
temperature: 0.8
```
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from lmlab.data import encode_for_answer
from lmlab.errors import UserError
from lmlab.evals.code.problems import Problem, fenced, read_problems
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.measurement import Measurement, mean
from lmlab.evals.rows import Row
from lmlab.evals.tasks.task import Asked, Metric, Settings, Task
from lmlab.stats import pass_at_k

if TYPE_CHECKING:
    from lmlab.sandbox import Executor

_ASKED = (1, 2, 3, 5, 10, 20, 50, 100)  # the k that papers report: each is a metric, and a class declares its metrics


class CodeTask(Task):
    """Writes functions, which are run with their tests in a sandbox.

    Attributes:
        requests: a file of problems, relative to the task's own.
        samples: answers to each problem.
        k: which pass@k are reported, each at most `samples`.
        form: the model goes on with the beginning of a program (`completion`), or is asked in its chat template
            (`chat`) and answers with a fenced block.
        temperature, top_p: of the draws; by default greedy for one sample, else 0.8 and 0.95.
        max_new_tokens: most tokens of an answer.
        stop: strings that end an answer, beside those of the layout; in chats only these.
        timeout_s: seconds of one answer with its tests.
        memory_mib: of its processes together.
        executor: kind of sandbox, as `lmlab swe doctor` lists them; one without walls is never used.
    """

    kind: Literal["code"] = "code"
    samples: PositiveInt = 1
    k: tuple[PositiveInt, ...] = (1,)
    form: Literal["completion", "chat"] = "completion"
    temperature: NonNegativeFloat | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: PositiveInt = 512
    stop: tuple[str, ...] = ()
    timeout_s: PositiveFloat = 10.0
    memory_mib: PositiveInt = 1024
    executor: str = "auto"
    seed: int = 0

    metrics: ClassVar[Mapping[str, Metric]] = {f"pass@{k}": Metric(f"pass@{k}") for k in _ASKED}
    figure_fields: ClassVar[tuple[str, ...]] = ("k",)

    @model_validator(mode="after")
    def _check(self) -> CodeTask:
        for k in self.k:
            if k not in _ASKED:
                raise ValueError(f"k: {k} is not one of {', '.join(map(str, _ASKED))}.")
            if k > self.samples:
                raise ValueError(f"k: pass@{k} needs {k} samples, and samples is {self.samples}.")
        if not self.k:
            raise ValueError("k: at least one is needed.")
        if self.executor == "local":
            raise ValueError("executor: 'local' has no walls, and a model's code is never run without.")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("temperature: 0 makes all samples the same; take one sample, or a temperature above 0.")
        return self

    def items(self) -> list[Problem]:
        """The problems."""
        return read_problems(Path(self.requests))

    def rows(self, evaluator: Evaluator, items: Sequence[Problem], settings: Settings) -> Iterator[Row]:
        """The answers to each problem, and how each fared."""
        from lmlab.evals.code.checking import check_answers, workers_here
        from lmlab.sandbox import Limits

        if evaluator.model is None:
            raise UserError(
                f"Task '{self.name}' needs a model that writes, and this one runs by {evaluator.scorer.description}.",
                "Leave the task out.",
            )
        executor = self._executor()
        limits = Limits(timeout_s=self.timeout_s, memory_mib=self.memory_mib, disk_mib=64, output_mib=1.0, processes=64)
        for problem in items:
            answers = self._answers(evaluator, problem, settings)
            if answers is None:
                yield {"id": problem.id, "domain": problem.domain, "skipped": True}
                continue
            outcomes = check_answers(executor, [(problem, answer) for answer in answers], limits, workers_here())
            found = list(outcomes)
            yield {
                "id": problem.id,
                "domain": problem.domain,
                "answers": answers,
                "outcomes": [each.status for each in found],
                "reasons": [each.reason for each in found],
            }

    def _executor(self) -> Executor:
        from lmlab.sandbox import choose_executor

        try:
            return choose_executor(self.executor)
        except UserError as error:
            raise UserError(
                f"Task '{self.name}' runs what a model has written, which needs a sandbox. {error.message}",
                "Install bubblewrap (apt install bubblewrap), or leave the task out.",
            ) from None

    def _answers(self, evaluator: Evaluator, problem: Problem, settings: Settings) -> list[str] | None:
        """What the model writes for a problem; None where its prompt does not fit and such ones are left out."""
        from lmlab.models import GenerationConfig, generate

        model, tokenizer = evaluator.model, evaluator.tokenizer
        assert model is not None
        if self.form == "chat":
            ids = encode_for_answer(tokenizer, [{"role": "user", "content": _request(problem)}])
        else:
            ids = tokenizer.encode_prompt(problem.prompt)
        too_many = len(ids) + self.max_new_tokens - model.config.max_seq_len
        if too_many > 0:
            if settings.too_long == "skip":
                return None
            raise UserError(
                f"Problem '{problem.id}' has {len(ids)} tokens; with {self.max_new_tokens} new ones that is more than"
                f" the model's {model.config.max_seq_len}.",
                "Set too_long to skip, or lower max_new_tokens; the beginning of a program is never cut.",
            )
        greedy = self.samples == 1
        # as pass@k is usually sampled (Chen et al. 2021): more variety for a larger k
        temperature = self.temperature if self.temperature is not None else (0.0 if greedy else 0.8)
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            top_p=self.top_p if self.top_p is not None else (None if temperature == 0 else 0.95),
            num_samples=self.samples,
            seed=self.seed,
            stop=self.stop if self.form == "chat" else (*problem.stop, *self.stop),
            eos_ids=evaluator.end_ids,
        )
        (found,) = generate(model, [ids], config, decode=tokenizer.decode)
        texts = [each.text or "" for each in found]
        if self.form == "completion":
            return texts
        return [self._completed(problem, fenced(text, problem.entry_point)) for text in texts]

    @staticmethod
    def _completed(problem: Problem, program: str) -> str:
        """A whole program as an answer: behind a beginning it defines the function anew, on a line of its own."""
        if not problem.begins:
            return program
        # The beginning ends within a function: a body makes it whole, then the answer's own definition counts
        return f"    pass\n\n{program}"

    def figures(self, rows: Sequence[Row]) -> dict[str, Measurement]:
        """pass@k, and the shares of answers that did not come to an end or forged."""
        found = {f"pass@{k}": mean(self.values(rows, f"pass@{k}")) for k in self.k}
        for status in ("timed out", "out of memory", "forged"):
            if any(status in row["outcomes"] for row in rows):
                name = status.replace(" ", "_")
                found[name] = mean([row["outcomes"].count(status) / len(row["outcomes"]) for row in rows])
        return found

    def values(self, rows: Sequence[Row], metric: str) -> list[float]:
        """pass@k of each problem."""
        k = int(metric.removeprefix("pass@"))
        return [pass_at_k(len(row["outcomes"]), row["outcomes"].count("passed"), k) for row in rows]

    def main_metric(self, rows: Sequence[Row] = ()) -> str:
        """pass@k of the first k, unless another is named."""
        return self.metric or f"pass@{self.k[0]}"

    def chance_level(self, rows: Sequence[Row]) -> float | None:
        """There is none."""
        return None

    def further(self, rows: Sequence[Row]) -> dict[str, Any]:
        """How many answers ended how."""
        return {"outcomes": dict(Counter(status for row in rows for status in row["outcomes"]).most_common())}

    def asked(self) -> Iterator[Asked]:
        """The prompt, and the benchmark's own solution."""
        for each in self.items():
            yield Asked(each.id, each.domain, each.prompt.split("\n"), [each.solution] if each.solution else [])


def _request(problem: Problem) -> str:
    """A problem as a message."""
    if problem.begins:
        return (
            "Complete this Python function. Answer with the whole program in one fenced block.\n\n```python\n"
            f"{problem.prompt.rstrip()}\n```"
        )
    return f"Write a Python program. Answer with it in one fenced block.\n\n{problem.prompt.strip()}"
