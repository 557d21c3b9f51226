"""What an evaluation does, written once: default, validation and meaning of every option."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fieldflows.datasets.splits import SPLITS
from fieldflows.errors import SettingsError, suggestion
from fieldflows.observables import check_observables


class EvaluationSettings(BaseModel):
    """Which frames and labels are compared, and what is done besides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    splits: tuple[str, ...] = Field(
        ("test",), min_length=1, description="Subsets of the dataset, each reported on its own."
    )
    labels: tuple[str, ...] | None = Field(
        None, description="Observables to compare; those that the model was trained on by default."
    )
    identities: int = Field(
        3, ge=0, description="Frames on which physical identities are tried.", json_schema_extra={"unit": "1"}
    )
    forest: Literal["auto", "on", "off"] = Field(
        "auto",
        description="A random forest on composition and volume beside ε∞ and n: where scikit-learn is installed, "
        "always (an error without it), or never.",
    )
    symmetry: bool = Field(True, description="Evaluate symmetric crystals by their primitive cells and few directions.")
    path_charges: bool = Field(
        True, description="Evaluate Z* at the ends of paths, which tells the branch of P_s where P alone does not."
    )
    outliers: int = Field(
        10, ge=0, description="Worst frames listed per quantity and subset.", json_schema_extra={"unit": "1"}
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.", json_schema_extra={"unit": "1"})

    @field_validator("splits")
    @classmethod
    def _known_splits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SPLITS:
                raise ValueError(f"There is no subset {name!r}. {suggestion(name, SPLITS)}")
        return tuple(dict.fromkeys(value))

    @classmethod
    def of(cls, **values: Any) -> EvaluationSettings:
        """Return checked settings; "all" among the splits stands for every subset.

        Raises:
            SettingsError: Names the option that is wrong, and the nearest known name.
        """
        if "splits" in values and "all" in values["splits"]:
            values["splits"] = SPLITS
        if values.get("labels"):
            values["labels"] = check_observables(values["labels"])
        try:
            return cls(**values)
        except ValidationError as error:
            item = error.errors()[0]
            message = str(item["msg"]).removeprefix("Value error, ")
            where = ".".join(str(part) for part in item["loc"])
            raise SettingsError(f"The evaluation option {where} is wrong: {message}") from None
