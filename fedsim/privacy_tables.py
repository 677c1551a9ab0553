"""The table `[privacy]` of a scenario, and what is in it."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from fedsim.privacy.plan import Level
from fedsim.tables import Count, Table


class Budget(Table):
    """What all levels of privacy ask alike: exactly one of epsilon and noise_multiplier."""

    epsilon: float | None = Field(None, gt=0, description="target; the noise is solved for it")
    noise_multiplier: float | None = Field(None, gt=0, description="noise over clip, instead of epsilon")
    delta: float = Field(gt=0, lt=1)
    max_participations: Count | None = Field(None, description="rounds a client may take part in, enforced")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give epsilon or noise_multiplier, one of them")
        return self


class ExamplePrivacy(Budget):
    """Differential privacy of single rows (or text windows, or persons), in every client's local steps."""

    max_grad_norm: float = Field(gt=0, description="clip of one unit's gradient")
    accountant: Literal["rdp", "prv", "pld"] = "rdp"
    unit: str | None = Field(None, description="what groups the rows that are protected together; a row if not given")
    relation: Literal["zero-out", "replace"] = "zero-out"
    clipping: Literal["flat", "per-layer"] = Field("flat", description="one bound, or one for each parameter")


class AdaptiveClipping(Table):
    """A clip norm that follows a quantile of the updates' norms, privately."""

    quantile: float = Field(0.5, gt=0, lt=1, description="share of clients that are to stay unclipped")
    rate: float = Field(0.2, gt=0, description="how fast the clip follows")
    bit_noise: float | None = Field(
        None, gt=0, description="noise on the count of unclipped clients; a twentieth of a cohort"
    )


class ClientPrivacy(Budget):
    """Differential privacy of whole clients, by the server's noise on a cohort's clipped sum."""

    clip: float = Field(gt=0, description="largest norm of a client's upload; the first, where it adapts")
    adaptive: AdaptiveClipping | None = None
    mechanism: Literal["gaussian", "tree"] = Field("gaussian", description="tree: DP-FTRL, for cohorts nobody draws")
    min_separation: Count | None = Field(
        None, description="rounds of a tree, and between two participations of a client"
    )
    accountant: Literal["rdp", "prv", "pld", "exact"] | None = Field(
        None, description="rdp where chance hides who takes part, exact where it does not"
    )
    relation: Literal["zero-out", "replace"] = "zero-out"
    amplified: bool = Field(False, description="charge a fixed-size cohort as drawn by chance; needs relation replace")


class LocalPrivacy(Budget):
    """Differential privacy of a client's rows by its own noise on its clipped upload."""

    clip: float = Field(gt=0, description="largest norm of an upload before noise")


class Privacy(Table):
    """Which privacy is promised; none unless a level is given."""

    example: ExamplePrivacy | None = None
    client: ClientPrivacy | None = None
    local: LocalPrivacy | None = None
    without: dict[str, Any] | None = Field(
        None, description="run the scenario without privacy too, with these keys changed, and print both"
    )

    @model_validator(mode="after")
    def _without(self) -> Self:
        if self.without is not None and self.level is None:
            raise ValueError("without needs example, client or local: there is no privacy to do without")
        for key in self.changes:
            if key.partition(".")[0] not in ("rounds", "train", "evaluate", "stop"):
                raise ValueError(f"without cannot change {key}; only rounds, train, evaluate and stop may differ")
        return self

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        if len(self._levels) > 1:
            raise ValueError(
                f"give one of {' and '.join(self._levels)}: they protect something else from somebody else, and their "
                "epsilons are never added up"
            )
        return self

    @property
    def _levels(self) -> list[Level]:
        levels: tuple[Level, ...] = ("example", "client", "local")
        return [level for level in levels if getattr(self, level) is not None]

    @property
    def level(self) -> Level | None:
        """The level at which something is promised."""
        return next(iter(self._levels), None)

    @property
    def changes(self) -> dict[str, Any]:
        """What `without` changes, by dotted keys; TOML's `train.learning_rate` without quotes is a table in one."""
        changes: dict[str, Any] = {}
        for key, value in (self.without or {}).items():
            inner = value if isinstance(value, Mapping) and "." not in key else {}
            changes |= {f"{key}.{name}": part for name, part in inner.items()} or {key: value}
        return changes
