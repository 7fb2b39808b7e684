"""Many candidates, by several workers; what was validated before is not run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from lmlab.errors import LmlabError
from lmlab.files import read_mapping, sha256_json, write_json
from lmlab.methods.swebench.building.candidate import Candidate, Rejection
from lmlab.methods.swebench.building.settings import ValidateConfig
from lmlab.methods.swebench.building.validate import validate
from lmlab.methods.swebench.harness.environment import EnvironmentSpec
from lmlab.methods.swebench.harness.judge import Judge
from lmlab.methods.swebench.harness.result import HARNESS_VERSION
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.progress import progress


def validate_all(
    candidates: Sequence[Instance],
    judge: Judge,
    environment: EnvironmentSpec | Callable[[Instance], EnvironmentSpec],
    config: ValidateConfig,
    folder: Path,
    workers: int = 1,
) -> tuple[list[Instance], list[Rejection]]:
    """Validate candidates; valid instances and rejections, each in the order of the candidates.

    Arguments:
        environment: of all, or of each.
        folder: keeps each outcome, by what it depends on, so that a stopped run goes on.
    """
    outcomes: dict[str, Instance | Rejection] = {}

    def work(candidate: Instance) -> Instance | Rejection:
        try:
            spec = environment if isinstance(environment, EnvironmentSpec) else environment(candidate)
        except LmlabError as failure:  # of one candidate, which must not end the validation of all
            return Rejection(candidate.instance_id, "environment_failed", failure.message)
        settings = [each.model_dump(mode="json") for each in (config, judge.limits)]  # more time: another outcome
        depends = [candidate.digest, spec.id, *settings, HARNESS_VERSION]
        path = folder / f"{sha256_json(depends)}.json"
        if path.exists():
            row = read_mapping(path)
            return Rejection(**row["rejected"]) if "rejected" in row else Instance.from_row(row["instance"])
        outcome = validate(Candidate(candidate), judge, spec, config)
        if isinstance(outcome, Instance):
            write_json(path, {"instance": outcome.to_row()})
        elif outcome.reason not in ("sandbox_failed", "environment_failed"):
            write_json(path, {"rejected": outcome.to_row()})
        return outcome

    with (
        progress("validate", len(candidates), "candidates") as advance,
        ThreadPoolExecutor(workers, "validate") as pool,
    ):
        futures = {pool.submit(work, each): each.instance_id for each in candidates}
        for future in as_completed(futures):
            outcomes[futures[future]] = future.result()
            valid = sum(isinstance(each, Instance) for each in outcomes.values())
            advance(1, f"{valid} valid")
    ordered = [outcomes[each.instance_id] for each in candidates]
    return (
        [each for each in ordered if isinstance(each, Instance)],
        [each for each in ordered if isinstance(each, Rejection)],
    )
