"""Attacks against plain NumPy, who attacks, and what is refused before anybody does."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from fedsim import adversaries, seeds
from fedsim.adversaries import KINDS, Adversary, attackers, largest_z, make_adversary
from fedsim.data.build import build
from fedsim.data.corpus import Corpus
from fedsim.data.federation import Federation
from fedsim.errors import ScenarioError
from fedsim.tables import Attack

BRIGHT = 2.5
"""The brightest pixel of `images`, as after normalising."""
HERE = Path()
values = st.floats(-100, 100, width=32)
vectors = arrays.arrays(np.float32, st.integers(1, 30), elements=values)
matrices = arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=values)


def generator(purpose: str = "test") -> np.random.Generator:
    return seeds.numpy_generator(1, purpose)


def federation(shape: tuple[int, ...] = (2, 8, 6), classes: int = 5, task: str = "classification") -> Federation:
    """Sixty rows of four clients."""
    rng = generator("rows")
    text = task == "next-token"
    x = rng.integers(0, 256, (60, *shape), dtype=np.uint8) if text else rng.random((60, *shape), dtype=np.float32)
    if not text:
        x.flat[0] = BRIGHT
    corpus = Corpus(
        name="drawn",
        task=task,
        x=x,
        y=rng.integers(0, 256, (60, *shape), dtype=np.uint8) if text else np.arange(60) % classes,
        classes=tuple(map(str, range(256 if text else classes))),
    )
    return build(corpus, 1, {"kind": "iid", "clients": 4}, central=0.0)


@pytest.fixture(scope="module")
def images() -> Federation:
    return federation()


def table(name: str, **settings: Any) -> Attack:
    return Attack(name=name, fraction=0.25, **settings)


def made(name: str, rows: Federation, **settings: Any) -> Adversary:
    return make_adversary(table(name, **settings), rows, HERE)


def sent(adversary: Adversary, contribution: np.ndarray, purpose: str = "test") -> np.ndarray:
    """What an attacker sends; its own contribution is left as it is."""
    assert adversary.upload is not None
    before = torch.from_numpy(contribution.copy())
    after: np.ndarray = adversary.upload(before, generator(purpose)).numpy()
    assert np.array_equal(before.numpy(), contribution)
    assert after.dtype == contribution.dtype
    return after


def agreed(adversary: Adversary, own: np.ndarray, honest: np.ndarray) -> np.ndarray:
    """What all attackers send; nobody's contribution is changed."""
    assert adversary.collude is not None
    before = torch.from_numpy(own.copy()), torch.from_numpy(honest.copy())
    after: np.ndarray = adversary.collude(*before).numpy()
    assert all(np.array_equal(tensor, array) for tensor, array in zip(before, (own, honest), strict=True))
    assert after.dtype == own.dtype
    return after


