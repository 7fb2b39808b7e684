"""Commands that ask models, and that make what models learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmlab.commandline.from_config import options
from lmlab.commandline.options import example
from lmlab.errors import UserError
from lmlab.methods.swebench.commands.shared import Folder, Ids, Instances, Split, print_rows
from lmlab.methods.swebench.config import AgentConfig, SandboxConfig, WorkspaceConfig
from lmlab.methods.swebench.inference.settings import InferConfig

Model = Annotated[
    str, typer.Option("--model", "-m", help="openai:NAME, or local:DIRECTORY for a model in this process.")
]
BaseUrl = Annotated[str | None, typer.Option(help="Address of the endpoint.", show_default=False)]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable that holds the key.", show_default=False)]
MaxCost = Annotated[float | None, typer.Option("--max-cost-usd", help="Ceiling of the cost.", show_default=False)]
Price = Annotated[
    str | None, typer.Option(help="PROMPT,COMPLETION in US dollars a million tokens.", show_default=False)
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(help="Directory of the tokenizer that counts; else four bytes are a token.", show_default=False),
]


@options(InferConfig)
@options(WorkspaceConfig, "where")
def infer(
    instances: Instances,
    model: Model,
    settings: InferConfig,
    where: WorkspaceConfig,
    split: Split = None,
    id: Ids = None,
    base_url: BaseUrl = None,
    key_env: KeyEnv = None,
    price: Price = None,
    max_cost_usd: MaxCost = None,
    tokenizer: Tokenizer = None,
    out: Folder = Path("predictions"),
) -> None:
    """Ask a model for patches: predictions.jsonl. Replies are kept; the same command asks only for what is missing."""
    from collections import Counter

    from lmlab.methods.swebench.harness.open import open_workspaces, trees_beside
    from lmlab.methods.swebench.inference.infer import infer as ask
    from lmlab.methods.swebench.instances.load import load_instances

    found = load_instances(instances, split, id)
    endpoint = _endpoint(model, base_url, key_env, price, max_cost_usd)
    predictions = ask(
        found, open_workspaces(where, trees_beside(instances)), endpoint, settings, out, _count(tokenizer)
    )
    counts = Counter("empty" if each.empty else "patch" for each in predictions)
    print(f"{counts['patch']} patches, {counts['empty']} answers without one: {out / 'predictions.jsonl'}")
    print(f"Next: lmlab swe eval --instances {instances} --predictions {out / 'predictions.jsonl'}")


infer_help = example(
    "lmlab swe infer -i benchmark/instances.jsonl -m openai:NAME --base-url URL --key-env KEY --context bm25",
    "lmlab swe infer -i benchmark/instances.jsonl -m local:models/smollm2 --context oracle-collapsed --budget 2000",
)


@options(SandboxConfig)
@options(AgentConfig, "how")
def agent(
    instances: Instances,
    model: Model,
    settings: SandboxConfig,
    how: AgentConfig,
    split: Split = None,
    id: Ids = None,
    base_url: BaseUrl = None,
    key_env: KeyEnv = None,
    price: Price = None,
    max_cost_usd: MaxCost = None,
    out: Folder = Path("agent"),
) -> None:
    """Let a model work on each issue by commands of a shell in the sandbox; trajectories and predictions are kept."""
    from lmlab.files import read_mapping, write_json
    from lmlab.methods.swebench.harness.open import open_judge, trees_beside
    from lmlab.methods.swebench.inference.agent import asker, run_agent
    from lmlab.methods.swebench.instances.load import load_instances
    from lmlab.methods.swebench.instances.predictions import Prediction, write_predictions
    from lmlab.progress import progress

    found = load_instances(instances, split, id)
    judge = open_judge(settings, trees_beside(instances))
    endpoint = _endpoint(model, base_url, key_env, price, max_cost_usd)
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
def retrieve(
    instances: Instances,
    where: WorkspaceConfig,
    split: Split = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Files for each issue.")] = 20,
    split_names: Annotated[
        bool, typer.Option("--split-names/--whole-names", help="Know names by their parts too.")
    ] = True,
    out: Annotated[Path, typer.Option("--out", "-o", help="Hits, JSON lines.")] = Path("hits.jsonl"),
) -> None:
    """Rank the files of each repository for its issue by BM25, and say how many of those that the solution edits are
    found."""
    from lmlab.files import write_jsonl
    from lmlab.methods.swebench.harness.open import open_workspaces, trees_beside
    from lmlab.methods.swebench.inference.contexts import documents, rank_bm25, recall
    from lmlab.methods.swebench.instances.load import load_instances

    workspaces = open_workspaces(where, trees_beside(instances))
    rows, recalls = [], []
    for instance in load_instances(instances, split):
        hits = rank_bm25(documents(workspaces.pristine(instance)), instance.problem_statement, k, split_names)
        listed = [{"docid": path, "score": score} for path, score in hits]
        rows.append({"instance_id": instance.instance_id, "hits": listed})
        recalls.append([recall([path for path, _ in hits[:top]], instance) for top in (1, 5, k)])
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


retrieve_help = example("lmlab swe retrieve -i benchmark/instances.jsonl -k 5 --out hits.jsonl")


@options(WorkspaceConfig, "where")
def train_data(
    instances: Instances,
    where: WorkspaceConfig,
    split: Split = None,
    mix: Annotated[
        str, typer.Option("--context-mix", help="Sources of contexts with weights: bm25, oracle, oracle-collapsed.")
    ] = "oracle=0.5,bm25=0.5",
    budget: Annotated[int, typer.Option(min=1, help="Tokens of files in a prompt.")] = 13_000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer conversations are left out.")] = 30_000,
    tokenizer: Tokenizer = None,
    seed: Annotated[int, typer.Option(help="Of the choice of contexts.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Conversations, JSON lines.")] = Path("sft.jsonl"),
) -> None:
    """Write conversations of issues and their solutions, for the stage `tokenize_chat`."""
    from lmlab.errors import did_you_mean
    from lmlab.files import write_jsonl
    from lmlab.methods.swebench.harness.open import open_workspaces, trees_beside
    from lmlab.methods.swebench.inference.contexts import Source
    from lmlab.methods.swebench.inference.records import sft_records
    from lmlab.methods.swebench.instances.load import load_instances

    known: dict[str, Source] = {"bm25": "bm25", "oracle": "oracle", "oracle-collapsed": "oracle-collapsed"}
    weights: dict[Source, float] = {}
    for part in mix.split(","):
        name, _, weight = part.partition("=")
        if name.strip() not in known:
            raise UserError(f"--context-mix: unknown source '{name.strip()}'. {did_you_mean(name.strip(), known)}")
        try:
            weights[known[name.strip()]] = float(weight or 1)
        except ValueError:
            raise UserError(f"--context-mix {mix}: expected NAME=NUMBER,...") from None
    found = load_instances(instances, split)
    records = sft_records(
        found, open_workspaces(where, trees_beside(instances)), weights, budget, max_tokens, _count(tokenizer), seed
    )
    written = write_jsonl(out, records)
    print(f"{written} conversations of {len(found)} instances: {out}")


train_data_help = example(
    "lmlab swe train-data -i benchmark/instances.jsonl --context-mix oracle=0.5,bm25=0.5 --out sft.jsonl"
)


def _endpoint(model: str, base_url: str | None, key_env: str | None, price: str | None, most: float | None):  # type: ignore[no-untyped-def]
    from lmlab.endpoints import Endpoint
    from lmlab.endpoints import Price as Prices

    given: dict[str, object] = {"base_url": base_url, "key_env": key_env, "max_cost_usd": most}
    if price is not None:
        prompt, _, completion = price.partition(",")
        try:
            given["price"] = Prices(prompt=float(prompt), completion=float(completion))
        except ValueError:
            raise UserError(f"--price {price}: expected PROMPT,COMPLETION in US dollars a million tokens.") from None
    return Endpoint.named(model, **{name: value for name, value in given.items() if value is not None})


def _count(tokenizer: Path | None):  # type: ignore[no-untyped-def]
    from lmlab.methods.swebench.inference.contexts import counter_of
    from lmlab.runs import Vocabulary

    return counter_of(None if tokenizer is None else Vocabulary.find(tokenizer).load())
