"""Many seeds are trained as one computation, and none disturbs another."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_network import random_spec, sharpened

from lmlab.errors import LmlabError, UserError
from lmlab.methods.transformer_programs.analysis.verify import encode as encode_tokens
from lmlab.methods.transformer_programs.analysis.verify import every_input, verify
from lmlab.methods.transformer_programs.config import FitConfig, TrainSettings
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.network.model import Attention, ProgramTransformer, nearness
from lmlab.methods.transformer_programs.network.nearest import nearest
from lmlab.methods.transformer_programs.network.sampling import Noise, Sampler, entmax, entmax15, sparsemax
from lmlab.methods.transformer_programs.tasks.dataset import IGNORED, UNSEEN, Dataset, accuracy, encode
from lmlab.methods.transformer_programs.tasks.load import draw, load_data
from lmlab.methods.transformer_programs.training.fit import Batches, Fitted, fit, measure, spec_of
from lmlab.methods.transformer_programs.training.packed import PackedNetworks
from lmlab.methods.transformer_programs.training.polish import polish
from lmlab.methods.transformer_programs.training.run import train
from lmlab.methods.transformer_programs.training.selection import Selection
from lmlab.methods.transformer_programs.training.step import ProgramStep, Temperature

SETTINGS = TrainSettings(
    task="hist", size=600, max_length=5, num_layers=1, cat_heads=1, num_heads=1, cat_mlps=1, num_mlps=1, d_mlp=8,
    seeds=3, epochs=3, batch_size=64, evaluations=1, polish=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Dataset:
    return draw(SETTINGS)


def _fit(data: Dataset, directory: Path, seeds: list[int], settings: FitConfig = SETTINGS) -> Fitted:
    return fit(spec_of(SETTINGS, data), settings, data, directory, seeds=seeds)


@pytest.fixture(scope="module")
def three(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return _fit(data, tmp_path_factory.mktemp("three"), [4, 7, 9])


def test_a_seed_alone_is_the_same_seed_among_others(data: Dataset, three: Fitted, tmp_path: Path) -> None:
    alone = _fit(data, tmp_path, [7]).model
    for name, parameter in alone.named_parameters():
        assert torch.equal(three.model.get_parameter(name)[1:2], parameter), name
    assert to_program(alone) == to_program(three.model, 1)


def test_the_seeds_differ(three: Fitted) -> None:
    for name, parameter in three.model.named_parameters():
        assert not torch.allclose(parameter[0], parameter[1]), name


@pytest.mark.parametrize("poison", ["weights", "gradient"])
def test_a_seed_without_a_number_stops_and_the_others_go_on(
    data: Dataset, three: Fitted, tmp_path: Path, poison: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(SETTINGS, data)
    model = ProgramTransformer(spec, [4, 7, 9])
    forward = PackedNetworks.forward

    def without_gradient(self: PackedNetworks, tokens: torch.Tensor, sample: Sampler) -> torch.Tensor:
        """The first seed's logits as they are, with a gradient that is no number."""
        logits = forward(self, tokens, sample)
        return torch.cat([logits[:1] + (logits[:1] * 0).sqrt(), logits[1:]])

    with pytest.MonkeyPatch.context() as patch:
        if poison == "weights":
            with torch.no_grad():
                model.unembed[0] = float("nan")
        else:
            patch.setattr(PackedNetworks, "forward", without_gradient)
        fitted = fit(spec, SETTINGS, data, tmp_path, seeds=[4, 7, 9], start=model)
    for name, parameter in fitted.model.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter[1:], three.model.get_parameter(name)[1:]), name
    assert [row["diverged"] for row in fitted.seeds] == [poison == "weights", False, False]
    told = "The loss of seed 4 is no number at step 1 (temperature 3); it stops, the others go on."
    assert (told in " ".join("".join(capsys.readouterr()).split())) == (poison == "weights")
    assert fitted.best != 0 or poison == "gradient"