def trained_on(adversary: Adversary, x: Tensor, y: Tensor, purpose: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """The rows that an attacker trains on; those of the federation are left as they are."""
    assert adversary.rows is not None
    before = x.clone(), y.clone()
    inputs, targets = adversary.rows(x, y, generator(purpose))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert (inputs.dtype, targets.dtype) == (x.dtype, y.dtype)
    return inputs.numpy(), targets.numpy()


@pytest.mark.parametrize(
    ("rows", "largest"),
    [(federation(classes=5), 4), (federation((7,), task="next-token"), 255)],
    ids=["classes", "bytes"],
)
def test_flipped_labels_are_counted_from_the_other_end(rows: Federation, largest: int) -> None:
    """Class c becomes C - 1 - c, and byte b 255 - b; inputs stay. Flipped twice they are as before."""
    x, y = torch.from_numpy(rows.x).clone(), torch.from_numpy(rows.y).long()
    adversary = made("label-flip", rows)
    inputs, targets = trained_on(adversary, x, y)
    assert np.array_equal(inputs, rows.x)
    assert np.array_equal(targets, largest - rows.y.astype(np.int64))
    assert np.array_equal(trained_on(adversary, x, torch.from_numpy(targets))[1], y.numpy())


@given(contribution=vectors, factor=st.floats(0.01, 100))
def test_flipped_and_scaled_contributions(contribution: np.ndarray, factor: float) -> None:
    """-scale u and factor u, as NumPy computes them."""
    flipped = sent(KINDS["sign-flip"](scale=factor), contribution)
    scaled = sent(KINDS["scale"](factor=factor), contribution)
    assert np.allclose(flipped, -factor * contribution.astype(np.float64), rtol=1e-6, atol=1e-44)
    assert np.array_equal(scaled, -flipped)


def test_defaults_are_those_of_the_papers() -> None:
    ones = np.ones(3, np.float32)
    assert np.array_equal(sent(KINDS["sign-flip"](), ones), -ones)
    assert np.array_equal(sent(KINDS["scale"](), ones), 10 * ones)
    assert np.array_equal(sent(KINDS["free-ride"](), ones), 0 * ones)
    assert np.allclose(agreed(KINDS["inner-product"](), ones[None], 2 * ones[None]), -0.2 * ones)


def test_one_replaced_model_among_n_becomes_the_mean() -> None:
    """Bagdasaryan et al., equation 3: with factor n the mean of one attacker and n - 1 still ones is its model."""
    contribution = generator().standard_normal(50).astype(np.float32)
    updates = np.stack([sent(KINDS["scale"](factor=8.0), contribution), *np.zeros((7, 50), np.float32)])
    assert np.allclose(updates.mean(0), contribution)


@pytest.mark.parametrize("length", [1e-30, 1.0, 1e25], ids=["tiny", "one", "huge"])
def test_noise_is_as_long_as_the_honest_contribution(length: float) -> None:
    """Also where squares leave float32: ||noise||^2 / P estimates (scale ||u||)^2 / P within 5 standard errors."""
    size, scale = 20_000, 3.0
    direction = generator("direction").standard_normal(size)
    contribution = (direction * length / np.linalg.norm(direction)).astype(np.float32)
    drawn = sent(KINDS["noise"](scale=scale), contribution).astype(np.float64)
    assert np.linalg.norm(drawn) ** 2 == pytest.approx((scale * length) ** 2, rel=5 * math.sqrt(2 / size))
    assert abs(drawn @ direction) / np.linalg.norm(drawn) / np.linalg.norm(direction) < 5 / math.sqrt(size)


@pytest.mark.parametrize("name", ["noise", "free-ride"])
@given(contribution=vectors.filter(np.any))
def test_draws_belong_to_the_generators_name(name: str, contribution: np.ndarray) -> None:
    """The same name gives the same bits, those of NumPy's normal values times a standard deviation."""
    adversary = KINDS["noise"](scale=2.0) if name == "noise" else KINDS["free-ride"](std=0.5)
    size = len(contribution)
    std = 2 * np.linalg.norm(contribution.astype(np.float64)) / math.sqrt(size) if name == "noise" else 0.5
    once = sent(adversary, contribution, "one")
    assert np.array_equal(once, sent(adversary, contribution, "one"))
    assert not np.array_equal(once, sent(adversary, contribution, "another"))
    assert np.allclose(once, std * generator("one").standard_normal(size), rtol=1e-6, atol=1e-44)


def test_nothing_learned_is_nothing_sent() -> None:
    assert np.array_equal(sent(KINDS["free-ride"](), np.full(4, 7.0, np.float32)), np.zeros(4))
    assert np.array_equal(sent(KINDS["noise"](), np.zeros(4, np.float32)), np.zeros(4))


@pytest.mark.parametrize(
    ("clients", "attacking", "z"),
    [
        (50, 24, 1.426077),  # s = 26 - 24 = 2, (50 - 24 - 2) / 26 = 12/13
        (50, 10, 0.253347),  # s = 16, 24/40 = 3/5
        (10, 2, 0.0),  # s = 4, 4/8
        (11, 5, 0.967422),  # s = 6 - 5 = 1, 5/6
        (10, 1, -0.139710),  # s = 5, 4/9
    ],
)
def test_z_of_alie_by_hand(clients: int, attacking: int, z: float) -> None:
    """Baruch et al., algorithm 3; quantiles from a table of the normal distribution."""
    assert largest_z(clients, attacking) == pytest.approx(z, abs=1e-6)


@given(honest=st.integers(0, 40), attacking=st.integers(1, 40))
def test_z_of_alie_is_finite_and_grows_with_the_attackers(honest: int, attacking: int) -> None:
    """A cohort may be small, or all attackers by chance; one more of the same cohort attacking never lowers z."""
    z = largest_z(honest + attacking, attacking)
    assert math.isfinite(z)
    if honest >= 1 and attacking + 1 <= (honest + attacking) // 2:  # while honest clients are a majority
        assert largest_z(honest + attacking, attacking + 1) >= z


@given(own=matrices, honest_clients=st.integers(0, 9), z=st.none() | st.floats(0.1, 3))
def test_alie_is_the_attackers_mean_less_z_of_their_deviations(
    own: np.ndarray, honest_clients: int, z: float | None
) -> None:
    """Honest contributions are not looked at; a single attacker sends its own."""
    honest = np.full((honest_clients, own.shape[1]), np.inf, np.float32)
    deviations = largest_z(len(own) + honest_clients, len(own)) if z is None else z
    expected = own.mean(0, dtype=np.float64) - deviations * own.std(0, dtype=np.float64)
    found = agreed(KINDS["alie"](z=z), own, honest)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)
    if len(own) == 1:
        assert np.array_equal(found, own[0])


