"""What a model makes of the questions about one context: written answers, or the probability of the right one.

In the mode `generate` a model writes, greedily, up to the instance's budget or a stop string. In the mode `forced` it
reads the right answer, and each of its tokens counts as found where it is the likeliest one: one pass over the question
in place of one for each token. Where there are options, the most probable one is its choice.

Whatever the questions share is computed once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lmlab.errors import UserError
from lmlab.evals.evaluator import Evaluator
from lmlab.evals.generation import rouge
from lmlab.evals.long import metrics
from lmlab.evals.long.asking import Asking
from lmlab.evals.long.config import Mode
from lmlab.evals.long.instance import Instance
from lmlab.evals.prefix_sharing import Window
from lmlab.evals.rows import Row
from lmlab.evals.scoring import Score, Scorer
from lmlab.models import Transformer, continue_shared, generate
from lmlab.models.generation.config import DecodingConfig

_AT_ONCE = 8  # continuations of one batch where nothing is shared


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        finish: `stop` or `length`.
    """

    text: str
    finish: str = "stop"


class Writer(Protocol):
    """Whatever writes answers.

    Attributes:
        max_seq_len: the longest prompt with its answer; None where that is not known.
    """

    max_seq_len: int | None

    def write(self, instances: Sequence[Instance], contexts: Sequence[str | None]) -> list[Written]:
        """The answer to each question, with another context in place of its own where one is given."""
        ...


