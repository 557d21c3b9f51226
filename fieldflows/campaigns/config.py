"""What a campaign file says: which crystals, which stages, which models, in what portions, on which engine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fieldflows.campaigns.yaml_lines import Place, line_of, load_with_lines
from fieldflows.datasets.sources.mp_dielectric import MPFilter
from fieldflows.errors import FieldflowsError, SettingsError, suggestion
from fieldflows.schemas.common import quantity
from fieldflows.schemas.identity import settings_hash

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")

DEVICE = re.compile(r"(cpu|cuda|xpu|mps)(:\d+)?")
"""Torch devices that workers may have."""

TASKS = ("relax", "dielectric", "spontaneous_polarization")
"""What a stage may do."""


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: letters, digits, '_', '-' and '.', at most 80, please")
    return name


class Section(BaseModel):
    """Base of the sections: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class InputSet(Section):
    """Some crystals, from one place; a campaign may have several sets."""

    WAYS: ClassVar[tuple[str, ...]] = ("mp_ids", "mp_query", "files", "dataset", "campaign")

    mp_ids: tuple[str, ...] | str | None = Field(
        None, description="Ids of the Materials Project, or a text file with one in each line."
    )
    mp_query: MPFilter | None = Field(None, description="A filter for materials of the Materials Project.")
    files: tuple[str, ...] | str | None = Field(None, description="Files of structures, or patterns such as 'a/*.cif'.")
    dataset: str | None = Field(None, description="Folder of a built dataset, a YAML file of one, or its digest.")
    campaign: str | None = Field(None, description="An earlier campaign in the same store.")
    subset: Literal["train", "valid", "test", "all"] = Field("all", description="Subset of the dataset.")
    where: str = Field("", description="Of the earlier campaign, results that fulfill this question.")
    structure: Literal["computed", "input"] = Field(
        "computed", description="Of the earlier campaign: structures as they were computed (relaxed), or as given."
    )
    limit: int | None = quantity("1", "At most so many crystals of this set.", None, ge=1)
    reference: bool = Field(True, description="Fetch the permittivities of the Materials Project to show beside.")
    deprecated: bool = Field(False, description="Also materials that the Materials Project calls deprecated.")

    @model_validator(mode="after")
    def _one_way(self) -> InputSet:
        given = [name for name in self.WAYS if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(self.WAYS)} (found {', '.join(given) or 'none'})")
        if self.mp_query is not None and not self.mp_query.criteria():
            raise ValueError("mp_query is empty; the whole of the Materials Project is never asked for by accident")
        if self.where and self.campaign is None:
            raise ValueError("where goes with campaign; a condition on all crystals stands in the first stage")
        return self

    @property
    def way(self) -> str:
        """Which kind of place it is."""
        return next(name for name in self.WAYS if getattr(self, name) not in (None, ()))


class ModelChoice(Section):
    """Which model answers, and in which precision."""

    name: str = Field("dielectric", description="Model of the field response: a bundled or registered name, a path, "
                      "or sha256:HASH.")  # fmt: skip
    hessian_model: str | None = Field(None, description="Separate model of forces and Hessian; it also relaxes.")
    head: str | None = Field(None, description="Head of a model with several; the first by default.")
    hessian_head: str | None = Field(None, description="The same of the separate model.")
    dtype: Literal["float64", "float32"] = Field("float64", description="Floating point type.")
    device: str = Field("cpu", description="Torch device of the workers, such as cpu or cuda.")

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
        if not DEVICE.fullmatch(device):
            raise ValueError(f"{device!r} is no device; cpu, cuda, cuda:1 and the like are")
        return device


class StageConfig(Section):
    """One stage of the funnel: it takes what the stage before has finished and what fulfills its condition."""

    name: str = Field(description="Name of the stage, unique in the campaign.")
    task: str = Field(
        "dielectric",
        description="What it does: 'dielectric', 'relax', or 'spontaneous_polarization', which takes polar crystals.",
    )
    where: str = Field(
        "", description="Question to the results so far, as for `fieldflows query`; empty: everything that comes in."
    )
    after: str | None = Field(None, description="Stage whose results come in; by default the one before.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings of the task.")
    model: ModelChoice | None = Field(None, description="Another model than that of the campaign.")
    other_models: tuple[str, ...] = Field(
        (), description="Of spontaneous_polarization: models for independent estimates."
    )
    worker: Literal["cpu", "gpu"] = Field("cpu", description="Kind of worker, on engines with several.")
    keep_hessians: bool = Field(False, description="Put Hessians into the additional store for large arrays.")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return _checked_name(name)

    @field_validator("task")
    @classmethod
    def _known(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"there is no task {task!r}. {suggestion(task, TASKS)}")
        return task


