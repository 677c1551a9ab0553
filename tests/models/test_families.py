"""The four families: sizes, shapes, causality, flat vectors and what they refuse."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.algorithm import Batch
from fedsim.errors import FedsimError, ModelError, ScenarioError
from fedsim.functional import StackedModel
from fedsim.model import Known, make_model
from fedsim.parameters import FlatModule, Weights, from_record, layout_of, to_record
from fedsim.problem import problem_for

CASES: list[tuple[str, tuple[int, ...], int, str, dict[str, Any]]] = [
    ("mlp", (1, 8, 8), 10, "classification", {}),
    ("mlp", (14,), 2, "classification", {"hidden": []}),
    ("cnn", (1, 8, 8), 10, "classification", {}),
    ("cnn", (3, 11, 17), 4, "classification", {"preset": "32-64-128", "norm": "batch"}),
    ("cnn", (3, 8, 8), 4, "classification", {"norm": "group", "channels": [6, 12, 16], "activation": "relu"}),
    ("lstm", (12,), 256, "next-token", {"width": 16}),
    ("lstm", (12,), 3, "classification", {"width": 16}),
    ("lstm", (9, 5), 3, "classification", {"width": 16, "layers": 1}),
    ("lstm", (2, 6, 5), 3, "classification", {"width": 16, "layers": 1}),
    ("lstm", (9, 5), 3, "classification", {"width": 16, "layers": 1, "pool": "last"}),
    ("transformer", (12,), 256, "next-token", {"width": 16}),
    ("transformer", (12,), 3, "classification", {"width": 16}),
    ("transformer", (9, 5), 3, "classification", {"width": 16, "dropout": 0.1}),
    ("transformer", (2, 6, 9), 3, "classification", {"width": 16, "patch": 3}),
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
        ("transformer", {}, (3, 8, 8), (3 * 16 + 1 + 4) * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64 + 650),
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


@pytest.mark.parametrize("name", ["lstm", "transformer"])
@pytest.mark.parametrize("length", [1, 4, 9])
@pytest.mark.parametrize("padding", [0, 2])
def test_what_fills_a_row_up_changes_no_class(name: str, length: int, padding: int) -> None:
    """A text of 9 tokens gives what its first ones alone give, whatever the row is filled up to. It does in float64 to
    rounding, in a batch with a row that is full, and as much in gradients as in logits."""
    module = build(name, (9,), 3, "classification", {"width": 16, **({"padding": padding} if padding else {})}).double()
    full = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    filled = full.clone()
    filled[0, length:] = padding
    torch.testing.assert_close(module(filled)[:1], module(full[:1, :length]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(module(filled)[1:], module(full[1:]), rtol=1e-9, atol=1e-12)
    module(filled)[0].square().sum().backward()
    embedding = next(part for part in module.modules() if isinstance(part, nn.Embedding))
    assert embedding.weight.grad is not None and not embedding.weight.grad[padding].any()


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_a_row_of_nothing_has_classes_and_no_more_than_its_gradient(name: str) -> None:
    """A text may be empty; it says what the head says of zeros, and nothing is lost to what is not a number."""
    module = build(name, (5,), 3, "classification", {"width": 16})
    output = module(torch.zeros(2, 5, dtype=torch.int64))
    assert torch.equal(output, module.get_submodule("head").bias.expand(2, 3))  # type: ignore[operator]
    output.sum().backward()
    assert all(bool(part.grad.isfinite().all()) for part in module.parameters() if part.grad is not None)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_filled_up_texts_of_two_clients_are_one_computation(name: str) -> None:
    """`engine.stack`: as a stack they have each client's own gradient, also where a row holds next to nothing."""
    problem = problem_for("classification", ["a", "b", "c"])
    module = build(name, (9,), 3, "classification", {"width": 16}).double()
    flat = FlatModule(copy.deepcopy(module))
    x, y = torch.randint(1, 256, (2, 4, 9), generator=torch.Generator().manual_seed(1)), torch.arange(8).view(2, 4) % 3
    x[0, 1, 5:], x[1, 2, 1:], x[1, 3] = 0, 0, 0
    vectors, stack = flat.vector.expand(2, -1).clone(), StackedModel(module, problem)
    done = stack.step(vectors, stack.buffers(vectors[:, :0]), Batch(x, y), torch.full((2, 4), 0.25).double())
    for client in range(2):
        flat.differentiate(problem.mean_loss(flat.module(x[client]), y[client]))
        torch.testing.assert_close(done.gradient[client], flat.gradient, rtol=1e-9, atol=1e-12)


def test_text_that_is_predicted_has_no_padding() -> None:
    """Byte 0 is a byte there: what stands before a place is attended to, zeros too."""
    module = build("transformer", (6,), 256, "next-token", {"width": 16})
    zeros, ones = torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 6, dtype=torch.int64)
    zeros[:, -1] = ones[:, -1] = 7
    with torch.no_grad():
        assert (module(zeros)[:, -1] - module(ones)[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(9, 5), (2, 6, 5)])
def test_the_last_step_is_where_the_network_ends(shape: tuple[int, ...]) -> None:
    """torch gives its hidden state there by itself; the mean over steps is something else."""
    settings, x = {"width": 16, "layers": 2}, rows("lstm", shape)
    last: Any = build("lstm", shape, 3, "classification", {**settings, "pool": "last"})
    mean: Any = build("lstm", shape, 3, "classification", settings)
    steps = x if len(shape) == 2 else x.transpose(1, 2).flatten(2)
    _, (hidden, _) = last.lstm(steps)
    assert torch.equal(last.features(x), hidden[-1])
    assert not torch.allclose(mean.features(x), hidden[-1], atol=1e-3)


def test_an_images_steps_are_its_lines() -> None:
    """The LSTM sees line by line all channels of it, as if it were given such vectors."""
    image = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(1))
    lines = torch.stack([torch.cat([image[:, 0, row], image[:, 1, row]], dim=1) for row in range(6)], dim=1)
    settings = {"width": 16, "layers": 1}
    one = build("lstm", (2, 6, 5), 3, "classification", settings)
    other = build("lstm", (6, 10), 3, "classification", settings)
    assert torch.equal(one(image), other(lines))


def test_an_images_places_are_its_patches() -> None:
    """The Transformer sees squares, line by line of them, as if it were given such vectors."""
    image = torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    squares = [image[:, :, row : row + 2, column : column + 2].flatten(1) for row in (0, 2) for column in (0, 2, 4)]
    one = build("transformer", (2, 4, 6), 3, "classification", {"width": 16, "patch": 2})
    other = build("transformer", (6, 8), 3, "classification", {"width": 16})
    torch.testing.assert_close(one(image), other(torch.stack(squares, dim=1)), rtol=0, atol=0)


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
        ("lstm", (1, 2, 8, 8), "classification", {}, r"of pixels, not \[1, 2, 8, 8\]"),
        ("lstm", (1, 8, 8), "next-token", {}, r"predicts the next of rows \[L\] of bytes, not of rows \[1, 8, 8\]"),
        ("transformer", (1, 8, 6), "classification", {}, "patch = 4 should divide images of 8x6 pixels"),
        ("transformer", (1, 8, 8), "classification", {"patch": 0}, "patch = 0 should be at least 1"),
        ("lstm", (9, 5), "next-token", {}, r"predicts the next of rows \[L\] of bytes, not of rows \[9, 5\]"),
        (
            "lstm",
            (9,),
            "classification",
            {"pool": "last"},
            "pool = .last. is not for tokens, of which the last may only",
        ),
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