def test_all_seeds_without_a_number_are_an_error(data: Dataset, tmp_path: Path) -> None:
    model = ProgramTransformer(spec_of(SETTINGS, data), [0])
    with torch.no_grad():
        model.unembed.fill_(float("nan"))
    with pytest.raises(LmlabError, match="The loss of every seed is no number \\(temperature 3\\)"):
        fit(model.spec, SETTINGS, data, tmp_path, seeds=[0], start=model)


def test_a_resumed_training_takes_the_same_course(data: Dataset, three: Fitted, tmp_path: Path) -> None:
    spec = spec_of(SETTINGS, data)
    step_of = ProgramStep.__call__
    calls = 0

    def stops(self: ProgramStep, model: PackedNetworks, batch: dict[str, torch.Tensor]) -> object:
        nonlocal calls
        calls += 1
        if calls == 13:
            raise LmlabError("pulled the plug")
        return step_of(self, model, batch)

    settings = SETTINGS.model_copy(update={"checkpoint_every": 5})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramStep, "__call__", stops)
        with pytest.raises(LmlabError, match="pulled the plug"):
            fit(spec, settings, data, tmp_path, seeds=[4, 7, 9])
    resumed = fit(spec, settings, data, tmp_path, seeds=[4, 7, 9])
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, three.model.get_parameter(name)), name


def test_the_worse_half_of_the_seeds_stops_and_the_others_are_as_they_were(
    data: Dataset, three: Fitted, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"halvings": 1, "checkpoint_every": 5})
    halved = _fit(data, tmp_path / "whole", [4, 7, 9], settings)
    stopped = [row["stopped"] for row in halved.seeds]
    assert sorted(stopped) == [False, False, True]
    assert [row["soft_gap"] is None for row in halved.seeds] == stopped
    assert any(row["soft_gap"] for row in three.seeds)
    calls: list[torch.Tensor] = []
    step_of = ProgramStep.after_step

    def stops(self: ProgramStep, model: PackedNetworks) -> object:
        if calls and len(calls) == 15:  # past the half of 23 steps, and past the checkpoint at 15
            raise LmlabError("pulled the plug")
        calls.append(model.packed.detach().clone())
        return step_of(self, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramStep, "after_step", stops)
        with pytest.raises(LmlabError, match="pulled the plug"):
            _fit(data, tmp_path / "resumed", [4, 7, 9], settings)
    resumed = _fit(data, tmp_path / "resumed", [4, 7, 9], settings)
    late = stopped.index(True)
    for name, parameter in halved.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
        for place in {0, 1, 2} - {late}:
            assert torch.equal(parameter[place], three.model.get_parameter(name)[place]), (name, place)
    assert not torch.equal(halved.model.unembed[late], three.model.unembed[late])
    # as it was when it stopped, after 11 of 23 steps, whatever its momentum would have done later
    packed = PackedNetworks(halved.model)
    assert torch.equal(packed.packed[late], calls[10][late]) and not torch.equal(packed.packed[late], calls[11][late])


def test_more_halvings_than_seeds_or_steps_are_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="halvings 2 need 4 seeds or more; seeds is 3"):
        TrainSettings(task="hist", seeds=3, halvings=2)
    short = SETTINGS.model_copy(update={"halvings": 2, "seeds": 4, "epochs": 0.25})
    with pytest.raises(UserError, match="halvings 2 need 4 steps or more, and this training has 2"):
        _fit(data, tmp_path, [1, 2, 3, 4], short)
    assert not any(tmp_path.iterdir())


