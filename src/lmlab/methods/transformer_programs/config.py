"""Settings of Transformer Programs; no torch or numpy here, so that help is instant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from lmlab.config import NO_INFLUENCE, Config, Flag
from lmlab.hardware.settings import OnDevice

EXHAUSTIVE = 1_000_000  # inputs up to which all are tried: a minute on one core
MAX_ACCURACY_DROP = 0.001  # one answer in a thousand
DECOMPILED_ON = 4000  # sequences: a program of averages is found by hundreds of them at a time
MOST_ROWS = 50_000  # of a table that a reader may still want to open


class ShapeConfig(Config):
    """The shape of a network.

    Attributes:
        num_layers: layers.
        cat_heads: heads of a layer that take the value of the nearest match.
        num_heads: heads of a layer that count or sum.
        cat_mlps: tables of a layer over two categories.
        num_mlps: tables of a layer over two counts.
        d_mlp: hidden units of an MLP while it is trained.
        d_var: values of each categorical variable; by default as many as the larger of vocabulary and length.
        embedding_vars: categories that each word is given; 0 takes the token itself.
        prefix_count: give the number of times that the token has occurred so far as one more input.
        causal_num_heads: of the counting heads of a layer, so many see the places up to their own alone.
        predicates: table learns the key of each query apart, as in the paper; families lets a gate choose between that
            and rules (k = q + s, k = c - q, k = c, and for counting heads k < q and k > q); sets lets each query have
            any number of keys.
        forbid: inputs that nothing may read; without positions, programs run at any length.
    """

    num_layers: PositiveInt = 2
    cat_heads: int = Field(default=2, ge=0)
    num_heads: int = Field(default=2, ge=0)
    cat_mlps: int = Field(default=1, ge=0)
    num_mlps: int = Field(default=1, ge=0)
    d_mlp: PositiveInt = 64
    d_var: PositiveInt | None = None
    embedding_vars: int = Field(default=0, ge=0)
    prefix_count: bool = False
    causal_num_heads: int = Field(default=0, ge=0)
    predicates: Literal["table", "families", "sets"] = "table"
    forbid: tuple[Literal["positions"], ...] = ()


class ColumnsConfig(Config):
    """Where tokens and labels stand in files with columns.

    Attributes:
        token_column: of CoNLL files, counted from 0.
        label_column: of CoNLL files; -1 is the last.
    """

    token_column: int = 0
    label_column: int = -1


class DataConfig(ColumnsConfig):
    """What is learned from: a task that is drawn, or files.

    Attributes:
        task: reverse, sort, hist, double_hist, most_freq, dyck1, dyck2 or induction.
        vocab_size: of the task, marks included (kinds of brackets for dyck); by default the paper's.
        size: examples to draw, all splits together.
        min_length: shortest sequence; by default the paper's, or 1 for files.
        max_length: longest sequence, marks included; by default the paper's, or that of the training data.
        data_seed: of drawing and splitting.
        data: training data: JSON lines with tokens and labels (or label), or CoNLL columns (.conll, .tsv, .txt).
        valid: validation data; by default a tenth of the training data.
        test: test data.
        labels: files have a label a token, or one a sequence, or pairs of an input and a target that may be shorter:
            JSON lines with tokens and target, or text with a tab between them.
        autoregressive: in sequences of files, each place sees itself and what is to its left alone.
        max_words: the most common words that files keep; others are <unk>.
        lower: lower-case the tokens of files.
        replace_numbers: write each run of digits as @.
    """

    task: str | None = None
    vocab_size: PositiveInt | None = None
    size: PositiveInt = 20_000
    min_length: PositiveInt | None = None
    max_length: PositiveInt | None = None
    data_seed: int = Field(default=0, ge=0)
    data: str | None = None
    valid: str | None = None
    test: str | None = None
    labels: Literal["tokens", "sequence", "pairs"] = "tokens"
    autoregressive: bool = False
    max_words: PositiveInt = 10_000
    lower: bool = False
    replace_numbers: bool = False

    @model_validator(mode="after")
    def _check_data(self) -> DataConfig:
        if (self.task is None) == (self.data is None):
            raise ValueError("give either task or data.")
        if self.data is None and (self.valid or self.test):
            raise ValueError("valid and test belong to data; a task draws its own.")
        if self.data is None and self.autoregressive:
            raise ValueError("autoregressive belongs to data; a task says itself what its places see.")
        return self


class FitConfig(OnDevice):
    """How networks are trained.

    Attributes:
        seeds: how many networks are trained as one computation.
        first_seed: the seed of the first of them.
        epochs: passes over the training data, over which the temperature falls.
        batch_size: sequences of a step.
        learning_rate: of Adam, constant but for what `schedule` says.
        schedule: constant, as in the paper, or cosine to a tenth.
        tau_start, tau_end: the temperature at the start and at the end.
        tau_schedule: geomspace falls by equal factors, linspace by equal amounts.
        sampling: how choices are made in training: gumbel_soft (the paper's); gumbel_hard, decoupled, reinmax and hard,
            which compute forward what the program does; softmax, entmax and sparsemax, which draw nothing.
        freeze: from this share of the steps on, layers are fixed at their arg max, the first one first, while those
            behind learn on; 1 fixes none.
        freeze_after: fix a layer once what it reads and looks for has not moved for so many steps, the first one first,
            each seed for itself; a layer is released where validation falls by a point.
        halvings: so many times the worse half of the seeds stops: at a half of the steps, at a quarter and so on; what
            is trained to the end is the rest.
        judge_by: how seeds are compared before they stop or are polished: accuracy is that of the programs that they
            are by then, with the classifier that fits each best; loss is theirs in training (before polishing, their
            accuracy as they are), which costs nothing.
        alpha_start, alpha_end: of entmax, at the start and at the end; 1 is softmax, 2 sparsemax.
        gradient_tau: the temperature of the gradients of decoupled and hard; by default that of the step.
        attention: how heads attend to several matches in training: softmax as in the paper, or nearest: to each place
            by the chance that it is the nearest match, without noise or temperature.
        attention_noise: sample the places that heads attend to, as in the paper; without it their softmax becomes the
            nearest match as the temperature falls.
        attention_default: how a head without a match falls back on the first place: sharp as in the paper, or smooth.
        loss: per_token averages within a sequence, per_seq sums.
        samples: forward passes of a step, each with its own noise.
        polish: of so many seeds, the best by validation with a classifier fitted to a part of the data, it is fitted
            again to all of them at the end, a logistic regression over the arg max; 0 leaves all as training did.
        init_embeddings: word vectors that categories of words begin from: a text file as GloVe's, or a model.
        start: a program that all seeds go on from, such as one that was edited; its shape is theirs, whatever settings
            of shapes say.
        evaluations: how often all seeds are measured with the arg max, the end included.
        checkpoint_every: steps from one checkpoint to the next.
    """

    seeds: PositiveInt = 8
    first_seed: int = Field(default=0, ge=0)
    epochs: PositiveFloat = 30
    batch_size: PositiveInt = 512
    learning_rate: PositiveFloat = 0.05
    schedule: Literal["constant", "cosine"] = "constant"
    tau_start: PositiveFloat = 3.0
    tau_end: PositiveFloat = 0.01
    tau_schedule: Literal["geomspace", "linspace"] = "geomspace"
    sampling: Literal[
        "gumbel_soft", "gumbel_hard", "decoupled", "reinmax", "hard", "softmax", "entmax", "sparsemax"
    ] = "gumbel_soft"
    gradient_tau: PositiveFloat | None = None
    freeze: float = Field(default=1.0, gt=0, le=1)
    freeze_after: PositiveInt | None = None
    halvings: int = Field(default=0, ge=0)
    judge_by: Literal["accuracy", "loss"] = "accuracy"
    alpha_start: float = Field(default=1.5, ge=1, le=2)
    alpha_end: float = Field(default=1.5, ge=1, le=2)
    attention: Literal["softmax", "nearest"] = "softmax"
    attention_noise: bool = True
    attention_default: Literal["sharp", "smooth"] = "sharp"
    loss: Literal["per_token", "per_seq"] = "per_token"
    samples: PositiveInt = 1
    polish: int = Field(default=3, ge=0)
    init_embeddings: str | None = None
    start: str | None = None
    evaluations: Annotated[PositiveInt, NO_INFLUENCE] = 5
    checkpoint_every: Annotated[PositiveInt, NO_INFLUENCE] = 500

    @model_validator(mode="after")
    def _check_fit(self) -> FitConfig:
        if 2**self.halvings > self.seeds:
            raise ValueError(f"halvings {self.halvings} need {2**self.halvings} seeds or more; seeds is {self.seeds}.")
        if self.freeze < 1 and self.freeze_after is not None:
            raise ValueError("give either freeze or freeze_after.")
        if self.start is not None and self.init_embeddings is not None:
            raise ValueError("give either start or init_embeddings: a program has its own categories of words.")
        return self


class TrainSettings(ShapeConfig, DataConfig, FitConfig):
    """A training: shape, data, and how it goes."""


class SequencesConfig(ColumnsConfig):
    """Labeled sequences: of a file, or drawn.

    Attributes:
        data: labeled sequences: JSON lines or CoNLL columns.
        task: in place of data, sequences of a task; by default the one that the program was trained on.
        examples: at most so many sequences.
    """

    data: Annotated[str | None, Flag(("--data", "-d"))] = None
    task: str | None = None
    examples: PositiveInt = 20_000

    @model_validator(mode="after")
    def _check_one(self) -> SequencesConfig:
        if self.task is not None and self.data is not None:
            raise ValueError("give either task or data: figures are of one of them.")
        return self


class ExamplesConfig(SequencesConfig):
    """Labeled sequences that a program is measured, minimized or explained on.

    Attributes:
        labels: what the labels of a file belong to; by default what the program answers.
    """

    labels: Literal["tokens", "sequence", "pairs"] | None = None


class AccuracyDropConfig(Config):
    """What a shorter program may cost.

    Attributes:
        max_accuracy_drop: accuracy that a shorter program may cost, as a share.
    """

    max_accuracy_drop: float = Field(default=MAX_ACCURACY_DROP, ge=0)


class MinimizeConfig(AccuracyDropConfig):
    """Whether a program is made short.

    Attributes:
        minimize: make the program short.
    """

    minimize: bool = False


class RowsConfig(Config):
    """How large the tables of a program may become.

    Attributes:
        max_rows: rows of the longest table.
    """

    max_rows: PositiveInt = MOST_ROWS


class ExportOptions(MinimizeConfig, RowsConfig):
    """How a program is exported.

    Attributes:
        max_length: places for which tables of counts shall hold; by default the network's.
        exhaustive: try all inputs where they are at most so many.
        allow_unfaithful: write a program that differs from its model, marked as such.
        tables: where the Python text finds the categories of words: csv reads embeddings.csv, enum lists the words of
            each category in the text itself, as enumerations.
    """

    max_length: PositiveInt | None = None
    exhaustive: int = Field(default=EXHAUSTIVE, ge=0)
    allow_unfaithful: bool = False
    tables: Literal["csv", "enum"] = "csv"


class HalvingConfig(Config):
    """Successive halving of many shapes.

    Attributes:
        rungs: how often the better part goes on for longer.
        factor: one of so many goes on, for so many times the epochs.
    """

    rungs: PositiveInt = 3
    factor: int = Field(default=3, ge=2)


class DecompileConfig(Config):
    """How a language model is turned into a program of averages.

    Attributes:
        match: the share of places at which the program has to answer as the model does.
        steps: of training the gates; half as many for the tables that are left.
        path_cost: what an open path costs, in nats a place: more leaves fewer.
        offsets: sequences begin at a position from 0 to this, for models that were trained so.
        batch_size: sequences of a step.
        noise_seed: of gates and of what is drawn.
        test: files with further sequences to compare on, such as longer ones.
    """

    match: float = Field(default=0.97, gt=0, le=1)
    steps: PositiveInt = 600
    path_cost: PositiveFloat = 1e-3
    offsets: int = Field(default=0, ge=0)
    batch_size: PositiveInt = 64
    noise_seed: int = Field(default=0, ge=0)
    test: tuple[str, ...] = ()
