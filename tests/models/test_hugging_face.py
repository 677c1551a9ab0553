"""Models of transformers, made here without a network: whole, as adapters, in private, from a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fedsim
from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import FedsimError, ModelError
from fedsim.job import prepare
from fedsim.local import Work
from fedsim.model import Known, check_size, make_model
from fedsim.parameters import FlatModule
from tests import small

TINY: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
KNOWN = Known((12,), 3, "classification", 40)
ADAPTED = {"config": TINY, "lora": {"rank": 2}}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model of four classes."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    built = make_model("hugging-face", {"config": TINY}, KNOWN._replace(outputs=4), Path(), 7)
    built.model.save_pretrained(place)  # type: ignore[union-attr, operator]
    return place


def made(settings: dict[str, Any], known: Known = KNOWN, seed: int = 1) -> Any:
    return make_model("hugging-face", settings, known, Path(), seed)


def tokens(rows: int = 3) -> torch.Tensor:
    return torch.randint(1, 39, (rows, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_what_fills_a_row_up_changes_nothing(kind: str) -> None:
    """A row's logits are those of its tokens alone, however long the rows of its batch are."""
    module = made({"config": {**TINY, "model_type": kind, "pad_token_id": 0, "max_position_embeddings": 20}}).eval()
    x = tokens()
    filled = torch.cat([x, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    assert torch.allclose(module(x), module(filled), atol=1e-6)


def test_positions_that_are_given_are_those_of_the_model() -> None:
    """Under privacy every row needs its own; they must not be others."""
    module = made({"config": TINY}).eval()
    assert torch.equal(module(tokens()), module.model(input_ids=tokens()).logits)


def alike(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_the_same_seed_gives_the_same_model(folder: Path) -> None:
    for settings in ({"config": TINY}, ADAPTED, {"pretrained": str(folder)}):
        one, same, other = made(settings), made(settings), made(settings, seed=2)
        assert all(
            torch.equal(*pair) for pair in zip(one.state_dict().values(), same.state_dict().values(), strict=True)
        )
        assert not alike(one, other)


def test_a_pretrained_body_gets_a_head_of_the_datas_size(folder: Path) -> None:
    module = made({"pretrained": str(folder)})
    before = make_model("hugging-face", {"config": TINY}, KNOWN._replace(outputs=4), Path(), 7).state_dict()
    after = module.state_dict()
    same = {name for name in after if after[name].shape == before[name].shape and after[name].equal(before[name])}
    new = set(after) - same
    assert new == {"model.classifier.weight", "model.classifier.bias"}
    assert module(tokens()).shape == (3, 3)


def test_a_folder_is_the_scenarios(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever one stands: in a run, and when its model is loaded."""
    monkeypatch.chdir(tmp_path)
    model = {"name": "hugging-face", "pretrained": folder.name}
    changes = {**CHANGES, "rounds": 1, "train.epochs": 1, "model": model}
    job = prepare(small.scenario(changes, folder.parent), Folders.of(None, folder.parent), data=sentences)
    result = small.run(job, tmp_path / "run")
    assert alike(job.build_model(), made({"pretrained": str(folder)}))
    loaded, weights = fedsim.load(tmp_path / "run"), load_file(result.folder / "model/best.safetensors")
    kept = {**dict(loaded.named_buffers()), **loaded.state_dict()}
    assert all(torch.equal(kept[name], values) for name, values in weights.items())
    with pytest.raises(ModelError, match="not in the cache of this machine"):
        made({"pretrained": folder.name})


def test_the_data_say_what_fills_rows_up() -> None:
    """A tokenizer's token for it is told to every family that asks: here 1, as RoBERTa has it."""

    def filled(folders: Folders) -> Corpus:
        return replace(sentences(folders), preprocessing={"kind": "hugging-face-tokens", "padding": 1})

    known = KNOWN._replace(padding=1)
    for name, settings in (("lstm", {"width": 8}), ("transformer", {"width": 8}), ("hugging-face", {"config": TINY})):
        changes = {**CHANGES, "model": {"name": name, **settings}}
        job = prepare(small.scenario(changes), Folders.of(None, Path()), data=filled)
        module, told = job.build_model().eval(), make_model(name, settings, known, Path(), 1).eval()
        x = tokens() + 1
        longer = torch.cat([x, torch.ones(3, 2, dtype=torch.long)], dim=1)
        assert torch.equal(module(x), told(x))
        if name != "transformer":  # which has as many positions as the data
            assert torch.allclose(module(x), module(longer), atol=1e-6)


def test_size_is_known_without_memory(folder: Path) -> None:
    for settings in ({"config": TINY}, ADAPTED, {"pretrained": str(folder)}):
        check_size("hugging-face", settings, KNOWN, Path())
    with pytest.raises(ModelError, match="too large"):
        check_size("hugging-face", {"config": {**TINY, "vocab_size": 10**12}}, KNOWN._replace(vocabulary=None), Path())


def test_only_adapters_and_head_are_sent() -> None:
    """Everything else is a constant: it is never trained, and no part of the vector that travels."""
    whole, adapted = FlatModule(made({"config": TINY})), FlatModule(made(ADAPTED))
    layers, width, rank = 2, 16, 2
    assert adapted.layout.size == layers * 2 * (2 * rank * width) + 3 * width + 3
    assert adapted.layout.size < whole.layout.size / 10
    job = prepare(small.scenario(CHANGES), Folders.of(None, Path()), data=sentences)
    assert Work(job).bytes_down(True) < 4 * whole.layout.size / 2


def test_images_and_bytes() -> None:
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    image = made(
        {"config": {**vit, "intermediate_size": 16, "image_size": 8, "patch_size": 4, "num_channels": 1}},
        Known((1, 8, 8), 3, "classification"),
    )
    assert image(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    gpt = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 256, "n_positions": 16}
    language = made({"config": gpt}, Known((12,), 256, "next-token")).eval()
    x = tokens()
    later = x.clone()
    later[:, 8:] = 1
    assert language(x).shape == (3, 12, 256)
    assert torch.allclose(language(x)[:, :8], language(later)[:, :8], atol=1e-6)  # the past alone counts


CHANGES: small.Changes = {
    "data": {"name": "sentences", "partition": {"kind": "natural"}},
    "model": {"name": "hugging-face", **ADAPTED},
    "train": {"optimizer": "adam", "learning_rate": 0.05, "batch_size": 16, "epochs": 3},
    "rounds": 8,
}


def sentences(folders: Folders) -> Corpus:
    """Rows of class k begin with some of token 10 + k."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(15, 40, (240, 12)), rng.integers(0, 3, 240)
    x[:, 1:7] = 10 + y[:, None]
    return Corpus(
        name="sentences",
        task="classification",
        x=x,
        y=y,
        classes=("a", "b", "c"),
        clients=np.repeat(np.arange(4), 60),
        client_names=tuple("wxyz"),
        vocabulary=40,
    )


def test_adapters_learn_and_the_rest_stays(tmp_path: Path) -> None:
    job = prepare(small.scenario(CHANGES), Folders.of(None, Path()), data=sentences)
    result = small.run(job, tmp_path / "run")
    before, after = job.build_model().state_dict(), load_file(result.folder / "model/last.safetensors")
    moved = {name for name, values in before.items() if not torch.equal(values, after[name])}
    assert moved == {name for name in before if "lora_" in name or "classifier.modules_to_save" in name}
    assert result.values["metrics"]["global/central-test/rows/accuracy"] > 0.6


def test_private_adapters_run(tmp_path: Path) -> None:
    private = {"privacy.example": {"epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 1.0}, "rounds": 1}
    changes = {**CHANGES, **private, "train": {"learning_rate": 0.1, "batch_size": 16, "epochs": 1}}
    with pytest.raises(ModelError, match=r"draw by nn.Dropout only"):
        prepare(small.scenario(changes), Folders.of(None, Path()), data=sentences)
    settings = {"name": "hugging-face", **ADAPTED, "attention_dropout": 0.0}
    job = prepare(small.scenario({**changes, "model": settings}), Folders.of(None, Path()), data=sentences)
    assert "epsilon" in str(small.run(job, tmp_path / "run").values["privacy"]["statement"])


REFUSED: dict[str, tuple[dict[str, Any], Known, str]] = {
    "neither": ({}, KNOWN, "give pretrained or config"),
    "not there": ({"pretrained": "google-bert/bert-base-uncased"}, KNOWN, "not in the cache of this machine"),
    "a word that is no id": ({"pretrained": "a b/c d/e"}, KNOWN, "hugging-face"),
    "no such family": ({"config": {"model_type": "brt"}}, KNOWN, "Unrecognized model identifier"),
    "no family": ({"config": {"hidden_size": 16}}, KNOWN, "hugging-face"),
    "a key of lora": ({"config": TINY, "lora": {"rnk": 2}}, KNOWN, "model.lora.rnk is not known"),
    "no such layers": ({"config": TINY, "lora": {"targets": ["nothing"]}}, KNOWN, "target_modules"),
    "another tokenizer": ({"config": TINY}, KNOWN._replace(vocabulary=41), "made by another tokenizer"),
    "long rows": ({"config": TINY}, KNOWN._replace(shape=(17,)), "takes 16 tokens a row, and these are 17"),
    "features": ({"config": TINY}, Known((4, 5), 3, "classification"), "rows of tokens or pixels"),
    "a dropout of one": ({"config": TINY, "attention_dropout": 1.0}, KNOWN, "below 1"),
    "other bytes": ({"config": {**TINY, "is_decoder": True}}, Known((12,), 256, "next-token"), "40 outputs a place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_one_line(case: str) -> None:
    settings, known, reason = REFUSED[case]
    with pytest.raises(FedsimError, match=reason):
        made(settings, known)