def test_a_seed_that_stopped_goes_on_where_those_before_it_diverge(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = PackedNetworks.forward
    first: list[tuple[int, int]] = []  # the step since which a seed is no number, and its place

    def breaks(self: PackedNetworks, tokens: torch.Tensor, sample: Sampler) -> torch.Tensor:
        """After the halving, the logits of those that went on are no numbers."""
        logits = forward(self, tokens, sample)
        if int(self.num_steps) >= 15 and not first and torch.is_grad_enabled():
            first.extend((15, place) for place in (~self.idle).nonzero().flatten().tolist())
        bad = torch.zeros(len(logits), dtype=torch.bool)
        bad[[place for step, place in first if int(self.num_steps) >= step]] = True
        return logits.masked_fill((bad & ~self.idle)[:, None, None, None], float("nan"))

    settings = SETTINGS.model_copy(update={"halvings": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedNetworks, "forward", breaks)
        fitted = _fit(data, tmp_path, [4, 7, 9], settings)
    (kept,) = {0, 1, 2} - {place for _, place in first}
    assert [row["diverged"] for row in fitted.seeds] == [place != kept for place in range(3)]
    assert not any(row["stopped"] for row in fitted.seeds) and fitted.best == kept
    told = " ".join("".join(capsys.readouterr()).split())
    assert f"Seed {[4, 7, 9][kept]}, which had stopped behind it, goes on in its place." in told


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSettings, Path]:
    """A training that halves its seeds and freezes layers, in one go."""
    changes = {"num_layers": 2, "seeds": 4, "epochs": 5, "halvings": 2, "freeze_after": 1, "learning_rate": 0.001}
    settings = SETTINGS.model_copy(update={**changes, "evaluations": 4, "checkpoint_every": 4, "polish": 1})
    directory = tmp_path_factory.mktemp("selected")
    train(settings, directory)
    return settings, directory


@pytest.mark.parametrize(("at", "stopped", "frozen"), [(11, 2, False), (22, 3, True), (33, 3, True)])
def test_stopped_in_the_middle_of_selecting_it_ends_with_the_same_bytes(
    selected: tuple[TrainSettings, Path], tmp_path: Path, at: int, stopped: int, frozen: bool
) -> None:
    settings, whole = selected
    step_of = ProgramStep.after_step

    def stops(self: ProgramStep, model: PackedNetworks) -> object:
        if int(model.num_steps) == at:
            assert int(model.stopped.sum()) == stopped and bool(model.frozen.any()) == frozen
            raise LmlabError("pulled the plug")
        return step_of(self, model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramStep, "after_step", stops)
        with pytest.raises(LmlabError, match="pulled the plug"):
            train(settings, tmp_path)
    results = train(settings, tmp_path)
    for name in ("network.json", "network.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    assert [each["step"] for each in results["curves"]] == [9, 18, 27, 36, 38]


@pytest.mark.parametrize("update", [{"freeze": 0.5}, {"freeze_after": 1, "learning_rate": 0.001}])
def test_what_is_frozen_moves_no_more(data: Dataset, tmp_path: Path, update: dict[str, float]) -> None:
    rows, frozen = [], []
    step_of = ProgramStep.after_step

    def watched(self: ProgramStep, model: PackedNetworks) -> object:
        found = step_of(self, model)
        rows.append({name: each.clone() for name, each in model.networks().state_dict().items()})
        frozen.append(model.frozen.tolist())
        return found

    settings = SETTINGS.model_copy(update={**update, "num_layers": 2, "seeds": 2, "epochs": 5})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramStep, "after_step", watched)
        fitted = fit(spec_of(settings, data), settings, data, tmp_path, seeds=[4, 7])
    if "freeze" in update:  # at the end all layers are: what is trained computes what the program does
        assert [row["soft_gap"] for row in fitted.seeds] == [0.0, 0.0]
    assert max(frozen[-1]) >= 1, "nothing was frozen"
    moved = False
    for place in range(2):
        for before, after, was, is_ in zip(rows, rows[1:], frozen, frozen[1:], strict=False):
            for layer in range(2):
                fixed = was[place] > layer and is_[place] > layer
                for name in before:
                    if name.startswith(f"blocks.{layer}."):
                        same = torch.equal(before[name][place], after[name][place])
                        assert same or not fixed, name
                        moved |= not same
    assert moved


def test_every_pair_of_a_set_is_a_choice(data: Dataset) -> None:
    spec = spec_of(SETTINGS.model_copy(update={"predicates": "sets"}), data)
    model = ProgramTransformer(spec, [4, 7])
    table = model.get_parameter("blocks.0.predicates.table")
    with torch.no_grad():
        table.fill_(-1)
        table[..., 0] = 3
    before = PackedNetworks(model).choices(0)
    with torch.no_grad():
        table[1, 0, 2, 1] = 1  # one more partner, which is not the likeliest
    after = PackedNetworks(model).choices(0)
    changed = [[not torch.equal(a[seed], b[seed]) for a, b in zip(before, after, strict=True)] for seed in range(2)]
    assert [sum(each) for each in changed] == [0, 1]


def test_a_layer_is_released_although_the_next_one_keeps_moving(data: Dataset) -> None:
    settings = SETTINGS.model_copy(update={"num_layers": 2, "freeze_after": 40})
    model = PackedNetworks(ProgramTransformer(spec_of(settings, data), [4, 7]))
    falls = torch.tensor([0.9, 0.2])
    select = Selection(settings, 1000, lambda _: falls, lambda _, places: [0.0 for _ in places])
    model.frozen.fill_(1)
    model.mark.fill_(0.9)
    for step in range(10, 100, 10):
        model.num_steps.fill_(step)
        with torch.no_grad():
            model.packed.copy_(torch.randn(model.packed.shape, generator=torch.Generator().manual_seed(step)))
        select(model)
    assert model.frozen.tolist() == [1, 0]


@pytest.mark.parametrize("alpha", [1.02, 1.2, 1.7, 1.95])
def test_entmax_lies_between_softmax_and_sparsemax(alpha: float) -> None:
    logits = 2 * torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = entmax(logits, alpha)
    assert torch.allclose(weights.sum(-1), torch.ones(30, dtype=torch.float64))
    # its conditions of optimality: what is left is one number where a weight is, and less where none is
    rest = (alpha - 1) * logits - weights ** (alpha - 1)
    top = rest.masked_fill(weights == 0, -torch.inf).amax(-1, keepdim=True)
    assert torch.allclose(torch.where(weights > 0, rest, top), top.expand_as(rest), atol=1e-6)
    assert bool((rest <= top + 1e-6).all())
    assert torch.autograd.gradcheck(lambda x: entmax(x, alpha), (logits[:4].requires_grad_(),))
    assert torch.allclose(entmax(logits, 1.4999999), entmax15(logits), atol=1e-6)
    assert torch.equal(entmax(logits, 1.0), torch.softmax(logits, -1))
    assert torch.equal(entmax(logits, 2.0), sparsemax(logits))


WAYS = {
    "gumbel_soft": {"freeze": 0.4, "attention_default": "smooth"},
    "gumbel_soft, nearest": {"attention": "nearest"},
    "gumbel_hard": {"attention_noise": True, "freeze": 0.5},
    "decoupled": {"gradient_tau": 1.0},
    "decoupled, nearest": {"attention": "nearest", "gradient_tau": 1.0},
    "reinmax": {"samples": 2, "freeze_after": 10},
    "hard": {"gradient_tau": 0.7, "freeze": 0.6},
    "softmax": {"loss": "per_seq"},
    "softmax, nearest": {"attention": "nearest", "attention_noise": True},
    "entmax": {"tau_schedule": "linspace", "alpha_start": 1.0, "alpha_end": 2.0},
    "sparsemax": {"schedule": "cosine"},
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_trains_is_exported_faithfully(data: Dataset, tmp_path: Path, way: str) -> None:
    update = {"sampling": way.partition(",")[0], "epochs": 0.5, "attention_noise": False, **WAYS[way]}
    shape = SETTINGS.model_copy(update={"num_layers": 2, "predicates": "families"})
    start = ProgramTransformer(spec_of(shape, data), [3])
    before = {name: each.detach().clone() for name, each in start.named_parameters()}
    fitted = fit(start.spec, SETTINGS.model_copy(update=update), data, tmp_path, seeds=[3], start=start)
    after = dict(fitted.model.named_parameters())
    assert all(each.isfinite().all() for each in after.values())
    # choices are learned too, not the tables alone
    for part in ("0.predicates.gate", "0.num_mlp.read", "1.cat_mlp.read"):
        assert not torch.equal(after[f"blocks.{part}"], before[f"blocks.{part}"]), part
    program = to_program(fitted.model)
    symbols = [token for token in program.vocabulary or () if not token.startswith("<")][:3]
    inputs = list(every_input(symbols, 4, "<s>"))
    assert verify(fitted.model, program, inputs).equal


@pytest.mark.parametrize("kind", ["softmax", "nearest"])
@pytest.mark.parametrize("seed", range(6))
def test_hard_choices_compute_what_the_program_does(seed: int, kind: str) -> None:
    model = sharpened(random_spec(random.Random(seed)), seed)
    model.attention = Attention(kind=kind)
    ids = encode_tokens(model, list(every_input("abc", 4)))
    exact = model(ids, Sampler("argmax", 1.0))
    for tau in (3.0, 0.05):
        for gradient_tau in (None, 1.0):
            logits = model(ids, Sampler("hard", tau, None, gradient_tau))
            assert torch.allclose(logits, exact, atol=1e-4)
        logits.sum().backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        assert all(each.isfinite().all() and float(each.abs().max()) < 1e6 for each in gradients)
        model.zero_grad()


def test_nearest_is_the_chance_of_being_the_nearest_match() -> None:
    """By all ways in which places may match, each by its chance, and what a program takes of each."""
    places = 5
    scores = torch.rand(2, places, places, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores[:, :, 4] *= torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])  # a place that only it sees
    bias = nearness(places, places, scores.device)
    expected = torch.zeros_like(scores)
    for matches in itertools.product((0.0, 1.0), repeat=places):
        match = torch.tensor(matches, dtype=torch.float64)
        chance = torch.where(match > 0, scores, 1 - scores).prod(-1)
        first = torch.nn.functional.one_hot(torch.tensor(0), places) * float(not any(matches))
        taken = ((match + first + 1e-20).log() + bias).argmax(-1)  # of each query
        expected += chance[..., None] * torch.nn.functional.one_hot(taken, places)
    assert torch.allclose(nearest(scores), expected)
    assert torch.autograd.gradcheck(nearest, (scores.requires_grad_(),))


def test_nearest_needs_the_fixed_order_of_places(data: Dataset, tmp_path: Path) -> None:
    spec = spec_of(SETTINGS, data).model_copy(update={"position_bias": "clipped"})
    near = SETTINGS.model_copy(update={"attention": "nearest"})
    with pytest.raises(UserError, match="attention 'nearest' goes by the fixed order of places; position_bias is 'cl"):
        fit(spec, near, data, tmp_path, seeds=[0])


def test_estimators_are_those_of_their_papers() -> None:
    """Exact gradients of E f by enumeration; reinmax is exact for functions of second order in two values."""
    logits = torch.tensor([[0.3, -0.4]], requires_grad=True)
    table = torch.tensor([2.0, -1.0])
    expected = torch.autograd.grad((torch.softmax(logits, -1) * table).sum(), logits)[0]
    for kind in ("decoupled", "reinmax"):
        found = torch.zeros_like(logits)
        for step in range(400):
            drawn = Sampler(kind, 1.0, Noise([step], 0, logits.device))(logits)
            assert sorted(drawn.detach().flatten().tolist()) == [0.0, 1.0]
            found += torch.autograd.grad((drawn * table).sum(), logits)[0] / 400
        assert torch.allclose(found, expected, atol=0.12), kind


def test_sparsemax_is_the_nearest_point_of_the_simplex() -> None:
    logits = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = sparsemax(logits)
    assert torch.allclose(weights.sum(-1), torch.ones(50, dtype=torch.float64)) and (weights == 0).any()
    # its conditions of optimality: what is left of the logits is one number where a weight is, and less where none is
    rest = logits - weights
    top = rest.amax(-1, keepdim=True)
    assert torch.allclose(torch.where(weights > 0, rest, top), top.expand_as(rest)) and bool(
        (rest <= top + 1e-12).all()
    )
    assert torch.autograd.gradcheck(sparsemax, (logits[:5],))
    assert torch.equal(sparsemax(torch.tensor([2.0, 1.0, 0.0])), torch.tensor([1.0, 0.0, 0.0]))


def test_layers_are_fixed_one_after_another(data: Dataset) -> None:
    settings = SETTINGS.model_copy(update={"freeze": 0.5})
    step = ProgramStep(data.train, settings, Temperature(3.0, 0.1, "geomspace", 4, 100))
    assert [step.frozen(each, 2) for each in (0, 49, 50, 74, 75, 99)] == [0, 0, 1, 1, 2, 2]
    assert ProgramStep(data.train, SETTINGS, step.temperature).frozen(99, 2) == 0
    model = ProgramTransformer(spec_of(SETTINGS.model_copy(update={"num_layers": 2}), data), [0])
    tokens = data.train.tokens[:8]
    model(tokens, Sampler("softmax", 1.0, frozen=1)).logsumexp(-1).sum().backward()
    assert model.get_parameter("blocks.0.key").grad is None and model.get_parameter("blocks.1.key").grad is not None
    one, other = (model.streams(tokens, Sampler(kind, 1.0, frozen=1))[0] for kind in ("softmax", "argmax"))
    first = len(model.spec.cat_names(1))
    assert torch.equal(one[:, :first], other[:, :first]) and not torch.equal(one, other)


def test_polishing_raises_the_accuracy_of_the_training_data(data: Dataset, three: Fitted) -> None:
    before = {name: each.clone() for name, each in three.model.state_dict().items()}
    try:
        first, _ = measure(three.model, data.train)
        polish(three.model, 1, data.train)
        second, _ = measure(three.model, data.train)
        assert second[1] >= first[1] and torch.equal(first[[0, 2]], second[[0, 2]])
        assert second[1] > 0.5
    finally:
        three.model.load_state_dict(before)


def test_polishing_reads_no_forbidden_positions(data: Dataset, tmp_path: Path) -> None:
    """What only positions tell is not fitted by them: the program would not have it."""
    shape = SETTINGS.model_copy(update={"forbid": ("positions",)})
    spec, split = spec_of(shape, data), data.train
    places = torch.arange(split.labels.shape[1]) % len(spec.labels)
    told = replace(split, labels=torch.where(split.labels >= 0, places, split.labels))
    model = ProgramTransformer(spec, [0], Attention(False))
    start = model.unembed[0].clone()
    before, _ = measure(model, told)
    polish(model, 0, told)
    after, _ = measure(model, told)
    first = spec.cat_inputs.index("positions") * spec.d_var
    rows = slice(first, first + spec.d_var)
    assert torch.equal(model.unembed[0, rows], start[rows]) and not torch.equal(model.unembed[0], start)
    assert after[0] >= before[0]


def test_the_seed_that_polishing_makes_the_best_is_polished(data: Dataset, three: Fitted, tmp_path: Path) -> None:
    every = _fit(data, tmp_path / "every", [4, 7, 9], SETTINGS.model_copy(update={"polish": 3}))
    one = _fit(data, tmp_path / "one", [4, 7, 9], SETTINGS.model_copy(update={"polish": 1}))
    changed = [not torch.equal(one.model.unembed[place], three.model.unembed[place]) for place in range(len(one.seeds))]
    after = [row["valid_accuracy"] for row in every.seeds]
    assert len(set(after)) > 1 and sum(changed) == 1
    assert one.best == changed.index(True) and after[one.best] == max(after)
    assert torch.equal(one.model.unembed[one.best], every.model.unembed[one.best])


def test_the_temperature_falls_as_in_the_paper() -> None:
    geometric = Temperature(3.0, 0.01, "geomspace", 4, 40)
    assert geometric.at(0) == pytest.approx(3.0)
    assert geometric.at(9) == geometric.at(10) == pytest.approx(3.0 * (0.01 / 3.0) ** (1 / 3))
    assert geometric.at(30) == geometric.at(39) == pytest.approx(0.01)
    linear = Temperature(3.0, 1.0, "linspace", 3, 30)
    assert linear.at(9) == pytest.approx(2.0) and linear.at(25) == pytest.approx(1.0)


def test_a_single_epoch_has_falling_temperatures_too() -> None:
    single = Temperature(3.0, 0.03, "geomspace", 1, 3)
    assert [round(single.at(step), 6) for step in (0, 1, 2)] == [3.0, 0.3, 0.03]


def test_batches_go_through_all_rows_again_and_again() -> None:
    batches = Batches(10, 4, 5, seed=0)
    rows = [row for number in range(5) for row in batches[number]["rows"].tolist()]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10)) and rows[:10] != rows[10:]