@given(own=matrices, honest_clients=st.integers(0, 6), epsilon=st.floats(0.01, 10))
def test_inner_product_opposes_the_honest_mean(own: np.ndarray, honest_clients: int, epsilon: float) -> None:
    """-epsilon times the honest mean; where a cohort has attackers alone, theirs."""
    honest = generator().standard_normal((honest_clients, own.shape[1])).astype(np.float32)
    expected = -epsilon * (honest if honest_clients else own).mean(0, dtype=np.float64)
    assert np.allclose(agreed(KINDS["inner-product"](epsilon=epsilon), own, honest), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "poisoned"),
    [({}, 30), ({"share": 0.1, "size": 2, "target": 4}, 6), ({"share": 1e-9}, 1), ({"share": 1.0, "size": 1}, 60)],
)
def test_a_backdoor_marks_a_share_of_the_rows(images: Federation, settings: Mapping[str, Any], poisoned: int) -> None:
    """Exactly the marked rows change: the corner of every channel is the corpus' brightest, the label the target."""
    adversary = made("backdoor", images, **settings)
    size, target = settings.get("size", 3), settings.get("target", 0)
    x = torch.from_numpy(images.x).clone()
    y = torch.full((len(x),), 2)
    inputs, targets = trained_on(adversary, x, y)
    marked = np.flatnonzero(targets == target)
    expected = images.x.copy()
    expected[marked, :, 8 - size :, 6 - size :] = BRIGHT
    assert (len(marked), adversary.target, adversary.upload) == (poisoned, target, None)
    assert np.array_equal(inputs, expected)
    assert np.array_equal(np.delete(targets, marked), np.delete(y.numpy(), marked))