class ChunkConfig(Section):
    """In what portions the work is handed out: a killed worker loses a batch, a lost claim a chunk at most."""

    minutes: float = quantity("min", "Predicted work of a chunk.", 5.0, gt=0)
    structures: int = quantity("1", "Largest number of crystals in a chunk.", 200, ge=1)
    atoms: int = quantity("1", "Largest number of atoms in a chunk, unless one crystal alone has more.", 4000, ge=1)
    speed: float = quantity(
        "1", "Speed of a worker, relative to one core with a model of 128 channels in float64.", 1.0, gt=0
    )


class EngineConfig(Section):
    """Where the chunks run."""

    name: Literal["local", "fireworks", "remote"] = Field(
        "local", description="'local': this machine; 'fireworks': FireWorks; 'remote': jobflow-remote."
    )
    workers: int = quantity("1", "Processes of the local engine.", 1, ge=1, le=256)
    launchpad: str | None = Field(None, description="FireWorks: launchpad.yaml; by default as FireWorks finds it.")
    project: str | None = Field(None, description="jobflow-remote: the project; its default one if not given.")
    worker_names: dict[str, str] = Field(
        default_factory=dict,
        description="For 'cpu' and 'gpu': the category of fireworkers, or the name of the worker of jobflow-remote.",
    )
    priority: int = quantity("1", "Priority of the jobs in the queue of the engine.", 0)