@dataclass
class ModelWriter:
    """A transformer of lmlab writes.

    Attributes:
        share: read what prompts have in common once.
        stops: end answers at the instances' stop strings.
        end_ids: tokens that end an answer, by default the tokenizer's end alone.
    """

    model: Transformer
    asking: Asking
    share: bool = True
    stops: bool = True
    end_ids: Sequence[int] = ()
    max_seq_len: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.max_seq_len = self.model.config.max_seq_len

    def write(self, instances: Sequence[Instance], contexts: Sequence[str | None]) -> list[Written]:
        """Greedily."""
        tokenizer = self.asking.tokenizer
        prompts = [self.asking.ids(each, context) for each, context in zip(instances, contexts, strict=True)]
        configs = [
            DecodingConfig(
                max_new_tokens=each.budget,
                temperature=0,
                stop=tuple(each.stop) if self.stops else (),
                eos_ids=tuple(self.end_ids) or (tokenizer.eos_id,),
            )
            for each in instances
        ]
        scaling = self.model.config.rope_scaling
        if not self.share or (scaling is not None and scaling.depends_on_length):
            found = []
            for start in range(0, len(prompts), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                found += generate(self.model, prompts[part], configs[part], decode=tokenizer.decode)
            return [Written(done.text or "", done.finish_reason) for (done,) in found]
        rows = continue_shared(self.model, list(zip(prompts, configs, strict=True)), tokenizer.decode)
        return [
            Written(_until(tokenizer.decode(row.ids), config.stop), str(row.finish_reason))
            for row, config in zip(rows, configs, strict=True)
        ]


def _until(text: str, stops: Sequence[str]) -> str:
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def measure_written(writer: Writer, group: Sequence[Instance], controls: bool) -> Iterator[Row]:
    """The rows of the questions about one context, by what is written."""
    plain = [each for each in group if each.task != "ppl_gain"]
    if not plain:
        return
    asked: list[tuple[Instance, str, str | None]] = [(each, "", None) for each in plain]
    if controls:
        asked += [(each, name, context) for each in plain for name, context in _controls(each)]
    own = [number for number, (_, name, _) in enumerate(asked) if not name]
    others = [number for number, (_, name, _) in enumerate(asked) if name]
    found: dict[int, Written] = {}
    for numbers in (own, others):  # controls have short contexts of their own
        if numbers:
            written = writer.write([asked[n][0] for n in numbers], [asked[n][2] for n in numbers])
            found |= dict(zip(numbers, written, strict=True))
    for number, instance in enumerate(plain):
        row = _row(instance)
        row |= {"output": found[number].text, "cut": found[number].finish == "length"}
        row |= judge(instance, found[number].text)
        for place in others:
            if asked[place][0] is instance:
                figures = judge(instance, found[place].text)
                row[asked[place][1]] = {"score": figures["score"], "output": found[place].text}
        yield row


def judge(instance: Instance, output: str) -> Row:
    """The figures of a written answer, the first of them its score; whether it could be parsed, and whether it
    declines. What repeats how the answer begins, as models of chat do ("label: 3"), is read from there on.
    """
    output = _behind_prefix(output, instance.prefix.strip())
    first = output.strip().split("\n", 1)[0].strip()
    answers, meta = instance.answer, instance.meta
    parsed: bool = bool(first)
    figures: dict[str, float]
    match instance.task:
        case "rerank":
            ranking = [name for name in metrics.parse_ranking(output) if name in meta["labels"]]
            parsed = bool(ranking)
            figures = {"ndcg10": metrics.ndcg(ranking, meta["labels"])}
        case "icl":
            word = first if instance.variant == "natural_label" else first.split(" ")[0].strip(".,")
            parsed = bool(word) and (not instance.options or word.lower() in map(str.lower, instance.options))
            figures = {"exact_match": metrics.best_exact(word, answers)}
        case "longqa":
            word = (first.lower().split() or [""])[0].strip(".,:;!'\"")
            parsed = word in ("yes", "no")
            figures = {"accuracy": float(word == answers[0])}
        case "summ":
            text, expected = output.strip(), answers[0]
            figures = {name: rouge("rougeL", part)(text, expected) for name, part in _ROUGE}  # type: ignore[arg-type]
            if meta.get("facts"):
                figures["facts"] = metrics.share_of_words(text, meta["facts"])
        case "niah_multivalue":
            figures = {"recall": metrics.share_found(output, meta["values"])}
        case "repo_def":
            given = first.split(")")[0]
            figures = {
                "exact_match": float(" ".join(given.split()) == " ".join(answers[0].split())),
                "edit_similarity": metrics.edit_similarity(given, answers[0]),
            }
        case "answer":
            texts = (output.strip(), first)
            found_rouge = [rouge("rougeL", "fmeasure")(text, each) for text in texts for each in answers]
            figures = {
                "rougeL": max(found_rouge),
                "f1": max(metrics.best_f1(text, answers) for text in texts),
                "exact_match": max(metrics.best_exact(text, answers) for text in texts),
            }
        case "choice":
            figures = {"exact_match": metrics.right_choice(output, first, answers)}
        case "alce_asqa":
            figures = {"str_em": metrics.share_of_groups(metrics.without_citations(first), meta["answers"])}
            figures["citations"] = float(len(metrics.citations(first)))
        case "alce_qampari":
            figures = metrics.listed_answers(metrics.without_citations(first), meta["answers"])
            figures["citations"] = float(len(metrics.citations(first)))
        case "proc":
            figures = {
                "row_f1": metrics.row_f1(output, answers[0]),
                "before_error": metrics.right_before_error(output, answers[0]),
            }
        case _:
            figures = {"substring_match": max(metrics.substring_match(text, answers) for text in (output, first))}
            if instance.task == "rag":
                figures["f1"] = metrics.best_f1(first, answers)
    main = next(iter(figures))
    found: Row = {"metric": main, "score": figures[main], "figures": figures, "parsed": parsed}
    if instance.task.startswith("alce"):  # for whoever asks whether they bear out what they are cited for
        shown = meta.get("documents", [])
        found["read"] = first
        found["cited"] = {str(n): shown[n - 1] for n in metrics.citations(first) if 1 <= n <= len(shown)}
    return found | {"refused": metrics.is_refusal(output)}


def _behind_prefix(output: str, prefix: str) -> str:
    """What an output says after the answer's beginning, where a line of it begins so; else all of it."""
    found = re.search(rf"^[ \t]*{re.escape(prefix)}", output, re.IGNORECASE | re.MULTILINE) if prefix else None
    return output[found.end() :] if found else output


_ROUGE = (("rougeL", "fmeasure"), ("rougeL_recall", "recall"))


def measure_forced(scorer: Scorer, asking: Asking, group: Sequence[Instance], controls: bool) -> Iterator[Row]:
    """The rows of the questions about one context, by the probability of the right answer."""
    windows: list[Window] = []
    wanted: list[tuple[Instance, dict[str, int]]] = []

    def add(ids: Sequence[int], scored: int) -> int:
        windows.append(Window(list(ids), scored))
        return len(windows) - 1

    for instance in group:
        if instance.task == "ppl_gain":
            ids = asking.ids(instance)[: instance.length]
            part = len(ids) // 4  # the last quarter, behind all of the text and behind the quarter before it
            # a text that lacks the begin mark is strange to some models, wherever it was cut
            near = [*asking.tokenizer.begin_ids, *ids[-2 * part :]]
            wanted.append((instance, {"all": add(ids, part), "near": add(near, part)}))
            continue
        prompt = asking.ids(instance)
        # of an answer that is longer than the budget, as abstracts are, what fits the length
        answer = asking.answer_ids(prompt, instance, instance.answer[0])[: instance.budget]
        numbers = {"gold": add([*prompt, *answer], len(answer))}
        for option, ids in asking.option_ids(prompt, instance).items() if instance.options else ():
            numbers[f"option {option}"] = add([*prompt, *ids], len(ids))
        for name, context in _controls(instance) if controls or instance.task == "summ" else []:
            before = asking.ids(instance, context)
            numbers[f"control {name}"] = add([*before, *answer], len(answer))
        wanted.append((instance, numbers))
    scores: dict[int, Score] = dict(scorer.score(windows))
    for instance, numbers in wanted:
        sizes = {name: windows[number].num_scored for name, number in numbers.items()}
        yield _row(instance) | _forced_figures(
            instance, {name: scores[number] for name, number in numbers.items()}, sizes
        )


def _forced_figures(instance: Instance, scores: dict[str, Score], sizes: dict[str, int]) -> Row:
    nll = {name: -score.log_prob / sizes[name] for name, score in scores.items()}
    if instance.task == "ppl_gain":
        gain = nll["near"] - nll["all"]
        return {"metric": "nll_gain", "score": None, "nll": nll["all"], "figures": {"nll_gain": gain}}
    gold = scores["gold"]
    row: Row = {
        "nll": nll["gold"],
        "token_accuracy": None if gold.num_greedy is None else gold.num_greedy / sizes["gold"],
        "greedy": float(gold.greedy),
    }
    for name in scores:
        if name.startswith("control "):
            row[name.removeprefix("control ")] = {"score": float(scores[name].greedy), "nll": nll[name]}
    figures: dict[str, float] = {"greedy_match": row["greedy"]}
    options = {name.removeprefix("option "): score for name, score in scores.items() if name.startswith("option ")}
    if options:
        by_token = instance.variant == "natural_label"
        worth = {name: score.log_prob / (sizes[f"option {name}"] if by_token else 1) for name, score in options.items()}
        ranking = sorted(worth, key=lambda name: -worth[name])
        row["choice"] = ranking[0]
        if instance.task == "rerank":
            figures = {"ndcg10": metrics.ndcg(ranking, instance.meta["labels"]), **figures}
        else:
            figures = {"accuracy": float(ranking[0] == instance.answer[0]), **figures}
    if instance.task == "summ":  # how much of the abstract the body tells: not a share, so no score
        return row | {"metric": "nll_gain", "score": None, "figures": {"nll_gain": nll["control closed"] - nll["gold"]}}
    if instance.task == "proc":  # a whole table is never right by luck; how much of it is says more
        figures = {"token_accuracy": row["token_accuracy"] or 0.0, **figures}
    main = next(iter(figures))
    return row | {"metric": main, "score": figures[main], "figures": figures}


def _controls(instance: Instance) -> list[tuple[str, str]]:
    """Contexts by which one sees whether the context matters: none (`closed`), and the one passage (`gold_only`)."""
    if instance.task == "summ":
        return [("closed", "")]
    if instance.task != "rag":
        return []
    return [("closed", ""), ("gold_only", str(instance.meta["gold_context"]))]


def _row(instance: Instance) -> Row:
    chance = instance.meta.get("chance")
    if instance.task == "rerank":
        chance = metrics.chance_of_ranking(instance.meta["labels"])
    kept = ("evidence_in_context", "whole")
    return {
        "id": instance.id,
        "name": instance.name,
        "length": instance.length,
        "context": instance.context_id,
        "depth": instance.depth,
        "n_items": instance.n_items,
        "prompt_tokens": instance.prompt_tokens,
        "short": instance.short,
        "chance": chance,
        "question": instance.question,
        "answer": instance.answer[0],
        "answers": instance.answer,
        **{name: instance.meta[name] for name in kept if name in instance.meta},
    }


def measurer(
    evaluator: Evaluator, asking: Asking, mode: Mode, *, controls: bool = True, share: bool = True
) -> Callable[[Sequence[Instance]], Iterator[Row]]:
    """What measures the questions about one context.

    Raises:
        UserError: the model cannot write.
    """
    if mode == "forced":
        return lambda group: measure_forced(evaluator.scorer, asking, group, controls)
    if evaluator.model is None:
        raise UserError(
            f"The mode generate needs a model that writes, and this one runs by {evaluator.scorer.description}.",
            "Use --mode forced.",
        )
    writer = ModelWriter(evaluator.model, asking, share, end_ids=evaluator.end_ids)
    return lambda group: measure_written(writer, group, controls)
