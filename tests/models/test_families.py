"""The four families: sizes, shapes, causality, flat vectors and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.errors import FedsimError, ModelError, ScenarioError
from fedsim.model import Known, make_model
from fedsim.parameters import FlatModule, Weights, from_record, layout_of, to_record

CASES: list[tuple[str, tuple[int, ...], int, str, dict[str, Any]]] = [
    ("mlp", (1, 8, 8), 10, "classification", {}),
    ("mlp", (14,), 2, "classification", {"hidden": []}),
    ("cnn", (1, 8, 8), 10, "classification", {}),
    ("cnn", (3, 11, 17), 4, "classification", {"preset": "32-64-128", "norm": "batch"}),
    ("cnn", (3, 8, 8), 4, "classification", {"norm": "group", "channels": [6, 12, 16], "activation": "relu"}),
    ("lstm", (12,), 256, "next-token", {"width": 16}),
    ("lstm", (12,), 3, "classification", {"width": 16}),
    ("lstm", (9, 5), 3, "classification", {"width": 16, "layers": 1}),
    ("transformer", (12,), 256, "next-token", {"width": 16}),
    ("transformer", (12,), 3, "classification", {"width": 16}),
    ("transformer", (9, 5), 3, "classification", {"width": 16, "dropout": 0.1}),
]


def build(name: str, shape: tuple[int, ...], classes: int, task: str, settings: dict[str, Any]) -> nn.Module:
    return make_model(name, settings, Known(shape, classes, task), Path(), seed=1)


def rows(name: str, shape: tuple[int, ...], count: int = 3) -> Tensor:
    """Bytes where a family takes tokens, else floats."""
    generator = torch.Generator().manual_seed(2)
    if name in ("lstm", "transformer") and len(shape) == 1:
        return torch.randint(256, (count, *shape), generator=generator)
    return torch.randn(count, *shape, generator=generator)


@pytest.mark.parametrize(
    ("name", "settings", "shape", "count"),
    [
        ("mlp", {}, (1, 28, 28), 784 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10),
        ("mlp", {"preset": "2nn"}, (1, 28, 28), 199_210),  # McMahan et al. 2017
        ("mlp", {"hidden": []}, (14,), 150),
        ("cnn", {}, (1, 8, 8), 3_130),
        ("cnn", {"preset": "32-64-128"}, (1, 28, 28), 421_642),
        ("cnn", {"preset": "mcmahan"}, (1, 28, 28), 1_663_370),  # McMahan et al. 2017
        ("lstm", {}, (9, 6), 4 * 128 * (6 + 128 + 2) + 4 * 128 * (128 + 128 + 2) + 1_290),
        ("transformer", {}, (20,), (256 + 20) * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64 + 650),
    ],
)
def test_presets_have_the_published_sizes(
    name: str, settings: dict[str, Any], shape: tuple[int, ...], count: int
) -> None:
    assert layout_of(build(name, shape, 10, "classification", settings)).size == count


@pytest.mark.parametrize(("name", "shape", "classes", "task", "settings"), CASES)
def test_outputs_have_the_shape_of_the_task(
    name: str, shape: tuple[int, ...], classes: int, task: str, settings: dict[str, Any]
) -> None:
    output = build(name, shape, classes, task, settings)(rows(name, shape))
    assert output.shape == ((3, *shape, classes) if task == "next-token" else (3, classes))


@pytest.mark.parametrize(("name", "shape", "classes", "task", "settings"), CASES)
def test_the_head_alone_stands_between_features_and_logits(
    name: str, shape: tuple[int, ...], classes: int, task: str, settings: dict[str, Any]
) -> None:
    """FedRep's pattern "head.*" and MOON's features hold for every family."""
    module: Any = build(name, shape, classes, task, settings).eval()
    x = rows(name, shape)
    assert torch.equal(module.head(module.features(x)), module(x))
    assert {slot.name for slot in layout_of(module).parameters if slot.name.startswith("head.")} == {
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize("name", ["lstm", "transformer"])
@pytest.mark.parametrize("place", [1, 6, 11])
def test_a_later_byte_changes_no_earlier_logit(name: str, place: int) -> None:
    """Else the next byte would be predicted from itself. Later logits do change: the past is seen."""
    module = build(name, (12,), 256, "next-token", {"width": 16})
    text = rows(name, (12,))
    changed = text.clone()
    changed[:, place] = (changed[:, place] + 1) % 256
    with torch.no_grad():
        before, after = module(text), module(changed)
    torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
    assert (after[:, place:] - before[:, place:]).abs().amax(2).min() > 1e-6


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_classes_depend_on_every_byte_and_on_their_order(name: str) -> None:
    module = build(name, (6,), 3, "classification", {})
    text = torch.tensor([list(b"abcdef"), list(b"abcdex"), list(b"xbcdef"), list(b"bacdef")])
    with torch.no_grad():
        output = module(text)
    assert ((output[1:] - output[0]).abs().amax(1) > 1e-5).all()


@pytest.mark.parametrize(("name", "shape", "classes", "task", "settings"), CASES)
def test_first_values_depend_on_the_seed_alone(
    name: str, shape: tuple[int, ...], classes: int, task: str, settings: dict[str, Any]
) -> None:
    """Not on what was drawn before, and building draws nothing from the caller's generator."""
    first = FlatModule(build(name, shape, classes, task, settings)).vector
    torch.rand(7)
    state = torch.random.get_rng_state()
    assert torch.equal(FlatModule(build(name, shape, classes, task, settings)).vector, first)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = make_model(name, settings, Known(shape, classes, task), Path(), seed=2)
    assert not torch.equal(FlatModule(other).vector, first)