class CampaignConfig(Section):
    """A screening campaign."""

    name: str = Field(description="Name, unique in the store.")
    description: str = Field("", description="What it is for.")
    inputs: tuple[InputSet, ...] = Field(description="The crystals.", min_length=1)
    model: ModelChoice = Field(default_factory=ModelChoice, description="The model.")
    stages: tuple[StageConfig, ...] = Field(
        (StageConfig(name="dielectric"),), description="The funnel.", min_length=1, max_length=20
    )
    chunks: ChunkConfig = Field(default_factory=ChunkConfig, description="The portions.")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="The engine.")
    store: str | None = Field(None, description="The store, as for --store; environment variables are filled in.")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return _checked_name(name)

    @model_validator(mode="after")
    def _others_fit(self) -> CampaignConfig:
        for position, stage in enumerate(self.stages):
            if stage.other_models and stage.task != "spontaneous_polarization":
                raise ValueError(f"stages.{position}: other_models are for the task spontaneous_polarization")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> CampaignConfig:
        known: list[str] = []
        for position, stage in enumerate(self.stages):
            if stage.name in known:
                raise ValueError(f"stages.{position}: two stages are called {stage.name!r}")
            if stage.after is not None and stage.after not in known:
                hint = suggestion(stage.after, known) if known else "It is the first."
                raise ValueError(f"stages.{position}: after names {stage.after!r}, which is no earlier stage. {hint}")
            known.append(stage.name)
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> CampaignConfig:
        """Read a campaign file; relative paths in it refer to its folder.

        Raises:
            SettingsError: Names the line that is wrong.
        """
        path = Path(path).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise SettingsError(f"There is no campaign file {path}.", "Examples are in workflows/.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} cannot be read: {error}.") from None
        return cls.from_text(text, str(path), path.resolve().parent)

    @classmethod
    def from_text(cls, text: str, origin: str = "the campaign file", base: Path | None = None) -> CampaignConfig:
        """Check a campaign file given as text.

        Args:
            text: The YAML.
            origin: What to call it in messages.
            base: Folder that relative paths refer to; the current one if None.

        Raises:
            SettingsError: Names the line that is wrong.
        """
        data, lines = load_with_lines(text, origin)
        if not isinstance(data, dict):
            raise SettingsError(f"{origin} holds no campaign.", "Expected keys such as name, inputs and stages.")
        return cls.from_dict(data, origin, base, lines)

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        origin: str = "the campaign",
        base: Path | None = None,
        lines: dict[Place, int] | None = None,
    ) -> CampaignConfig:
        """Check a campaign given as a dictionary; arguments as in :meth:`from_text`.

        Raises:
            SettingsError: Names what is wrong, with the line if known.
        """
        from fieldflows.campaigns.stages import check_stage

        lines = lines or {}
        try:
            config = cls.model_validate(dict(data))
        except ValidationError as error:
            raise SettingsError(_explained(error, origin, lines), "See docs/guides/campaigns.md.") from None
        for position, stage in enumerate(config.stages):
            try:
                check_stage(stage)
            except FieldflowsError as error:
                key = "settings" if isinstance(error, SettingsError) else "where"
                where = _where(origin, ("stages", position, key), lines)
                raise SettingsError(f"{where}: stage {stage.name!r}: {error.message}", error.hint) from None
        for position, given in enumerate(config.inputs):
            if given.where:
                from fieldflows.store.query import parse_query

                try:
                    parse_query(given.where)
                except FieldflowsError as error:
                    where = _where(origin, ("inputs", position, "where"), lines)
                    raise SettingsError(f"{where}: {error.message}", error.hint) from None
        return config.anchored(base or Path.cwd())

    def anchored(self, base: Path) -> CampaignConfig:
        """Return the same campaign with absolute paths, environment variables filled in."""

        def place(text: str) -> str:
            text = os.path.expandvars(os.path.expanduser(text))
            return text if Path(text).is_absolute() else str(base / text)

        inputs = []
        for given in self.inputs:
            changes: dict[str, Any] = {}
            if given.files is not None:
                files = (given.files,) if isinstance(given.files, str) else given.files
                changes["files"] = tuple(place(name) for name in files)
            if isinstance(given.mp_ids, str):
                changes["mp_ids"] = place(given.mp_ids)
            if given.dataset is not None and not re.fullmatch(r"[0-9a-f]{64}", given.dataset):
                changes["dataset"] = place(given.dataset)
            inputs.append(given.model_copy(update=changes))
        engine = self.engine
        if engine.launchpad is not None:
            engine = engine.model_copy(update={"launchpad": place(engine.launchpad)})
        store = None if self.store is None else os.path.expandvars(self.store)
        if store is not None and "://" not in store:
            store = place(store)
        model = self._placed(self.model, base)
        stages = tuple(
            stage if stage.model is None else stage.model_copy(update={"model": self._placed(stage.model, base)})
            for stage in self.stages
        )
        changed = {"inputs": tuple(inputs), "store": store, "model": model, "stages": stages, "engine": engine}
        return self.model_copy(update=changed)

    @staticmethod
    def _placed(model: ModelChoice, base: Path) -> ModelChoice:
        """Return the choice with paths of model files made absolute, where there are such files."""
        changes = {}
        for field in ("name", "hessian_model"):
            text = getattr(model, field)
            path = None if text is None else base / os.path.expandvars(os.path.expanduser(text))
            if path is not None and path.is_file():
                changes[field] = str(path)
        return model.model_copy(update=changes)

    def public_dict(self) -> dict[str, Any]:
        """Return the configuration in JSON types, without the address of the store, which may hold a password."""
        return self.model_dump(mode="json", exclude={"store"}, exclude_none=True)

    @property
    def digest(self) -> str:
        """sha256 of what decides the results: inputs, models and stages; not of portions, engine and store."""
        return settings_hash(self.model_dump(mode="json", include={"name", "inputs", "model", "stages"}))


def _where(origin: str, place: Sequence[str | int], lines: dict[Place, int]) -> str:
    line = line_of(place, lines)
    return origin if line is None else f"{origin}, line {line}"


def _explained(error: ValidationError, origin: str, lines: dict[Place, int]) -> str:
    """Return the first problem with its line, and how many there are."""
    problems = error.errors()
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")  # a misspelled key misses another
    place = list(first["loc"])
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    named = re.match(r"stages\.(\d+): ", message)
    if named:
        place, message = ["stages", int(named[1])], message[named.end() :]
    if first["type"] == "extra_forbidden":
        message = f"there is no key {str(place[-1])!r}. {_near(place)}".rstrip(".")
    elif first["type"] == "missing":
        message = f"{place[-1]!r} is missing"
        place = place[:-1]
    where = _where(origin, [part for part in place if part not in ("tuple[str, ...]", "str")], lines)
    path = ".".join(str(part) for part in place)
    more = f" ({len(problems)} problems in all)" if len(problems) > 1 else ""
    return f"{where}: {path + ': ' if path else ''}{message}{more}."


def _near(place: Sequence[str | int]) -> str:
    sections: dict[str, type[BaseModel]] = {
        "inputs": InputSet, "model": ModelChoice, "stages": StageConfig, "chunks": ChunkConfig, "engine": EngineConfig,
    }  # fmt: skip
    section = CampaignConfig if len(place) == 1 else sections.get(str(place[0]), CampaignConfig)
    return suggestion(str(place[-1]), section.model_fields)
