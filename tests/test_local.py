"""What `local.train` promises to a client half, tried with small client halves on real rows."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.algorithm import Algorithm, Batch, Local, Upload, add_update
from fedsim.errors import ClientError, ModelError
from fedsim.local import Contribution, Received, Work
from fedsim.optimizers import effective_steps, learning_rate
from fedsim.parameters import Weights
from fedsim.tables import Schedule, Train
from tests import small


def probe(half: Callable[[Local], Upload], *, personal: str | None = None, **changes: Any) -> tuple[Work, Contribution]:
    """One client's round under a client half of the test's own."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    strategy = {"strategy": {"name": "fedrep"}} if personal else {}
    work = Work(small.job({**strategy, **dotted}))
    work.algorithm = Algorithm("probe", half, add_update, personal=personal)
    return work, work.train(0, 1, Received(work.initial, {}), None)


def plain(local: Local) -> Upload:
    return Upload(local.train(local.received).params - local.received)


def test_steps_and_the_sum_of_step_sizes() -> None:
    """ceil(rows / batch) steps an epoch, or as many as are asked for."""
    seen: dict[str, Any] = {}

    def half(local: Local) -> Upload:
        trained = local.train(local.received)
        seen.update(steps=trained.steps, size=trained.step_size, rows=local.rows)
        return Upload(trained.params - local.received)

    probe(half, train__epochs=3)
    assert seen["steps"] == 3 * math.ceil(seen["rows"] / 32)
    assert seen["size"] == pytest.approx(0.2 * seen["steps"])
    probe(half, train__steps=5)
    assert seen["steps"] == 5


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_effective_steps_say_how_far_a_constant_gradient_goes(momentum: float) -> None:
    """Wang et al. 2020, section 4; the oracle is torch's own SGD."""
    point = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([point], lr=0.1, momentum=momentum)
    for _ in range(7):
        point.grad = torch.ones_like(point)
        optimizer.step()
    assert float(point.detach()) == pytest.approx(-0.1 * effective_steps(7, momentum))


def test_a_correction_enters_every_step() -> None:
    """With plain SGD, the constant gradient 1 moves every coordinate by the rate, step after step."""
    work, done = probe(
        lambda local: Upload(
            local.train(local.received, correct=lambda gradient, params: torch.ones_like(params)).params
            - local.received
        )
    )
    assert torch.allclose(done.vector, torch.full_like(work.initial.vector, -0.2 * done.steps), atol=1e-5)


def test_the_point_of_the_gradient_can_be_another() -> None:
    """`at` a fixed point: every step has the gradient of that point, so one batch a round gives equal steps."""
    seen: list[Tensor] = []

    def half(local: Local) -> Upload:
        def note(gradient: Tensor, params: Tensor) -> Tensor:
            seen.append(gradient.clone())
            return gradient

        trained = local.train(local.received, correct=note, at=lambda params: local.received)
        return Upload(trained.params - local.received)

    _, done = probe(half, train__batch_size=10_000, train__epochs=3)
    assert torch.allclose(done.vector, -0.2 * torch.stack(seen).sum(0), atol=1e-6)
    assert all((gradient - seen[0]).norm() < 1e-5 for gradient in seen)


def test_a_loss_term_has_its_gradient_added() -> None:
    """mu/2 |w - w0|^2 as a term is mu (w - w0) as a correction (FedProx, in two spellings)."""

    def as_term(local: Local) -> Upload:
        def term(model: nn.Module, batch: Batch) -> Tensor:
            flat = nn.utils.parameters_to_vector(model.parameters())
            return (((flat - local.received) ** 2).sum() / 2).expand(len(batch.targets))

        return Upload(local.train(local.received, loss_term=term).params - local.received)

    def as_correction(local: Local) -> Upload:
        def correct(gradient: Tensor, params: Tensor) -> Tensor:
            return gradient + params - local.received

        return Upload(local.train(local.received, correct=correct).params - local.received)

    term, correction = (probe(half)[1].vector for half in (as_term, as_correction))
    assert (term - correction).norm() <= 1e-5 * correction.norm()
    assert (term - probe(plain)[1].vector).norm() > 1e-3 * correction.norm()


