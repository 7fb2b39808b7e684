"""Whether a program and its model, another program, or a rule give the same answers.

Shapes: B sequences, N places, C labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from lmlab.errors import UserError
from lmlab.hardware.threads import beat
from lmlab.methods.transformer_programs.network.convert import DISCRETE
from lmlab.methods.transformer_programs.network.model import ProgramTransformer
from lmlab.methods.transformer_programs.program.interpret import Execution, Interpreter
from lmlab.methods.transformer_programs.program.ir import Program, spelled
from lmlab.methods.transformer_programs.tasks.rasp import UNK

TOLERANCE = 1e-4  # of logits: sums in fp32 of another order differ by less, another rule by much more
_AT_ONCE = 4096  # sequences: more take memory, fewer start more passes
_SHOWN = 6  # labels in a message

Oracle = Callable[[Sequence[str]], Sequence[Any] | str]
"""The right labels of a sequence; `<pad>` or None where there is none."""


@dataclass
class VerificationReport:
    """What was compared, and what differed.

    Attributes:
        sequences, places: how many were compared.
        different: places with another answer, near ties left out.
        near_ties: places where two labels are within the tolerance and the answers differ.
        largest_difference: of logits, relative to the largest logit above 1.
        first: the first differing input: tokens, place, both answers, and the first variable that differs.
        exhaustive: all inputs up to this many symbols were tried; None if not all of any length.
    """

    sequences: int = 0
    places: int = 0
    different: int = 0
    near_ties: int = 0
    largest_difference: float = 0.0
    first: dict[str, Any] | None = None
    exhaustive: int | None = None
    against: str = "model"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether nothing differed."""
        return self.different == 0

    def record(self) -> dict[str, Any]:
        """For a manifest."""
        found = asdict(self) | {"equal": self.equal}
        extra = found.pop("extra")
        return found | extra

    def add(self, other: VerificationReport) -> None:
        """Count another comparison too."""
        self.sequences += other.sequences
        self.places += other.places
        self.different += other.different
        self.near_ties += other.near_ties
        self.largest_difference = max(self.largest_difference, other.largest_difference)
        self.first = self.first or other.first