def test_a_backdoors_rows_are_drawn_by_the_generators_name(images: Federation) -> None:
    adversary = made("backdoor", images)
    rows = torch.from_numpy(images.x).clone(), torch.from_numpy(images.y).long() + 1
    one, same, other = (trained_on(adversary, *rows, purpose)[1] for purpose in ("one", "one", "other"))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_the_trigger_is_that_of_the_rows_and_marks_a_copy(images: Federation) -> None:
    """The success rate is measured with the square that attackers train on."""
    adversary = made("backdoor", images, share=1.0, factor=4.0)
    assert adversary.trigger is not None
    x = torch.from_numpy(images.x).clone()
    marked = adversary.trigger(x)
    assert torch.equal(x, torch.from_numpy(images.x))
    assert np.array_equal(marked.numpy(), trained_on(adversary, x, torch.zeros(60).long())[0])
    assert np.array_equal(sent(adversary, np.ones(3, np.float32)), np.full(3, 4.0))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_attack_is_made_with_its_defaults_under_its_own_name(name: str, images: Federation) -> None:
    """A name in reports is the one in scenarios, dashes or underscores."""
    assert made(name, images).name == made(name.replace("-", "_"), images).name == name


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sign-flop", {}, r"adversary\.name: there is no 'sign-flop'\. Did you mean sign-flip\?"),
        ("sign-flip", {"scael": 2.0}, r"adversary\.scael is not known\. Did you mean scale\?"),
        ("sign-flip", {"scale": "2"}, r"adversary\.scale = '2': Input should be a valid number"),
        ("label-flip", {"classes": 3}, r"adversary\.classes is not known"),
        ("backdoor", {"largest": 1.0}, r"adversary\.largest is not known"),
        ("sign-flip", {"scale": 0.0}, r"adversary sign-flip: scale = 0: give a number above 0"),
        ("scale", {"factor": -1.0}, r"factor = -1: give a number above 0"),
        ("noise", {"scale": math.nan}, r"scale = nan: give a number above 0"),
        ("noise", {"scale": math.inf}, r"scale = inf: give a number above 0"),
        ("free-ride", {"std": -0.1}, r"std = -0\.1: give a number of at least 0"),
        ("free-ride", {"std": math.inf}, r"std = inf: give a number of at least 0"),
        ("alie", {"z": 0.0}, r"z = 0: give a number above 0"),
        ("inner-product", {"epsilon": -0.1}, r"epsilon = -0\.1: give a number above 0"),
        ("backdoor", {"target": 5}, r"adversary backdoor: target = 5: the classes are 0 to 4"),
        ("backdoor", {"target": -1}, r"target = -1: the classes are 0 to 4"),
        ("backdoor", {"share": 0.0}, r"share = 0: give a share above 0 and at most 1"),
        ("backdoor", {"share": 1.5}, r"share = 1\.5: give a share above 0 and at most 1"),
        ("backdoor", {"size": 4}, r"size = 4: images are 8 x 6; give 1 to 3"),
        ("backdoor", {"size": 0}, r"size = 0: images are 8 x 6; give 1 to 3"),
        ("backdoor", {"factor": math.inf}, r"factor = inf: give a number above 0"),
        ("absent.py:mine", {}, r"adversary\.name: 'absent\.py:mine' should be file\.py:name"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(
    name: str, settings: Mapping[str, Any], message: str, images: Federation
) -> None:
    with pytest.raises(ScenarioError, match=message):
        made(name, images, **settings)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (federation((7,)), r"classification rows of shape \[7\]"),
        (federation((7,), task="next-token"), r"next-token rows of shape \[7\]"),
        (federation((8, 8)), r"classification rows of shape \[8, 8\]"),
    ],
    ids=["table", "text", "no channels"],
)
def test_a_pixel_trigger_needs_images(rows: Federation, what: str) -> None:
    with pytest.raises(ScenarioError, match=rf"adversary backdoor: its trigger needs images .* these are {what}"):
        made("backdoor", rows)


def test_images_too_small_for_the_square_are_named(images: Federation) -> None:
    with pytest.raises(ScenarioError, match="images are 1 x 1, too small for a trigger"):
        made("backdoor", replace(images, x=images.x[:, :, :1, :1]), size=1)


def test_a_users_own_attack_gets_what_it_has_parameters_for(tmp_path: Path, images: Federation) -> None:
    """As the built-in ones do: keys of the scenario, and what the platform knows of the rows."""
    own = """
from fedsim.adversaries import Adversary

def drop(classes: int, shape: tuple[int, ...], keep: float = 0.5) -> Adversary:
    return Adversary(f"drop-{classes}-{shape[0]}", upload=lambda contribution, rng: keep * contribution)

def nothing() -> int:
    return 3

def half() -> Adversary:
    return Adversary("half", target=3)
"""
    (tmp_path / "own.py").write_text(own)
    adversary = make_adversary(table("own.py:drop", keep=0.25), images, tmp_path)
    assert adversary.name == "drop-5-2"
    assert np.array_equal(sent(adversary, np.ones(2, np.float32)), [0.25, 0.25])
    with pytest.raises(ScenarioError, match=r"adversary\.name: own\.py:nothing returned int, not an Adversary"):
        make_adversary(table("own.py:nothing"), images, tmp_path)
    with pytest.raises(ScenarioError, match=r"adversary own\.py:half: an adversary's trigger and target belong"):
        make_adversary(table("own.py:half"), images, tmp_path)