@pytest.mark.parametrize("trains", ["shared", "personal"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_does_not_train_keeps_its_value_exactly(trains: Any, optimizer: str) -> None:
    """Under weight decay and momentum too."""
    seen: dict[str, Tensor] = {}

    def half(local: Local) -> Upload:
        params = local.train(local.received, trains=trains).params
        seen.update(start=local.received, end=params)
        return Upload(params - local.received)

    settings = {"train__optimizer": optimizer, "train__learning_rate": 0.01, "train__weight_decay": 0.1}
    work, _ = probe(half, personal="head.*", **settings)
    assert work.personal is not None
    moved = seen["start"] != seen["end"]
    personal = work.personal.parameters
    still = personal if trains == "shared" else ~personal
    assert not (moved & still).any()
    assert (moved & ~still).any()


def test_clipping_bounds_every_step() -> None:
    """With one step of plain SGD the update is no longer than rate times clip."""
    _, clipped = probe(plain, train__steps=1, train__clip=0.01)
    assert clipped.vector.norm() == pytest.approx(0.2 * 0.01, rel=1e-3)


def test_the_start_is_not_changed() -> None:
    def half(local: Local) -> Upload:
        start = torch.zeros_like(local.received)
        local.train(start)
        assert not start.any()
        return plain(local)

    probe(half)


def test_the_loss_is_the_mean_over_train_rows() -> None:
    seen: list[float] = []

    def half(local: Local) -> Upload:
        seen.append(float(local.loss(local.received)))
        return plain(local)

    work, _ = probe(half)
    net = work.job.build_model()
    rows = work.federation.rows(0, "train")
    expected = nn.functional.cross_entropy(net(torch.tensor(rows.x)), torch.tensor(rows.y))
    assert seen == [pytest.approx(float(expected.detach()), rel=1e-5)]


def test_the_loss_is_refused_under_privacy() -> None:
    """Epsilon covers clipped and noised gradients, and nothing else that reads rows."""
    privacy = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}

    def half(local: Local) -> Upload:
        local.loss(local.received)
        return plain(local)

    with pytest.raises(ClientError, match="not covered by privacy"):
        probe(half, privacy__example=privacy)


def test_a_client_half_that_changes_what_it_received_fails() -> None:
    """The next client of the chunk reads the same memory."""

    def half(local: Local) -> Upload:
        local.received.add_(1.0)
        return plain(local)

    with pytest.raises(ClientError, match="in place"):
        probe(half)


def test_an_update_that_is_not_finite_is_a_failure() -> None:
    with pytest.raises(ClientError, match="round 1, client 0: the update is not finite"):
        probe(lambda local: Upload(local.received / 0.0))


def test_whatever_a_client_half_raises_names_round_and_client() -> None:
    def half(local: Local) -> Upload:
        raise KeyError("control")

    with pytest.raises(ClientError, match="round 1, client 0: KeyError: 'control'"):
        probe(half)


def test_a_small_client_trains_on_one_batch() -> None:
    """Fewer rows than a batch are no error."""
    _, done = probe(plain, train__batch_size=100_000)
    assert done.steps == 1


def test_schedules() -> None:
    """Steps multiply by a factor; the cosine begins at the full rate and ends just above nothing."""
    base = Train(learning_rate=0.8, batch_size=1)
    step = base.model_copy(update={"schedule": Schedule(kind="step", every=2, factor=0.5)})
    assert [learning_rate(step, number, 6) for number in range(1, 7)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    cosine = base.model_copy(update={"schedule": Schedule(kind="cosine")})
    rates = [learning_rate(cosine, number, 10) for number in range(1, 11)]
    assert rates[0] == 0.8
    assert rates == sorted(rates, reverse=True)
    assert rates[5] == pytest.approx(0.4)
    assert 0 < rates[-1] < 0.03


class Stateful(nn.Module):
    """A net with every kind of buffer: batch norm's averages and counter, and a mask of infinities."""

    mask: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64, momentum=None)
        self.layer = nn.Linear(64, classes)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x: Tensor) -> Tensor:
        masked: Tensor = self.layer(self.norm(x.flatten(1))) + self.mask[0]
        return masked


