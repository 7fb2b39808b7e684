"""Records for fine-tuning: issue and files in, patch out (the SWE-Llama recipe)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from lmlab.errors import UserError
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.inference.contexts import Count, Source, approximate_tokens, make_context, warn_of_bare
from lmlab.methods.swebench.inference.prompts import make_prompt, messages_of
from lmlab.methods.swebench.inference.ranking import Ranker
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.progress import progress


def sft_records(
    instances: Sequence[Instance],
    workspaces: Workspaces,
    mix: Mapping[Source, float],
    budget: int,
    max_tokens: int = 30_000,  # so that question and answer fit a window of 32K
    count: Count = approximate_tokens,
    seed: int = 0,
    ranker: Ranker | None = None,
) -> Iterator[dict[str, object]]:
    """A conversation of an issue and its solution for each instance; those that are too long are left out.

    A model that was trained on files that all need edits edits all that it is shown, and fails with retrieved ones. So
    contexts are drawn from several sources.

    Arguments:
        mix: source of contexts to its weight.

    Raises:
        UserError: there are no weights.
    """
    names, weights = list(mix), list(mix.values())
    if not names or sum(weights) <= 0:
        raise UserError("The mix of contexts has no weights.", "Write it as oracle=0.5,bm25=0.5.")
    generator = random.Random(seed)
    bare, made = list[str](), 0
    with progress("train-data", len(instances), "instances") as advance:
        for instance in instances:
            advance()
            source = generator.choices(names, weights)[0]
            tree = workspaces.pristine(instance)
            context = make_context(instance, tree, source, budget, count, ranker=ranker, seed=seed)
            prompt = make_prompt(instance.problem_statement, context)
            target = f"<patch>\n{instance.patch.rstrip()}\n</patch>"
            if count(prompt) + count(target) > max_tokens:
                continue
            made += 1
            if not context.files and source != "none":
                bare.append(instance.instance_id)
            yield {
                "id": instance.instance_id,
                "domain": instance.repo,
                "context": source,
                "messages": [*messages_of(prompt), {"role": "assistant", "content": target}],
            }
    warn_of_bare(bare, made, budget)
