"""Patches of a model for instances: through an endpoint, or of a model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmlab.endpoints import ChatRequest, Endpoint, Reply, answer
from lmlab.errors import UserError
from lmlab.files import write_jsonl
from lmlab.methods.swebench.harness.repairing import reader_of
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.inference.contexts import Count, approximate_tokens, make_context, warn_of_bare
from lmlab.methods.swebench.inference.prompts import make_prompt, messages_of
from lmlab.methods.swebench.inference.ranking import Ranker
from lmlab.methods.swebench.inference.settings import InferConfig
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.predictions import Prediction
from lmlab.methods.swebench.patches.answers import patch_of_answer
from lmlab.progress import progress

_REPLIES = "replies.sqlite"


def prompts_of(
    instances: Sequence[Instance], workspaces: Workspaces, config: InferConfig, count: Count = approximate_tokens
) -> list[str]:
    """The prompt of each instance. The tests, the hints and the solution are in none of them."""
    found, bare = [], list[str]()
    ranker = Ranker(encoder=config.encoder, split_names=config.split_names, device=config.device)
    with progress("prompts", len(instances), "issues") as advance:
        for instance in instances:
            context = make_context(
                instance,
                workspaces.pristine(instance),
                config.context,
                config.budget,
                count,
                ranker=ranker,
                granularity=config.granularity,
                as_reference=config.as_reference,
            )
            if not context.files and config.context != "none":
                bare.append(instance.instance_id)
            found.append(make_prompt(instance.problem_statement, context, config.style))
            advance()
    warn_of_bare(bare, len(found), config.budget)
    return found


def infer(
    instances: Sequence[Instance],
    workspaces: Workspaces,
    endpoint: Endpoint,
    config: InferConfig,
    out: Path,
    count: Count = approximate_tokens,
) -> list[Prediction]:
    """Ask for patches; the predictions are also written to `out`/predictions.jsonl.

    Replies are kept, so that the same call after a stop asks only for what is missing; replies that are no patch are
    kept and paid for too.

    Raises:
        UserError: the endpoint cannot be used.
        BudgetExceeded: a request could pass the ceiling of the cost.
    """
    out.mkdir(parents=True, exist_ok=True)
    prompts = prompts_of(instances, workspaces, config, count)
    requests = [
        ChatRequest(messages_of(prompt), config.max_tokens, config.temperature, config.top_p, sample=sample)
        for prompt in prompts
        for sample in range(config.samples)
    ]
    replies: dict[int, Reply] = {}
    with progress("infer", len(requests), "answers") as advance:

        def take(number: int, reply: Reply) -> None:
            replies[number] = reply
            advance()

        answer(endpoint, requests, take, out / _REPLIES)
    found = []
    for number, instance in enumerate(instances):
        for sample in range(config.samples):
            reply = replies.get(number * config.samples + sample)
            model = endpoint.model if config.samples == 1 else f"{endpoint.model}.{sample}"
            found.append(_prediction(instance, model.strip("/").replace("/", "__"), reply, workspaces, config))
    write_jsonl(out / "predictions.jsonl", (each.to_row() for each in found))
    return found


def _prediction(
    instance: Instance, model: str, reply: Reply | None, workspaces: Workspaces, config: InferConfig
) -> Prediction:
    text = reply.choices[0].text if reply is not None and reply.choices else None
    extra: dict[str, object] = {"full_output": text, "status": "missing" if reply is None else reply.status}
    if reply is not None and reply.cost_usd is not None:
        extra["cost"] = reply.cost_usd
    if text is None:
        return Prediction(instance.instance_id, model, None, extra)
    try:
        patch = patch_of_answer(text, config.answers, reader_of(workspaces.pristine(instance)))
    except UserError as error:
        patch, extra["answer_error"] = None, error.message
    if patch is not None and config.answers == "diff":
        patch = patch.lstrip("\n")
    return Prediction(instance.instance_id, model, patch, extra)