def test_no_client_sees_what_another_left_in_the_worker() -> None:
    """Batch norm without momentum counts its batches in an integer buffer; a mask of infinities is no fault."""
    prepared = small.job(model=Stateful)
    after_another, alone = Work(prepared), Work(prepared)
    received = Received(alone.initial, {})
    after_another.train(0, 1, received, None)
    contributions = [work.train(1, 1, received, None).vector for work in (after_another, alone)]
    assert torch.equal(*contributions)
    assert torch.isfinite(contributions[0]).all()


def test_a_personal_pass_does_not_speak_for_the_global_model() -> None:
    """Ditto's upload is FedAvg's, floating buffers included."""
    settings = {"rounds": 1}
    uploads = [
        work.train(0, 1, Received(work.initial, {}), None).vector
        for work in (
            Work(small.job({**settings, "strategy": {"name": name}}, model=Stateful)) for name in ("fedavg", "ditto")
        )
    ]
    assert torch.equal(*uploads)


def test_passes_of_a_round_draw_their_own_batches() -> None:
    seen: list[Tensor] = []

    def half(local: Local) -> Upload:
        for _ in range(2):
            seen.append(local.train(local.received).params)
        return Upload(seen[0] - local.received)

    probe(half, train__batch_size=4)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_an_update_of_another_shape_is_that_clients_failure(shape: tuple[int, ...]) -> None:
    """It would be broadcast into the cohort's sum."""
    with pytest.raises(ClientError, match="round 1, client 0: the strategy's update has shape"):
        probe(lambda local: Upload(torch.zeros(shape)))


def test_a_client_half_cannot_change_what_others_read() -> None:
    def half(local: Local) -> Upload:
        local.received.add_(1)
        return Upload(torch.zeros_like(local.received))

    with pytest.raises(ClientError, match="changed local"):
        probe(half)


def test_a_kept_state_is_changed_by_an_accepted_round_only() -> None:
    """The client half gets copies: what a failed round does to them is lost."""

    def half(local: Local) -> Upload:
        local.state["count"].add_(1)
        raise ValueError("after the fact")

    work = Work(small.job())
    work.algorithm = Algorithm("probe", half, add_update)
    kept = {"count": torch.zeros(1)}
    with pytest.raises(ClientError, match="after the fact"):
        work.train(0, 1, Received(work.initial, {}), kept)
    assert kept["count"] == 0


class Leaky(nn.Module):
    """A net that notes the mean of what it sees in a floating buffer."""

    mean: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.copy_(x.detach().flatten(1).mean(0))
        logits: Tensor = self.layer(x.flatten(1))
        return logits


def test_floating_buffers_stay_at_home_under_privacy() -> None:
    """Epsilon covers clipped and noised gradients; a buffer is neither, so it is refused (else it is sent)."""
    work = Work(small.job(model=Leaky))
    assert work.train(0, 1, Received(work.initial, {}), None).vector[work.layout.size :].any()
    with pytest.raises(ModelError, match="writes what it saw of rows"):
        small.job({"privacy.example": small.PRIVATE["privacy.example"]}, model=Leaky)


@pytest.mark.parametrize("own", [{"epochs": 5}, {"whole": True}])
def test_steps_that_are_not_charged_are_refused_under_privacy(own: Any) -> None:
    work = Work(small.job(small.PRIVATE))
    work.algorithm = Algorithm(
        "probe", lambda local: Upload(local.train(local.received, **own).params - local.received), add_update
    )
    with pytest.raises(ClientError, match=r"is charged for 6|charges steps on Poisson"):
        work.train(0, 1, Received(work.initial, {}), None)