@pytest.mark.parametrize(("name", "shape", "classes", "task", "settings"), CASES)
def test_a_model_survives_the_flat_vector_and_the_wire(
    name: str, shape: tuple[int, ...], classes: int, task: str, settings: dict[str, Any]
) -> None:
    """Forward, backward and an update in place on one vector; then the same outputs from another module."""
    x = rows(name, shape)
    plain = build(name, shape, classes, task, settings).eval()
    expected = plain(x).detach()
    flat = FlatModule(build(name, shape, classes, task, settings).eval())
    assert torch.equal(flat.module(x), expected)
    flat.module(x).square().sum().backward()
    assert (flat.gradient != 0).any()
    flat.vector.sub_(flat.gradient, alpha=1e-3)
    flat.check()
    received = from_record(flat.layout, to_record(flat.layout, Weights(flat.vector, flat.buffers)))
    other = FlatModule(make_model(name, settings, Known(shape, classes, task), Path(), seed=2).eval())
    other.load(received)
    assert torch.equal(other.module(x), flat.module(x))
    assert not torch.equal(other.module(x), expected)


@pytest.mark.parametrize(
    ("name", "shape", "task", "settings", "message"),
    [
        ("mlp", (79,), "next-token", {}, "model 'mlp' gives one output a row and cannot predict the next byte"),
        ("cnn", (79,), "next-token", {}, "use lstm or transformer"),
        ("cnn", (14,), "classification", {}, r"takes images \[channels, height, width\], not rows \[14\]; use mlp"),
        ("cnn", (1, 3, 8), "classification", {}, "2 poolings need images of at least 4x4, these are 3x8"),
        ("cnn", (1, 8, 8), "classification", {"kernel": 4}, "kernel = 4 should be odd"),
        ("cnn", (1, 8, 8), "classification", {"channels": []}, "channels = 0 should be at least 1"),
        ("lstm", (1, 8, 8), "classification", {}, r"not \[1, 8, 8\]; use cnn"),
        ("lstm", (9, 5), "next-token", {}, r"predicts the next of rows \[L\] of bytes, not of rows \[9, 5\]"),
        ("transformer", (9,), "classification", {"heads": 5}, "width = 64 should be a multiple of heads = 5"),
        ("transformer", (9,), "classification", {"dropout": 1.0}, "dropout = 1.0 should be at least 0 and below 1"),
        ("mlp", (9,), "classification", {"hidden": [8, 0]}, "hidden = 0 should be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str, shape: tuple[int, ...], task: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as error:
        build(name, shape, 10, task, settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "smal"}, "model.preset = 'smal'"),
        ({"chanels": [8]}, "model.chanels is not known. Did you mean channels?"),
        ({"norm": "layer"}, "model.norm = 'layer'"),
        ({"classes": 3}, "model.classes is not known"),
    ],
)
def test_wrong_keys_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FedsimError, match=message) as error:
        build("cnn", (1, 8, 8), 10, "classification", settings)
    assert isinstance(error.value, ScenarioError)
