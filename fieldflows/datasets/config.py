"""The configuration of a dataset: one YAML file that names everything that went into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fieldflows.datasets.duplicates import DuplicatesConfig
from fieldflows.datasets.filters import CleaningConfig
from fieldflows.datasets.overlap import OverlapTarget
from fieldflows.datasets.sources.batio3_md import BaTiO3MD
from fieldflows.datasets.sources.extxyz_generic import ExtxyzGeneric
from fieldflows.datasets.sources.ferroelectric_paths import FerroelectricPaths
from fieldflows.datasets.sources.jsonl import JsonLines
from fieldflows.datasets.sources.matbench import MatbenchDielectric
from fieldflows.datasets.sources.mp_dielectric import MPDielectric
from fieldflows.datasets.sources.mpcontribs_ferroelectrics import MPContribsFerroelectrics
from fieldflows.datasets.sources.paper_dielectric import PaperDielectric
from fieldflows.datasets.sources.paper_ferroelectric import PaperFerroelectric
from fieldflows.datasets.sources.phonopy import PhonopySource
from fieldflows.datasets.sources.sio2_md import SiO2MD
from fieldflows.datasets.splits import SplitConfig
from fieldflows.datasets.web import WebSource
from fieldflows.errors import SettingsError, suggestion

AnySource = Annotated[
    PaperDielectric
    | MPDielectric
    | PaperFerroelectric
    | FerroelectricPaths
    | MPContribsFerroelectrics
    | SiO2MD
    | BaTiO3MD
    | PhonopySource
    | MatbenchDielectric
    | ExtxyzGeneric
    | JsonLines,
    Field(discriminator="type"),
]
"""Every kind of source; ``type`` tells which."""


class DatasetConfig(BaseModel):
    """Where labels come from, how they are cleaned, and how they are divided.

    Example:
        >>> DatasetConfig.model_validate(
        ...     {"name": "d", "sources": [{"type": "paper_dielectric", "path": "a.extxyz"}]}
        ... ).split.train
        0.8
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name of the dataset.", min_length=1)
    sources: list[AnySource] = Field(description="Files, each with its type and declared conventions.", min_length=1)
    cleaning: CleaningConfig = Field(default=CleaningConfig(), description="Thresholds of the cleaning recipe.")
    split: SplitConfig = Field(default=SplitConfig(), description="How frames are divided.")
    duplicates: DuplicatesConfig = Field(default=DuplicatesConfig(), description="What counts as the same crystal.")
    overlap: list[OverlapTarget] = Field(
        default=[], description="Datasets and benchmarks to compare with; a bare string is a folder or digest."
    )
    base: Path | None = Field(
        default=None, exclude=True, description="Folder that relative paths refer to; the configuration file's."
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> DatasetConfig:
        names = [source.label for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {', '.join(twice)}: give each its own name")
        return self

    def asking(self, refresh: bool = False, offline: bool = False) -> DatasetConfig:
        """Return the configuration with another way to ask public services, for all sources that do.

        Args:
            refresh: Fetch again what is kept from earlier.
            offline: Take only what is kept from earlier.

        Raises:
            SettingsError: If both are asked for.
        """
        if refresh and offline:
            raise SettingsError("Nothing can be fetched again offline.", "Choose one of refresh and offline.")
        changes = {name: True for name, wanted in (("refresh", refresh), ("offline", offline)) if wanted}
        sources = [item.model_copy(update=changes) if isinstance(item, WebSource) else item for item in self.sources]
        return self.model_copy(update={"sources": sources}) if changes else self

    @classmethod
    def from_yaml(cls, path: str | Path) -> DatasetConfig:
        """Read a configuration file.

        Raises:
            SettingsError: If it is missing, no YAML, or a key or value is wrong.
        """
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SettingsError(f"There is no file {path}.") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(data, dict):
            raise SettingsError(f"{path} holds no configuration, expected keys such as name and sources.")
        return cls.from_dict(data, base=path.resolve().parent, origin=str(path))

    @classmethod
    def from_dict(
        cls, data: dict[str, Any], base: Path | None = None, origin: str = "the dataset configuration"
    ) -> DatasetConfig:
        """Check a configuration given as a dictionary.

        Args:
            data: Keys and values as in YAML.
            base: Folder that relative paths refer to.
            origin: What to call it in messages.

        Raises:
            SettingsError: Names the first keys that are wrong.
        """
        try:
            return cls.model_validate({**data, "base": base})
        except ValidationError as error:
            problems = [
                f"{'.'.join(str(part) for part in item['loc']) or 'configuration'}: {_problem(item)}"
                for item in error.errors()[:3]
            ]
            more = error.error_count() - len(problems)
            text = "; ".join(problems) + (f"; and {more} more" if more > 0 else "")
            raise SettingsError(f"{origin} is not valid: {text}.") from None


def _problem(item: Any) -> str:
    """Return the message of pydantic, or the known kinds for a source that is none of them."""
    if item["type"] != "union_tag_invalid":
        return str(item["msg"])
    known = [name.strip(" '") for name in item["ctx"]["expected_tags"].split(",")]
    return f"there is no type of source {item['ctx']['tag']!r}. {suggestion(item['ctx']['tag'], known).rstrip('.')}"