@pytest.mark.parametrize(
    "privacy",
    [
        {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}},
        {"privacy.local": {"noise_multiplier": 1.0, "delta": 1e-3, "clip": 1.0}, "strategy.weights": "uniform"},
    ],
)
def test_a_row_that_overflows_is_not_told_by_a_missing_upload(privacy: small.Changes) -> None:
    """At both levels the server sees every upload; one that failed for a row would be seen too, whatever the noise."""
    job = small.job({"strategy.name": "fedavg", **privacy})
    x = job.federation.x.copy()
    x[job.federation.offsets[0]] = 3e38
    work = Work(replace(job, federation=replace(job.federation, x=x)))
    assert torch.isfinite(work.train(0, 1, Received(work.initial, {}), None).vector).all()


def test_one_step_on_all_rows() -> None:
    """The gradient of the mean loss over every row at once, whatever the scenario says of batches."""
    taken: list[torch.Tensor] = []

    def half(local: Local) -> Upload:
        data = local.data()
        params = local.train(local.received, whole=True).params
        taken.extend([local.received, params, torch.tensor(len(data.inputs)), torch.tensor(local.rows)])
        return Upload(params - local.received)

    work, done = probe(half)
    assert done.steps == 1
    assert taken[2] == taken[3]
    work.plain.load(Weights(taken[0], work.initial.buffers))
    rows = work.federation.rows(0, "train")
    output = work.plain.module(work.problem.inputs(rows.x))
    gradient = work.plain.differentiate(work.problem.mean_loss(output, work.problem.targets(rows.y)))
    assert torch.allclose(taken[1], taken[0] - work.job.scenario.train.learning_rate * gradient, atol=1e-6)


def test_frozen_models_keep_still_while_another_trains() -> None:
    """Each call gives a model of its own, in evaluation mode, whose parameters get no gradient."""

    def half(local: Local) -> Upload:
        first, second = local.frozen(local.received), local.frozen(torch.zeros_like(local.received))
        before = first(local.data().inputs)
        trained = local.train(local.received, loss_term=lambda model, batch: first(batch.inputs).mean(1))
        assert first is not second and not first.training
        assert torch.equal(first(local.data().inputs), before)
        assert not second(local.data().inputs).any()
        assert not any(parameter.requires_grad for parameter in first.parameters())
        return Upload(trained.params - local.received)

    work, done = probe(half)
    _, same = probe(plain)
    assert torch.equal(done.vector, same.vector), "a term that does not depend on the model has no gradient"
    assert len(work.frozen) == 2


@pytest.mark.parametrize("reads", [lambda local: local.data(), lambda local: local.loss(local.received)])
def test_what_epsilon_does_not_cover_is_refused_under_privacy(reads: Callable[[Local], Any]) -> None:
    work = Work(small.job(small.PRIVATE))

    def half(local: Local) -> Upload:
        reads(local)
        return Upload(torch.zeros_like(local.received))

    work.algorithm = Algorithm("probe", half, add_update)
    with pytest.raises(ClientError, match=r"not covered by privacy\.example"):
        work.train(0, 1, Received(work.initial, {}), None)


def test_a_loss_leaves_the_model_as_it_was() -> None:
    """Measured as models are measured: dropout off, and batch norm with the means it has, which stay."""
    norm: Any = {"model": {"name": "cnn", "preset": "small", "norm": "batch"}}
    kept: list[Tensor] = []

    def half(local: Local) -> Upload:
        kept.extend([local.loss(local.received), local.loss(local.received)])
        return Upload(local.train(local.received).params - local.received)

    work, done = probe(half, **norm)
    _, same = probe(plain, **norm)
    assert torch.equal(done.vector, same.vector), "and so do the buffers that the client sends"
    rows = work.federation.rows(0, "train")
    measured = work.problem.metrics(work.evaluate(work.initial, rows, "rows"))["loss"]
    assert kept[0] == kept[1]
    assert abs(float(kept[0]) - measured) < 1e-5
