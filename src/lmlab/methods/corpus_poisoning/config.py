"""Settings of the method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag

PayloadPosition = Literal["none", "prefix", "suffix"]
ObjectiveName = Literal["mean", "coverage"]
Start = Literal["queries", "mask", "random"]


class CraftConfig(Config):
    """How passages are crafted.

    Attributes:
        k: passages, one for each cluster of queries.
        length: tokens of a passage, the payload included.
        optimizer: multiflip, hotflip, arca, gcg, gaslite, or none (query stuffing).
        objective: mean similarity with a cluster's queries, or coverage of their thresholds.
        evaluations: passage forwards for each passage; by default 1,300, and 6,500 for a single passage.
        candidates: replacements that are scored at once.
        start: the cluster's own queries (stuffing), mask tokens, or random words.
        words: all tokens that stand for text of their own, or words of letters alone.
        payload: a text that every passage holds; by default none, and with a position a harmless canary.
        spherical: centroids of clusters have length 1 while they are fitted.
        target_asr: add no more passages once so large a share of held-back queries is hit (0 to 1).
        coverage_rank: a query counts as covered when a passage would be among its so many best.
        seed: of clusters, starts and draws.
        precision: of the ranking of candidates; what is accepted is scored in fp32.
        workers: processes, each of one cluster at a time.
    """

    k: PositiveInt = 10
    length: Annotated[PositiveInt, Field(ge=2), Flag(("--length", "--num_adv_passage_tokens"))] = 50
    optimizer: Literal["multiflip", "hotflip", "arca", "gcg", "gaslite", "none"] = "multiflip"
    objective: ObjectiveName = "mean"
    evaluations: PositiveInt | None = None
    candidates: Annotated[PositiveInt, Flag(("--candidates", "--num_cand"))] = 50
    start: Start = "queries"
    words: Literal["all", "letters"] = "all"
    payload_position: PayloadPosition = "none"
    payload: str | None = None
    spherical: Annotated[bool, Flag(("--spherical",))] = False
    target_asr: Annotated[float, Field(ge=0, le=1)] | None = None
    coverage_rank: PositiveInt = 20
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: Annotated[PositiveInt, NO_INFLUENCE] = 1

    @model_validator(mode="after")
    def _payload_has_a_place(self) -> CraftConfig:
        if self.payload is not None and self.payload_position == "none":
            raise ValueError("payload needs payload_position prefix or suffix")
        return self

    @property
    def budget(self) -> int:
        """Passage forwards for each passage."""
        return self.evaluations or (6500 if self.k == 1 else 1300)


class PoisonConfig(Config):
    """What the stage `poison` does: attacks on one's own retriever, each beside the same defenses.

    Attributes:
        encoder: directory of an encoder, or minilm.
        data: a BEIR folder.
        train_split, test_split: whose queries the attacker has, and which are held out.
        sentinels: questions of one's own for the defenses, a file or folder.
        sentinel_count: how many of them are encoded.
        attacks: name -> settings of crafting.
        detectors: what is measured, one by one and together as a gate.
        rate: share of clean passages that the gate refuses.
        language_model: for the detector perplexity.
        fusion: measure fusion with BM25 as a defense too.
        k: depths of success.
    """

    encoder: str
    data: str
    sentinels: str
    train_split: str = "train"
    test_split: str = "test"
    sentinel_count: PositiveInt = 500
    attacks: dict[str, CraftConfig] = {"stuffing": CraftConfig(optimizer="none"), "multiflip": CraftConfig()}
    detectors: tuple[str, ...] = ("hubness", "similarity", "questions")
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.005
    language_model: str | None = None
    fusion: bool = True
    k: tuple[PositiveInt, ...] = (1, 5, 10, 20, 50, 100)
    precision: Literal["fp32", "bf16"] = "bf16"
    device: Annotated[str, NO_INFLUENCE] = "cpu"