def numbers(task: str = "regression", classes: tuple[str, ...] = ()) -> Federation:
    """Sixty rows with two numbers each for a target."""
    y = generator("numbers").integers(0, 2, (60, 2)).astype(np.float32)
    corpus = Corpus(name="numbers", task=task, x=generator("rows").random((60, 3), np.float32), y=y, classes=classes)
    return build(corpus, 1, {"kind": "iid", "clients": 4}, central=0.0)


@pytest.mark.parametrize("rows", [numbers(), numbers("multi-label", ("red", "round"))], ids=["numbers", "labels"])
def test_what_flips_or_asks_for_a_class_needs_rows_with_one(tmp_path: Path, rows: Federation) -> None:
    """C - 1 - y of numbers would be other numbers, and of labels below 0."""
    with pytest.raises(ScenarioError, match=f"adversary label-flip: it flips classes, and rows of task {rows.task}"):
        made("label-flip", rows)
    own = """
from fedsim.adversaries import Adversary

def spot() -> Adversary:
    return Adversary("spot", trigger=lambda x: x + 1, target=0)
"""
    (tmp_path / "own.py").write_text(own)
    with pytest.raises(ScenarioError, match=r"adversary own\.py:spot: a trigger is to give a class, and rows of 'num"):
        make_adversary(table("own.py:spot"), rows, tmp_path)
    assert np.array_equal(sent(made("sign-flip", rows), np.ones(2, np.float32)), [-1, -1])


@given(fraction=st.floats(0.01, 0.99), able=st.lists(st.booleans(), min_size=2, max_size=60), seed=st.integers(0, 999))
def test_a_fraction_of_the_able_attacks(fraction: float, able: list[bool], seed: int) -> None:
    """max(1, round(fraction n)) of them, the same for the same seed; all of them is refused."""
    who, ready = Attack(name="noise", fraction=fraction), np.flatnonzero(able).tolist()
    expected = max(1, round(fraction * len(ready)))
    if expected >= len(ready):
        with pytest.raises(ScenarioError, match=rf"adversary\.fraction = .*: all {len(ready)} clients"):
            attackers(who, seed, np.array(able))
        return
    found = attackers(who, seed, np.array(able))
    assert (len(found), found) == (expected, sorted(set(found) & set(ready)))
    assert found == attackers(who, seed, np.array(able))
    assert all(type(number) is int for number in found)


def test_every_client_is_as_likely_to_attack() -> None:
    """2 of 10 over 1,000 seeds: each about 200 times, within 5 standard deviations."""
    who, everyone = Attack(name="noise", fraction=0.2), np.ones(10, bool)
    counts = np.bincount(np.concatenate([attackers(who, seed, everyone) for seed in range(1000)]), minlength=10)
    assert np.abs(counts - 200).max() < 5 * math.sqrt(1000 * 0.2 * 0.8)


def test_listed_clients_attack_whatever_the_seed() -> None:
    able = np.array([True, True, False, True])
    assert attackers(Attack(name="noise", clients=[3, 0, 3]), 1, able) == [0, 3]


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ([1, 12], r"adversary\.clients: there is no client 12; the 4 clients are 0 to 3"),
        ([2], r"adversary\.clients: client 2 has no train rows and never takes part; name another"),
        ([0, 1, 3], r"adversary\.clients: all 3 clients that have train rows would attack; leave an honest one"),
    ],
)
def test_who_cannot_attack_is_named(clients: list[int], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        attackers(Attack(name="noise", clients=clients), 1, np.array([True, True, False, True]))


def test_what_is_filled_in_is_not_offered_as_a_key() -> None:
    """`fedsim list adversaries` shows the parameters that a scenario may set."""
    from fedsim.catalogue import listing

    shown = {entry.name: set(entry.parameters) for entry in listing("adversaries")}
    assert set(shown) == set(KINDS)
    assert shown["backdoor"] == {"target", "share", "size", "factor"}
    assert not set().union(*shown.values()) & set(adversaries.FILLED_IN)