def verify(
    model: ProgramTransformer,
    program: Program,
    sequences: Sequence[Sequence[str]],
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> VerificationReport:
    """Compare the arg-max model with its program: answers and logits.

    Arguments:
        seed: the model's seed, by its place.
        sequences: tokens, marks included.
        advance: is told how many more sequences are compared, batch by batch.
    """
    report, interpreter = VerificationReport(), Interpreter(program)
    kept = _columns(model, program)
    for part in batched(sequences):
        beat()  # a million short sequences are minutes of work, in which the machine may become busy
        execution = interpreter.run(part)
        ids = encode(model, part)
        with torch.no_grad():
            logits = model(ids, DISCRETE)[seed].double().numpy()[..., kept]
        if model.spec.pool_outputs and model.spec.pool_over == "context":
            # the reference divides by the padded length, which scales all logits alike
            logits = logits * (ids.shape[1] / execution.lengths_B)[:, None]
        _compare(report, execution, logits)
        if report.first and "variable" not in report.first:
            report.first["variable"] = _first_variable(model, execution, ids, report.first["row"], seed)
            report.first.pop("row")
        if advance is not None:
            advance(len(part))
    return report


def _columns(model: ProgramTransformer, program: Program) -> list[int]:
    """The model's columns of the program's labels.

    Raises:
        UserError: they cannot be of one training.
    """
    spec = model.spec
    names = {label: place for place, label in enumerate(spec.labels) if label not in spec.masked_labels}
    if set(names) != set(program.labels):
        raise UserError(
            f"The program answers {_listed(program.labels)} and the network {_listed(names)}: they are not of one"
            " training."
        )
    _same_kind(program, spec.pool_outputs, "network")
    return [names[label] for label in program.labels]


def _listed(labels: Iterable[str]) -> str:
    names = [repr(label) for label in labels]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _same_kind(program: Program, pooled: bool, other: str) -> None:
    if program.pool_outputs != pooled:
        kinds = {True: "one answer a sequence", False: "an answer for each token"}
        raise UserError(f"The program gives {kinds[program.pool_outputs]}, the {other} {kinds[pooled]}.")


def compare_programs(first: Program, second: Program, sequences: Sequence[Sequence[str]]) -> VerificationReport:
    """Compare the answers of two programs; labels are compared by name."""
    _same_kind(first, second.pool_outputs, "other program")
    report = VerificationReport(against="other program")
    ours, theirs = Interpreter(first), Interpreter(second)
    for part in batched(sequences):
        one, other = ours.run(part), theirs.run(part)
        _count_answers(report, part, one.answers, other.answers, _ties(one))
    return report


def compare_oracle(program: Program, oracle: Oracle, sequences: Sequence[Sequence[str]]) -> VerificationReport:
    """Compare the answers of a program with the right ones."""
    report, interpreter = VerificationReport(against="oracle"), Interpreter(program)
    for part in batched(sequences):
        execution = interpreter.run(part)
        expected = [_ruled(oracle, each, program.pool_outputs) for each in part]
        _count_answers(report, part, execution.answers, expected, None)
    return report


def _ruled(oracle: Oracle, tokens: Sequence[str], pooled: bool) -> Any:
    """The right labels of one sequence.

    Raises:
        UserError: the rule fails, or gives something else.
    """
    try:
        found = oracle(list(tokens))
    except Exception as error:  # code of the user's
        told = f"{type(error).__name__}: {error}"
        raise UserError(f"The oracle fails on the {len(tokens)} tokens {' '.join(tokens)!r:.100}: {told}.") from error
    if pooled:
        return _label(found)
    if isinstance(found, str) or not isinstance(found, Sequence) or len(found) != len(tokens):
        raise UserError(
            f"The oracle gives {found!r:.100} for the {len(tokens)} tokens {' '.join(tokens)!r:.100}.",
            "It must give a label for each, None where there is none.",
        )
    return [_label(each) for each in found]


def _label(found: Any) -> str | None:
    """A label as programs and files have it: a number is its text."""
    return None if found is None else str(found)


def _ties(execution: Execution) -> np.ndarray:
    """Where the two highest logits are within the tolerance."""
    if execution.logits.shape[-1] < 2:
        return np.zeros(execution.logits.shape[:-1], dtype=bool)
    highest = np.sort(execution.logits, -1)[..., -2:]
    near: np.ndarray = highest[..., 1] - highest[..., 0] <= TOLERANCE * np.maximum(1.0, np.abs(highest[..., 1]))
    return near


def _compare(report: VerificationReport, execution: Execution, logits: np.ndarray) -> None:
    ours, theirs = execution.logits, logits
    if not execution.program.pool_outputs:
        valid = np.arange(ours.shape[1])[None, :] < execution.lengths_B[:, None]
        theirs = theirs[:, : ours.shape[1]]
    else:
        valid = np.ones(len(ours), dtype=bool)
    scale = np.maximum(1.0, np.abs(ours).max(-1, initial=1.0))
    distance = np.abs(ours - theirs).max(-1, initial=0.0) / scale
    wrong = (ours.argmax(-1) != theirs.argmax(-1)) & valid
    # a tie is one only where the logits themselves agree
    tie = wrong & _ties(execution) & (distance <= TOLERANCE)
    wrong = (wrong & ~tie) | ((distance > 10 * TOLERANCE) & valid)
    report.sequences += len(ours)
    report.places += int(valid.sum())
    report.different += int(wrong.sum())
    report.near_ties += int(tie.sum())
    report.largest_difference = max(report.largest_difference, float((distance * valid).max(initial=0.0)))
    if wrong.any() and report.first is None:
        row, *place = np.argwhere(wrong)[0].tolist()
        at = (row, *place)
        labels = execution.program.labels
        report.first = {
            "tokens": execution.tokens[row],
            "place": place[0] if place else None,
            "program": labels[int(ours[at].argmax())],
            "model": labels[int(theirs[at].argmax())],
            "row": row,
        }


def _count_answers(
    report: VerificationReport, part: Sequence[Sequence[str]], ours: list[Any], theirs: list[Any],
    ties: np.ndarray | None,
) -> None:  # fmt: skip
    for row, (tokens, one, other) in enumerate(zip(part, ours, theirs, strict=True)):
        pooled = isinstance(one, str)
        report.sequences += 1
        for place, (a, b) in enumerate(zip([one], [other], strict=True) if pooled else zip(one, other, strict=True)):
            if b is None or (report.against == "oracle" and b == "<pad>"):
                continue
            report.places += 1
            if a == b:
                continue
            if ties is not None and (ties[row] if pooled else ties[row, place]):
                report.near_ties += 1
                continue
            report.different += 1
            report.first = report.first or {
                "tokens": list(tokens), "place": None if pooled else place, "program": a, report.against: b,
            }  # fmt: skip


def _first_variable(
    model: ProgramTransformer, execution: Execution, ids: torch.Tensor, row: int, seed: int
) -> dict[str, Any] | None:
    """The first variable of the program that the model computes otherwise."""
    spec = model.spec
    with torch.no_grad():
        cat, num = model.streams(ids[row : row + 1], DISCRETE)
    length = int(execution.lengths_B[row])
    cats, nums = spec.cat_names(spec.num_layers), spec.num_names(spec.num_layers)
    names: list[list[Any]] = [[f"Emb{i}.V{j:02d}" for j in range(spec.d_var)] for i in range(spec.embedding_vars)]
    names = names or [[*spec.vocabulary, *[None] * (spec.d_var - len(spec.vocabulary))]]
    values: dict[str, list[Any]] = dict(zip(cats, [*names, list(range(spec.d_var))], strict=False))
    for name in execution.program.variables:
        if name in nums:
            theirs = num[seed, nums.index(name), 0, :length, 0].tolist()
        elif name in cats:
            if name not in values:
                node = execution.program.node(name)
                values[name] = list(range(spec.d_var)) if node.op == "lookup" else values[node.reads[2]]
            chosen = cat[seed, cats.index(name), 0, :length].argmax(-1).tolist()
            theirs = [values[name][each] for each in chosen]
        else:
            continue
        ours = execution.variable(name, row)
        if ours != theirs:
            return {"name": name, "program": ours, "model": theirs}
    return None


def encode(model: ProgramTransformer, sequences: Sequence[Sequence[str]]) -> torch.Tensor:
    """Numbers of tokens (B, N), padded with 0 to the model's context.

    Raises:
        UserError: a token is not in a vocabulary without `<unk>`.
    """
    index = {token: number for number, token in enumerate(model.spec.vocabulary)}
    unknown = index.get(UNK)
    longest = max(model.spec.context, max(map(len, sequences), default=0))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, each in zip(ids, sequences, strict=True):
        words = [spelled(token, model.spec.lower, model.spec.replace_numbers) for token in each]
        numbers = [index.get(word, unknown) for word in words]
        if None in numbers:
            raise UserError(f"The network's vocabulary has no token {words[numbers.index(None)]!r:.100}.")
        row[: len(each)] = torch.tensor(numbers)
    return ids


def every_input(
    symbols: Sequence[str], longest: int, bos: str | None = None, eos: str | None = None, shortest: int = 1
) -> Iterator[list[str]]:
    """All sequences of `shortest` to `longest` symbols, between the marks."""
    for length in range(shortest, longest + 1):
        for chosen in itertools.product(symbols, repeat=length):
            yield [*([bos] if bos else []), *chosen, *([eos] if eos else [])]


def random_inputs(
    symbols: Sequence[str], longest: int, count: int, seed: int = 0, bos: str | None = None, eos: str | None = None
) -> list[list[str]]:
    """Random sequences of every length, about equally many."""
    random, found = np.random.default_rng(seed), list[list[str]]()
    for number in range(count):
        chosen = random.integers(len(symbols), size=1 + number % longest).tolist()
        found.append([*([bos] if bos else []), *(symbols[each] for each in chosen), *([eos] if eos else [])])
    return found


def batched(sequences: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Parts that fit into memory."""
    iterator = iter(sequences)
    while part := list(itertools.islice(iterator, _AT_ONCE)):
        yield part
