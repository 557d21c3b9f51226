"""What a Matbench evaluation does, written once: default, validation and meaning of every option."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fieldflows.errors import SettingsError, suggestion
from fieldflows.schemas.matbench import Mode

MODES: tuple[str, ...] = get_args(Mode)
"""Names of the modes."""


class MatbenchSettings(BaseModel):
    """Which predictors are judged, and how the head is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modes: tuple[Mode, ...] = Field(
        ("fixed",),
        min_length=1,
        description="'fixed': a model as it is, with what it has seen of each fold. 'retrained': per fold a model that "
        "is trained without the fold's materials. 'corrected': a head on top of that one (of the fixed one where "
        "nothing is retrained), fitted to the other folds.",
    )
    cubic_rows: bool = Field(
        False,
        description="Train the models of the folds on the cubic rows of the other folds, too, where n is the whole "
        "tensor.",
    )
    symmetry: bool = Field(True, description="Evaluate symmetric crystals by their primitive cells and few directions.")
    inner_folds: int = Field(
        5, ge=2, description="Parts of the cross-validation by formula that chooses the head.",
        json_schema_extra={"unit": "1"},
    )  # fmt: skip
    least_rows: int = Field(
        30, ge=5, description="Rows below which no head is fitted.", json_schema_extra={"unit": "1"}
    )
    worst: int = Field(20, ge=0, description="Rows with the largest errors to list.", json_schema_extra={"unit": "1"})
    figures: bool = Field(True, description="Draw parity plots.")

    @field_validator("modes")
    @classmethod
    def _in_order(cls, value: tuple[Mode, ...]) -> tuple[Mode, ...]:
        return tuple(mode for mode in get_args(Mode) if mode in value)

    @property
    def deciding(self) -> dict[str, Any]:
        """What decides predictions, in JSON types: all but what is listed and drawn."""
        return self.model_dump(mode="json", exclude={"worst", "figures"})

    @classmethod
    def of(cls, **values: Any) -> MatbenchSettings:
        """Return checked settings; "all" among the modes stands for every one.

        Raises:
            SettingsError: Names the option that is wrong, and the nearest known name.
        """
        modes = tuple(values.get("modes", ("fixed",)))
        if "all" in modes:
            values["modes"] = MODES
        for mode in modes:
            if mode not in (*MODES, "all"):
                raise SettingsError(f"There is no mode {mode!r}.", suggestion(mode, (*MODES, "all")))
        try:
            return cls(**values)
        except ValidationError as error:
            item = error.errors()[0]
            where = ".".join(str(part) for part in item["loc"])
            raise SettingsError(f"The Matbench option {where} is wrong: {item['msg']}.") from None
