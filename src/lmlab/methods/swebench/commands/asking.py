"""Commands that ask models, and that make what models learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.endpoints.settings import EndpointSettings
from lmlab.errors import UserError
from lmlab.methods.swebench.commands.shared import Folder, print_rows
from lmlab.methods.swebench.config import (
    AgentConfig,
    CountingConfig,
    InstancesConfig,
    SandboxConfig,
    WorkspaceConfig,
)
from lmlab.methods.swebench.inference.settings import By, InferConfig, RankConfig
from lmlab.runs.loading import Drawn
from lmlab.words import counted

Model = Annotated[
    str, typer.Option("--model", "-m", help="openai:NAME, or local:DIRECTORY for a model in this process.")
]


@options(InferConfig)
@options(WorkspaceConfig, "where")
@options(EndpointSettings, "access")
@options(InstancesConfig, "chosen")
@options(CountingConfig, "counting")
def infer(
    model: Model,
    settings: InferConfig,
    where: WorkspaceConfig,
    access: EndpointSettings,
    chosen: InstancesConfig,
    counting: CountingConfig,
    out: Folder = Path("predictions"),
) -> None:
    """Ask a model for patches: predictions.jsonl. Replies are kept; the same command asks only for what is missing."""
    from collections import Counter

    from lmlab.endpoints import Endpoint
    from lmlab.methods.swebench.harness.open import open_workspaces, trees_beside
    from lmlab.methods.swebench.inference.infer import infer as ask
    from lmlab.methods.swebench.instances.load import load_chosen
    from lmlab.methods.swebench.patches.diff import read_diff

    found = load_chosen(chosen)
    endpoint = Endpoint.named(model, **access.endpoint_options())
    predictions = ask(
        found,
        open_workspaces(where, trees_beside(chosen.instances)),
        endpoint,
        settings,
        out,
        _count(counting.tokenizer),
    )
    counts = Counter("patch" if read_diff(each.patch or "") else "none" for each in predictions)
    told = f"{counted(counts['patch'], 'patches')}, {counted(counts['none'], 'answers')} without one"
    print(f"{told}: {out / 'predictions.jsonl'}")
    print(f"Next: lmlab swe eval --instances {chosen.instances} --predictions {out / 'predictions.jsonl'}")


infer_help = example(
    "lmlab swe infer -i benchmark/instances.jsonl -m openai:NAME --base-url URL --key-env KEY --context bm25",
    "lmlab swe infer -i benchmark/instances.jsonl -m local:models/smollm2 --context oracle-collapsed --budget 2000",
)


@options(
    InferConfig, only=("encoder", "split_names", "device", "context", "granularity", "as_reference", "budget", "style")
)
@options(WorkspaceConfig, "where")
@options(InstancesConfig, "chosen")
@options(CountingConfig, "counting")
def prompt(
    settings: InferConfig,
    where: WorkspaceConfig,
    chosen: InstancesConfig,
    counting: CountingConfig,
    out: Annotated[Path, typer.Option("--out", "-o", help="Prompts, JSON lines.")] = Path("prompts.jsonl"),
) -> None:
    """Write the prompts that `infer` would ask, as a text dataset (instance_id, text) that other programs can ask."""
    from lmlab.files import write_jsonl
    from lmlab.methods.swebench.harness.open import open_workspaces, trees_beside
    from lmlab.methods.swebench.inference.infer import prompts_of
    from lmlab.methods.swebench.instances.load import load_chosen

    found, count = load_chosen(chosen), _count(counting.tokenizer)
    texts = prompts_of(found, open_workspaces(where, trees_beside(chosen.instances)), settings, count)
    rows = ({"instance_id": each.instance_id, "text": text} for each, text in zip(found, texts, strict=True))
    print(f"{counted(write_jsonl(out, rows), 'prompts')}, the longest of {max(map(count, texts)):,} tokens: {out}")


prompt_help = example(
    "lmlab swe prompt -i benchmark/instances.jsonl --context oracle --style style-3 --budget 27000 --out prompts.jsonl"
)


@options(SandboxConfig)
@options(AgentConfig, "how")
@options(EndpointSettings, "access")
@options(InstancesConfig, "chosen")
def agent(
    model: Model,
    settings: SandboxConfig,
    how: AgentConfig,
    access: EndpointSettings,
    chosen: InstancesConfig,
    out: Folder = Path("agent"),
) -> None:
    """Let a model work on each issue by commands of a shell in the sandbox; trajectories and predictions are kept."""
    from lmlab.endpoints import Endpoint
    from lmlab.files import read_mapping, write_json
    from lmlab.methods.swebench.harness.open import open_judge, trees_beside
    from lmlab.methods.swebench.inference.agent import asker, run_agent
    from lmlab.methods.swebench.instances.load import load_chosen
    from lmlab.methods.swebench.instances.predictions import Prediction, write_predictions
    from lmlab.progress import progress

    found = load_chosen(chosen)
    judge = open_judge(settings, trees_beside(chosen.instances))
    endpoint = Endpoint.named(model, **access.endpoint_options())
    out.mkdir(parents=True, exist_ok=True)
    ask = asker(endpoint, out / "replies.sqlite", how.max_tokens, how.temperature)
    predictions = []
    with progress("agent", len(found), "issues") as advance:
        for instance in found:
            kept = out / "done" / f"{instance.digest}.json"
            if kept.exists():
                row = read_mapping(kept)
                prediction = Prediction(instance.instance_id, row["model"], row["patch"], row["extra"])
            else:
                name = endpoint.model.strip("/").replace("/", "__")
                prediction, _ = run_agent(instance, judge, ask, name, how.steps, None, keep=out / "trajectories")
                write_json(kept, {"model": name, "patch": prediction.patch, "extra": prediction.extra})
            predictions.append(prediction)
            advance()
    write_predictions(out / "predictions.jsonl", predictions)
    print(f"Predictions: {out / 'predictions.jsonl'}\nTrajectories: {out / 'trajectories'}")


agent_help = example("lmlab swe agent -i benchmark/instances.jsonl -m openai:NAME --base-url URL --steps 30")


@options(WorkspaceConfig, "where")
@options(RankConfig, "how")
@options(InstancesConfig, "chosen", only=("instances", "split"))
def retrieve(
    where: WorkspaceConfig,
    chosen: InstancesConfig,
    how: RankConfig,
    by: Annotated[By, typer.Option(help="bm25 (words), dense (vectors), or hybrid (both).")] = "bm25",
    k: Annotated[int, typer.Option("-k", min=1, help="Files for each issue.")] = 20,
    out: Annotated[Path, typer.Option("--out", "-o", help="Hits, JSON lines.")] = Path("hits.jsonl"),
) -> None:
    """Rank the files of each repository for its issue, and say how many of those that the solution edits are found."""
    from lmlab.files import write_jsonl
    from lmlab.methods.swebench.harness.open import open_workspaces, trees_beside
    from lmlab.methods.swebench.inference.ranking import Ranker, documents, recall
    from lmlab.methods.swebench.instances.load import load_instances
    from lmlab.progress import progress

    workspaces = open_workspaces(where, trees_beside(chosen.instances))
    ranker = Ranker(by, how.encoder, how.split_names, how.device)
    rows, recalls = [], []
    instances = load_instances(chosen.instances, chosen.split)
    with progress("retrieve", len(instances), "issues") as advance:
        for instance in instances:
            hits = ranker.files(documents(workspaces.pristine(instance)), instance.problem_statement, k)
            listed = [{"docid": path, "score": score} for path, score in hits]
            rows.append({"instance_id": instance.instance_id, "hits": listed})
            recalls.append([recall([path for path, _ in hits[:top]], instance) for top in (1, 5, k)])
            advance()
    write_jsonl(out, rows)
    table = []
    for place, top in enumerate((1, 5, k)):
        known = [each[place] for each in recalls if each[place] is not None]
        if known:
            whole, some = sum(each == 1 for each in known), sum((each or 0) > 0 for each in known)
            mean = sum(each or 0 for each in known) / len(known)
            table.append([f"{top}", f"{mean:.3f}", f"{whole / len(known):.3f}", f"{some / len(known):.3f}", len(known)])
    print_rows(["files", "mean recall", "all found", "any found", "issues"], table)
    print(f"Hits: {out}")


retrieve_help = example("lmlab swe retrieve -i benchmark/instances.jsonl -k 5 --by hybrid --out hits.jsonl")


@options(WorkspaceConfig, "where")
@options(InstancesConfig, "chosen", only=("instances", "split"))
@options(InferConfig, only=("budget", "encoder", "device"))
@options(CountingConfig, "counting")
@options(Drawn, "drawn")
def train_data(
    where: WorkspaceConfig,
    chosen: InstancesConfig,
    settings: InferConfig,
    counting: CountingConfig,
    drawn: Drawn,
    mix: Annotated[
        str, typer.Option("--context-mix", help="Sources of contexts (as of infer's --context) with weights.")
    ] = "oracle=0.5,bm25=0.4,distractor=0.1",
    longest: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longer conversations, in tokens, are left out.")
    ] = 30_000,
    out: Annotated[Path, typer.Option("--out", "-o", help="Conversations, JSON lines.")] = Path("sft.jsonl"),
) -> None:
    """Write conversations of issues and their solutions, for the stage `tokenize_chat`."""
    from lmlab.errors import did_you_mean
    from lmlab.files import write_jsonl
    from lmlab.methods.swebench.harness.open import open_workspaces, trees_beside
    from lmlab.methods.swebench.inference.contexts import Source
    from lmlab.methods.swebench.inference.ranking import Ranker
    from lmlab.methods.swebench.inference.records import sft_records
    from lmlab.methods.swebench.instances.load import load_instances

    known: dict[str, Source] = {each: each for each in get_args(Source)}
    weights: dict[Source, float] = {}
    for part in mix.split(","):
        name, _, weight = part.replace(":", "=").partition("=")
        if name.strip() not in known:
            raise UserError(f"--context-mix: unknown source '{name.strip()}'. {did_you_mean(name.strip(), known)}")
        try:
            weights[known[name.strip()]] = float(weight or 1)
        except ValueError:
            raise UserError(f"--context-mix {mix}: expected NAME=NUMBER,...") from None
    found = load_instances(chosen.instances, chosen.split)
    workspaces = open_workspaces(where, trees_beside(chosen.instances))
    ranker = Ranker(encoder=settings.encoder, device=settings.device)
    records = sft_records(
        found, workspaces, weights, settings.budget, longest, _count(counting.tokenizer), drawn.seed, ranker
    )
    written = write_jsonl(out, records)
    print(f"{counted(written, 'conversations')} of {counted(len(found), 'instances')}: {out}")


train_data_help = example(
    "lmlab swe train-data -i benchmark/instances.jsonl --context-mix oracle=0.5,bm25=0.4,distractor=0.1 --out sft.jsonl"
)


@options(WorkspaceConfig, "where")
@options(InstancesConfig, "chosen")
@options(Drawn, "drawn")
def memorized(
    model: Annotated[Path, typer.Option("--model", "-m", help="A model's directory, run, or GGUF file.")],
    where: WorkspaceConfig,
    chosen: InstancesConfig,
    drawn: Drawn,
    alternatives: Annotated[int, typer.Option(min=1, help="Other edits of the same lines, of each solution.")] = 8,
    out: Annotated[Path, typer.Option("--out", "-o", help="What was found of each issue, JSON lines.")] = Path(
        "memorized.jsonl"
    ),
) -> None:
    """Say whether a model has seen the solutions: how much more the id and the issue tell it of them than of other
    edits of the same lines. Compare issues from before and after its training (--created-before, --created-since)."""
    from lmlab.files import write_jsonl
    from lmlab.judging.offline.likelihood import LocalModel
    from lmlab.methods.swebench.harness.open import open_workspaces, trees_beside
    from lmlab.methods.swebench.inference.memory import memory_of, remembered
    from lmlab.methods.swebench.instances.load import load_chosen
    from lmlab.progress import progress

    instances = load_chosen(chosen)
    workspaces = open_workspaces(where, trees_beside(chosen.instances))
    with progress("memorized", len(instances), "issues") as advance:
        found, passed = remembered(
            instances, workspaces, LocalModel.load(model), alternatives, drawn.seed, lambda: advance()
        )
    write_jsonl(out, (each.to_row() for each in found))
    for name, reason in passed.items():
        print(f"{name}: {reason}")
    if not found:
        raise UserError("No solution could be compared with another edit.")
    told = memory_of(found)
    low, high = (100 * each for each in told.first.bounds)
    print(f"{counted(len(found), 'solutions')}, each beside up to {counted(alternatives, 'other edits')} of its lines:")
    print(
        f"{100 * told.first.value:.0f} % (95 % interval {low:.0f} to {high:.0f}) are likelier than all of these, where"
        f" {100 * told.chance:.0f} % would be by chance; a model finds what is right likelier without having seen it."
    )
    low, high = told.gain.bounds
    print(
        f"Id and issue tell {told.gain.value:+.4f} nats a token more of the solution than of the others (95 % interval"
        f" {low:+.4f} to {high:+.4f})."
    )
    print(f"Each issue: {out}")


memorized_help = example(
    "lmlab swe memorized -i benchmark/instances.jsonl -m models/smollm2 --created-before 2024-06-01"
)


def _count(tokenizer: str | None):  # type: ignore[no-untyped-def]
    from lmlab.methods.swebench.inference.contexts import counter_of
    from lmlab.runs import Vocabulary

    return counter_of(None if tokenizer is None else Vocabulary.find(tokenizer).load())