def test_an_answer_that_training_has_not_seen_counts_as_wrong() -> None:
    examples = [(["<s>", "a"], ["<pad>", "x"]), (["<s>", "a"], ["<pad>", "new"])]
    split = encode(examples, ["<pad>", "<s>", "a"], ["x"], 3, False)
    assert split.labels.tolist() == [[IGNORED, 0, IGNORED], [IGNORED, UNSEEN, IGNORED]] and split.unseen == {"new": 1}
    tokens, sequences = accuracy(torch.zeros(1, 2, 3, dtype=torch.long), split.labels)
    assert float(tokens) == float(sequences) == 0.5


def test_files_are_read_and_bad_rows_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"tokens": ["a", "b"], "labels": ["3", 2]}', '{"tokens": ["NA"], "labels": [1]}'] * 10
    lines += ['{"tokens": ["a"], "labels": ["x", "y"]}', '{"tokens": [], "labels": []}', "{"]
    lines.append('{"tokens": ["a"], "labels": [null]}')
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "valid.jsonl").write_text('{"tokens": ["b", "c"], "labels": ["3", "never"]}')
    settings = TrainSettings(data=str(tmp_path / "train.jsonl"), valid=str(tmp_path / "valid.jsonl"))
    found = load_data(settings, tmp_path / "rejects.jsonl")
    assert found.labels == ("1", "2", "3") and set(found.vocabulary) == {
        "<pad>",
        "<unk>",
        "<s>",
        "</s>",
        "a",
        "b",
        "NA",
    }
    assert found.valid.unseen == {"never": 1} and len(found.train) == 20
    rejects = (tmp_path / "rejects.jsonl").read_text()
    assert "line 21" in rejects and "1 token but 2 labels" in rejects and "'tokens' is empty" in rejects
    assert "no place has a label" in rejects
    (tmp_path / "train.jsonl").write_text('{"tokens": ["<s>"], "labels": ["x"]}\n')
    with pytest.raises(UserError, match="line 1: '<s>' is a reserved mark"):
        load_data(settings)


def test_columns_are_read(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("-DOCSTART- O\n\nEU B-ORG\nrejects O\n\n" + "Peter\tNNP\tB-PER\n\n" * 3)
    found = load_data(TrainSettings(data=str(tmp_path / "train.conll"), lower=True))
    assert {"B-ORG", "O", "B-PER"} >= set(found.labels) and "peter" in found.vocabulary
    pooled = tmp_path / "intents.jsonl"
    pooled.write_text('{"tokens": ["play", "it"], "intent": "Music"}\n' * 12)
    whole = load_data(TrainSettings(data=str(pooled), labels="sequence"))
    assert whole.pooled and whole.train.labels.tolist() == [0] * len(whole.train)


def test_a_plateau_is_told(tmp_path: Path) -> None:
    results = train(SETTINGS.model_copy(update={"epochs": 0.2, "seeds": 1}), tmp_path)
    assert results["plateau"] and 0.3 < results["majority"] < 0.7
