"""Settings of the method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag
from lmlab.retrieval.config import Encoding, Precision

PRECISION: Precision = "bf16"  # of encoding collections; what is accepted of a crafted passage is scored in fp32

PayloadPosition = Literal["none", "prefix", "suffix"]
ObjectiveName = Literal["mean", "coverage"]
Start = Literal["queries", "gold", "lm", "mask", "random"]


class ChosenConfig(Config):
    """Which queries of a file or split.

    Attributes:
        concept: only queries that hold this word or phrase, without regard to case.
        query_id: only these queries; may be repeated.
    """

    concept: str | None = None
    query_id: Annotated[tuple[str, ...], Flag(("--query-id",))] = ()

    @property
    def is_all(self) -> bool:
        """Whether nothing is chosen."""
        return self.concept is None and not self.query_id


class CraftConfig(ChosenConfig):
    """How passages are crafted.

    Attributes:
        each_query: one passage for each of the attacker's queries, in place of k clusters of them.
        k: passages, one for each cluster of queries.
        length: tokens of a passage, the payload included.
        optimizer: multiflip, hotflip, arca, gcg, gaslite, decode (fluent, by a language model), or none (query
            stuffing).
        objective: mean similarity with a cluster's queries, or coverage of their thresholds.
        evaluations: passage forwards for each passage; by default 1,300, and 6,500 for a single passage.
        norm_cap: the longest vector that a passage may have, for retrievers by dot product.
        candidates: replacements that are scored at once.
        start: the cluster's own queries (stuffing), documents that are relevant to them (gold), what a language model
            writes after them (lm), mask tokens, or random words.
        words: all tokens that stand for text of their own, or words of letters alone.
        payload_position: where the payload stands: none, prefix or suffix.
        payload: a text that every passage holds; by default none, and with a position a harmless canary.
        spherical: centroids of clusters have length 1 while they are fitted.
        clusters: for means each passage has the queries of a k-means cluster, for coverage those of one of k vectors
            that were found to cover most queries together.
        target_asr: add no more passages once so large a share of held-back queries is hit (0 to 1).
        language_model: a causal language model, for decode, the start lm, and a known gate that asks one elsewhere.
        surprise: of decode: nats a token of the language model above which a passage pays.
        known_gate: folder of a gate that the attacker knows, or has fitted with questions of their own: passages pay
            for what its detectors see.
        gate_weight: how much they pay, in units of the objective.
        coverage_rank: a query counts as covered when a passage would be among its so many best.
        seed: of clusters, starts and draws.
        precision: of the ranking of candidates; what is accepted is scored in fp32.
        together: passages that are optimized at once, all their candidates in one batch, as keeps a GPU busy; the last
            digits of scores, and so passages, may depend on it.
        workers: processes, each of one cluster at a time.
    """

    k: PositiveInt = 10
    each_query: Annotated[bool, Flag(("--each-query",))] = False
    length: Annotated[PositiveInt, Field(ge=2), Flag(("--length", "--num_adv_passage_tokens"))] = 50
    optimizer: Literal["multiflip", "hotflip", "arca", "gcg", "gaslite", "decode", "none"] = "multiflip"
    objective: ObjectiveName = "mean"
    evaluations: PositiveInt | None = None
    norm_cap: PositiveFloat | None = None
    candidates: Annotated[PositiveInt, Flag(("--candidates", "--num_cand"))] = 50
    start: Start = "queries"
    words: Literal["all", "letters"] = "all"
    payload_position: PayloadPosition = "none"
    payload: str | None = None
    spherical: Annotated[bool, Flag(("--spherical",))] = False
    clusters: Literal["means", "coverage"] = "means"
    target_asr: Annotated[float, Field(ge=0, le=1)] | None = None
    language_model: str | None = None
    surprise: PositiveFloat = 5.0
    known_gate: Path | None = None
    gate_weight: PositiveFloat = 0.1
    coverage_rank: PositiveInt = 20
    seed: int = 0
    precision: Precision = "fp32"
    together: PositiveInt = 1
    workers: Annotated[PositiveInt, NO_INFLUENCE] = 1

    @model_validator(mode="after")
    def _is_whole(self) -> CraftConfig:
        if self.payload is not None and self.payload_position == "none":
            raise ValueError("payload needs payload_position prefix or suffix")
        if self.optimizer == "decode" and self.language_model is None:
            raise ValueError("optimizer decode needs language_model")
        if self.start == "lm" and self.language_model is None:
            raise ValueError("start lm needs language_model")
        if self.clusters == "coverage" and (self.objective != "coverage" or self.each_query):
            raise ValueError("clusters coverage is for the objective coverage, and not for each_query")
        if self.together > 1 and (self.workers > 1 or self.optimizer == "decode"):
            raise ValueError("together is for one process, and not for the optimizer decode")
        return self

    @property
    def writes(self) -> bool:
        """Whether the language model writes something, or starts of it: else none is loaded."""
        return self.optimizer == "decode" or self.start == "lm"

    @property
    def budget(self) -> int:
        """Passage forwards for each passage."""
        # one alone may cost what five of several do
        return self.evaluations or (6500 if self.k == 1 and not self.each_query else 1300)


class ParityConfig(Config):
    """The reference's algorithm, with its own names.

    Attributes:
        iterations: of --parity: steps.
        gradient_batches: of --parity: batches of queries whose gradients are added up for a step.
        batch: of --parity: queries of a batch.
        cluster: of --parity: this cluster only.
        dont_init_gold: of --parity: start from mask tokens, not from a gold passage.
    """

    iterations: Annotated[PositiveInt, Flag(("--iterations", "--num_iter"))] = 5000
    gradient_batches: Annotated[PositiveInt, Flag(("--num_grad_iter",))] = 1
    batch: Annotated[PositiveInt, Flag(("--batch", "--per_gpu_eval_batch_size"))] = 64
    cluster: Annotated[Annotated[int, Field(ge=0)] | None, Flag(("--kmeans_split",))] = None
    dont_init_gold: Annotated[bool, Flag(("--dont_init_gold",))] = False


class DetectorsConfig(Config):
    """Which detectors there are, and what they may use.

    Attributes:
        detectors: excerpts, hubness, similarity, questions, norm, near_duplicate, perplexity, mask_collapse, gmtp, or
            one of a package; as an option it may be repeated.
        sentinels: questions of one's own, not the attacker's: JSON lines with _id and text, or a folder in BEIR's form.
        sentinel_count: how many of them are encoded.
        language_model: a causal language model, for perplexity.
        masked_model: a masked language model of transformers, for gmtp.
    """

    detectors: Annotated[tuple[str, ...], Flag(("--detector",))] = ("excerpts", "questions")
    sentinels: str | None = None
    sentinel_count: PositiveInt = 500
    language_model: str | None = None
    masked_model: str | None = None


class RateConfig(Config):
    """How strict a gate is.

    Attributes:
        rate: share of clean passages that the gate refuses.
    """

    rate: Annotated[float, Field(gt=0, lt=1)] = 0.005


class DepthsConfig(Config):
    """To which depth of results success is measured.

    Attributes:
        k: depths of success, by default 1, 3, 5, 10, 20, 50 and 100.
    """

    k: tuple[PositiveInt, ...] = (1, 3, 5, 10, 20, 50, 100)

    def depths(self, documents: int) -> list[int]:
        """Those of the defaults that a collection of so many documents has, or those that were asked for."""
        asked = "k" in self.model_fields_set and self.k != type(self).model_fields["k"].default
        return sorted({k for k in self.k if asked or k <= documents}) or [1]


class MemoryConfig(Config):
    """An agent's memory, and the one entry of an attacker.

    Attributes:
        trigger: words of the agent's question that are to bring the attacker's entry up.
        entries: honest entries of the memory.
        questions: at most so many questions are asked.
        attack_questions: questions that the attacker has.
        k: entries that the agent reads for each question.
        unverified: share of honest entries whose source nobody has verified.
        rate: an unverified entry counts as corroborated where it is as near to a verified one as all but this share of
            verified entries are to each other.
        length: tokens of the optimized entry.
        evaluations: passage forwards for it.
        seed: of what is drawn.
    """

    trigger: str
    entries: PositiveInt = 1000
    questions: PositiveInt = 500
    attack_questions: PositiveInt = 500
    k: PositiveInt = 5
    unverified: Annotated[float, Field(ge=0, lt=1)] = 0.05
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.2
    length: Annotated[PositiveInt, Field(ge=2)] = 30
    evaluations: PositiveInt = 1300
    seed: int = 0

    @field_validator("trigger")
    @classmethod
    def _says_something(cls, found: str) -> str:
        if not found.strip():
            raise ValueError("the trigger holds no word")
        return found


class HardenConfig(Config):
    """How a round of hardening trains.

    Attributes:
        rounds: attack and train so many times.
        steps: of the optimizer, each round.
        batch: queries of a step.
        learning_rate: of training.
        negatives: crafted passages beside each query's own document.
        depth: of the success that is reported.
    """

    rounds: PositiveInt = 1
    steps: PositiveInt = 200
    batch: Annotated[PositiveInt, Field(ge=2)] = 16
    learning_rate: PositiveFloat = 2e-5
    negatives: PositiveInt = 1
    depth: PositiveInt = 20


class PoisonConfig(DetectorsConfig, RateConfig, DepthsConfig, Encoding):
    """What the stage `poison` does: attacks on one's own retriever, each beside the same defenses.

    Attributes:
        encoder: directory of an encoder, or minilm.
        data: a BEIR folder.
        sentinels: questions of one's own for the defenses, a file or folder.
        train_split, test_split: whose queries the attacker has, and which are held out.
        attacks: name -> settings of crafting.
        fusion: measure fusion with BM25 as a defense too.
    """

    encoder: str
    data: str
    sentinels: str
    train_split: str = "train"
    test_split: str = "test"
    attacks: dict[str, CraftConfig] = {"stuffing": CraftConfig(optimizer="none"), "multiflip": CraftConfig()}
    fusion: bool = True
    precision: Precision = PRECISION
