"""Models of Hugging Face's transformers: of texts and images, whole, or only low-rank adapters of them.

Wolf et al., "Transformers: State-of-the-Art Natural Language Processing", EMNLP 2020. Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022: W x + (alpha / rank) B A x, where only A and B are trained, and the
head; what is frozen is loaded by every worker and never sent.
"""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim import registry
from fedsim.data.corpus import PREDICTS_NEXT
from fedsim.errors import ModelError, one_line
from fedsim.extras import needed

_ROOM = "the hub cannot be reached, or has no such model"


class Text(nn.Module):
    """Tokens [B, L] to logits [B, outputs], or [B, L, outputs] of a language model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self._padding: int | None = config.pad_token_id
        wanted = inspect.signature(_plain(model).forward).parameters
        # Where positions simply count from 0 they are given for every row, since per-example gradients of a table of
        # positions need a row of them each.
        self._counted = config.model_type in {"bert", "electra"}
        self._mask = "attention_mask" in wanted and self._padding is not None

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; rows attend to all that is no padding."""
        more: dict[str, Tensor] = {}
        if self._mask:
            more["attention_mask"] = tokens.ne(self._padding or 0).long()
        if self._counted:
            more["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            more["token_type_ids"] = torch.zeros_like(tokens)
        logits: Tensor = self.model(input_ids=tokens, **more).logits
        return logits


class Image(nn.Module):
    """Pixels [B, C, H, W] to logits [B, outputs]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


def hugging_face(
    shape: tuple[int, ...],
    outputs: int,
    task: str,
    *,
    pretrained: str | None = None,
    revision: str = "main",
    config: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    attention_dropout: float | None = None,
    vocabulary: int | None = None,
    padding: int | None = None,
    scenario_folder: Path = Path(),
) -> nn.Module:
    """A model of transformers for texts (token rows) or images.

    Args:
        shape: of one row: (L,) tokens or (C, H, W) pixels.
        outputs: values that it gives for every row, or for every place.
        task: "next-token" and "generation" take a language model over as many tokens, others a head of their own.
        pretrained: an id of the hub, or a folder that `save_pretrained` has written. Its weights are read from
            safetensors alone, and no code comes with it.
        revision: branch, tag or commit of the hub's repository; a commit can be repeated.
        config: instead of `pretrained`, a random model: `model_type`, and what its configuration takes.
        lora: only adapters and head are trained: `rank` (8), `alpha` (16.0), `dropout` (0.0), and `targets`, ends of
            the names of the layers that get one (the family's usual ones).
        attention_dropout: instead of the configuration's; 0.0 under privacy.example, where attention would draw for
            all rows of a batch at once.
        vocabulary: number of different tokens in the data, where it is known.
        padding: the token that fills rows up, where the data say so; the model's own otherwise.
        scenario_folder: where `pretrained` is looked for.

    Raises:
        ModelError: the model is not there, cannot be built, or does not fit the rows.
    """
    transformers = needed("transformers", "hf", "model 'hugging-face'")
    if (pretrained is None) == (config is None):
        raise ModelError("model 'hugging-face': give pretrained or config, one of them")
    chosen = registry.bind(_lora, lora, "model.lora") if lora is not None else None
    if pretrained is not None and (scenario_folder / pretrained).is_dir():
        pretrained = str(scenario_folder / pretrained)
    with _quiet(), _failing(pretrained):
        settings = _configuration(transformers, pretrained, revision, config, outputs, task)
        if padding is not None:
            settings.pad_token_id = padding
        if attention_dropout is not None:
            _set_attention_dropout(settings, attention_dropout)
        _check_shape(settings, shape, vocabulary, outputs, task)
        model = _built(transformers, pretrained, revision, settings, shape, task)
        if chosen is not None:
            model = _adapted(model, _lora(**chosen))
    return Text(model) if len(shape) == 1 else Image(model)


def _lora(rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: list[str] | None = None) -> dict[str, Any]:
    """Arguments of peft's LoraConfig."""
    return {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": targets}


def _configuration(
    transformers: Any, pretrained: str | None, revision: str, config: Mapping[str, Any] | None, outputs: int, task: str
) -> Any:
    if pretrained is not None:
        found = transformers.AutoConfig.from_pretrained(pretrained, revision=revision)
    else:
        assert config is not None
        given = {"model_type": "", **config}
        found = transformers.AutoConfig.for_model(given.pop("model_type"), **given)
    if task not in PREDICTS_NEXT and found.num_labels != outputs:
        found.num_labels = outputs
    return found


def _set_attention_dropout(settings: Any, share: float) -> None:
    """Set it under each name that a family may have for it."""
    names = [
        name for name in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop") if hasattr(settings, name)
    ]
    if not names or not 0 <= share < 1:
        raise ModelError(
            f"model.attention_dropout = {share}: give a share of at least 0 and below 1, to a family that has it"
        )
    for name in names:
        setattr(settings, name, share)


def _check_shape(settings: Any, shape: tuple[int, ...], vocabulary: int | None, outputs: int, task: str) -> None:
    """Refuse rows that the model cannot take.

    Raises:
        ModelError: says what does not fit.
    """
    if len(shape) not in (1, 3):
        raise ModelError(f"model 'hugging-face' takes rows of tokens or pixels, and these are {list(shape)}")
    if len(shape) == 3:
        return
    known, places = getattr(settings, "vocab_size", None), getattr(settings, "max_position_embeddings", None)
    if known is not None and vocabulary is not None and vocabulary > known:
        raise ModelError(
            f"model 'hugging-face' knows {known} tokens, and the data have {vocabulary}: they were made by another "
            "tokenizer; set data.tokenizer to the model's"
        )
    if places is not None and shape[0] > places:
        raise ModelError(f"model 'hugging-face' takes {places} tokens a row, and these are {shape[0]}; cut them")
    if task in PREDICTS_NEXT and known != outputs:
        raise ModelError(f"model 'hugging-face' gives {known} outputs a place, the data need {outputs}")


def _built(
    transformers: Any, pretrained: str | None, revision: str, settings: Any, shape: tuple[int, ...], task: str
) -> Any:
    """The model, without memory for its parameters where torch's default device is "meta"."""
    family = transformers.AutoModelForImageClassification
    if len(shape) == 1:
        family = transformers.AutoModelForSequenceClassification
        if task in PREDICTS_NEXT:
            family = transformers.AutoModelForCausalLM
    if pretrained is None or torch.get_default_device().type == "meta":
        return family.from_config(settings, dtype=torch.float32)
    return family.from_pretrained(
        pretrained,
        revision=revision,
        config=settings,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # a head of its own size begins anew
    )


def _adapted(model: Any, chosen: Mapping[str, Any]) -> Any:
    peft = needed("peft", "hf", "model.lora")
    kinds = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM"}
    kind = next((each for end, each in kinds.items() if type(model).__name__.endswith(end)), None)
    head = {} if kind is not None else {"modules_to_save": ["classifier"]}
    return peft.get_peft_model(model, peft.LoraConfig(task_type=kind, **head, **chosen))


def _plain(model: Any) -> Any:
    """The model under its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars and reports of what was loaded."""
    theirs: Any = needed("transformers.utils.logging", "hf", "model 'hugging-face'")
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


@contextmanager
def _failing(pretrained: str | None) -> Iterator[None]:
    """Say in one line what transformers and peft say in many."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"model 'hugging-face': {pretrained!r} is no folder of a model and not in the cache of this machine, and "
            f"{_ROOM}; download it where there is a network, and give its folder"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(f"model 'hugging-face': {one_line(error)}") from error
