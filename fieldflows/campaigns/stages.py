"""Stages of a campaign: what a stage computes, under which key, from which earlier results.

A stage knows its models by reference (name and sha256), so that it can be sent to a worker as plain JSON and opened
there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fieldflows import __version__
from fieldflows.campaigns.conditions import Condition
from fieldflows.campaigns.config import CampaignConfig, ModelChoice, StageConfig
from fieldflows.errors import FieldflowsError, SettingsError, suggestion
from fieldflows.jobs.evaluate import extra_settings
from fieldflows.jobs.models import ModelReference
from fieldflows.jobs.relax import RelaxSettings, relax_structure
from fieldflows.physics.relation import POLAR_POINT_GROUPS
from fieldflows.properties.base import (
    Property,
    PropertyInput,
    cover_fields,
    covers,
    extent_of,
    full_settings_hash,
    model_card,
)
from fieldflows.properties.dielectric import DielectricProperty, DielectricSettings
from fieldflows.properties.spontaneous_polarization import (
    SpontaneousPolarizationProperty,
    SpontaneousPolarizationSettings,
)
from fieldflows.schemas.common import Document, structure_from_dict
from fieldflows.schemas.failure import FailureDocument
from fieldflows.schemas.ferroelectric import SpontaneousPolarizationDocument
from fieldflows.schemas.identity import document_key, settings_hash, structure_hash
from fieldflows.schemas.provenance import Provenance, Relaxation
from fieldflows.schemas.relaxation import SCHEMA_VERSION as RELAXATION_VERSION
from fieldflows.schemas.relaxation import RelaxationDocument

if TYPE_CHECKING:
    from ase import Atoms

    from fieldflows.backends.base import FieldModel, ModelInfo, Response
    from fieldflows.structures import StructureLike

Outcome = Document | FailureDocument

SETTINGS: dict[str, type[Any]] = {
    "relax": RelaxSettings,
    "dielectric": DielectricSettings,
    "spontaneous_polarization": SpontaneousPolarizationSettings,
}
"""Class of the settings of each task."""

GATES: dict[str, dict[str, Any]] = {
    "spontaneous_polarization": {"point_group": {"$in": sorted(POLAR_POINT_GROUPS)}},
}
"""What a crystal must fulfill for a task to make sense, whatever the condition of the stage says."""


PLANNING_DEVICE = "cpu"
"""Where models are opened to read what they are: a login node may have no GPU."""


def make_property(task: str, settings: Mapping[str, Any]) -> Property:
    """Return the property of a task that computes one."""
    if task == "spontaneous_polarization":
        return SpontaneousPolarizationProperty(SpontaneousPolarizationSettings(**dict(settings)))
    return DielectricProperty(DielectricSettings(**dict(settings)))


def asked_for(task: str, extent: str | None) -> Property:
    """Return a property that can say, without any model, whether a stored result holds this part."""
    if task == "spontaneous_polarization":
        return SpontaneousPolarizationProperty()
    return DielectricProperty(ionic=extent == "ionic")


def check_stage(stage: StageConfig) -> None:
    """Check settings and condition of a stage, without any model.

    Raises:
        SettingsError: Names the setting that is wrong.
        QueryError: If the condition cannot be read.
    """
    kind = SETTINGS[stage.task]
    try:
        kind(**stage.settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"{stage.task} has no setting {name!r}.", suggestion(name, kind.model_fields)) from None
        raise SettingsError(f"setting {name!r}: {first['msg']}.") from None
    Condition.of(stage.where)


@dataclass(frozen=True)
class StageSpec:
    """A stage as a worker needs it; :meth:`to_dict` and :meth:`from_dict` are plain JSON.

    Attributes:
        name: Name of the stage.
        task: What it does.
        where: Its condition.
        after: The stage whose results come in; None for the crystals of the campaign.
        settings: Settings of the task.
        model: Model of the field response.
        hessian_model: Separate model of forces and Hessian.
        worker: Kind of worker.
        keep_hessians: Whether Hessians are kept.
        other_models: Models for independent estimates.
        extent: Which part of its documents it asks for, as the models decide.
        relaxed_by: Name of the relaxation before it, if any.
        relax: Settings and model of that relaxation, and of one before it.
    """

    name: str
    task: str
    where: str
    after: str | None
    settings: dict[str, Any]
    model: ModelReference
    hessian_model: ModelReference | None = None
    worker: str = "cpu"
    keep_hessians: bool = False
    other_models: tuple[ModelReference, ...] = ()
    extent: str | None = None
    relaxed_by: str | None = None
    relax: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the stage in JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageSpec:
        """Return the stage of :meth:`to_dict`; nothing but these fields is read."""
        hessian = data["hessian_model"]
        changes = {
            "model": ModelReference(**data["model"]),
            "hessian_model": None if hessian is None else ModelReference(**hessian),
            "other_models": tuple(ModelReference(**other) for other in data.get("other_models") or ()),
        }
        return cls(**{**data, **changes})


def resolve_stages(config: CampaignConfig) -> list[Stage]:
    """Return the stages of a campaign, after looking up their models and what these can give.

    Raises:
        CheckpointError: If a model does not exist or is damaged.
        CapabilityError: If a model cannot give what a stage asks for.
    """
    found: dict[str, Stage] = {}
    previous: str | None = None
    for stage in config.stages:
        choice = stage.model or config.model
        parent = stage.after or previous
        try:
            model = _reference(choice, choice.name, choice.head)
            hessian = None
            if choice.hessian_model is not None:
                hessian = _reference(choice, choice.hessian_model, choice.hessian_head)
            before = None if parent is None else found[parent].spec
            relaxed_by, relax = _relaxation_before(before)
            spec = StageSpec(
                stage.name, stage.task, stage.where, parent, dict(stage.settings), model, hessian, stage.worker,
                stage.keep_hessians,
                tuple(_reference(choice, name, None) for name in stage.other_models),
                None, relaxed_by, relax,
            )  # fmt: skip
            prop = Stage(spec, PLANNING_DEVICE).bind()
            extent = None if prop is None else extent_of(prop)
            found[stage.name] = Stage(replace(spec, extent=extent), PLANNING_DEVICE)
        except FieldflowsError as error:
            raise type(error)(f"Stage {stage.name!r}: {error.message}", error.hint) from None
        previous = stage.name
    return list(found.values())


def _reference(choice: ModelChoice, name: str, head: str | None) -> ModelReference:
    """Return the reference of a model, looked up on a machine that may lack the device of the workers."""
    found, _ = ModelReference.resolve(name, choice.dtype, PLANNING_DEVICE, head)
    return replace(found, device=choice.device)


def _relaxation_before(before: StageSpec | None) -> tuple[str | None, dict[str, Any]]:
    """Return the name of the nearest relaxation before a stage, and what it was: settings, model, one before it."""
    if before is None:
        return None, {}
    if before.task != "relax":
        return before.relaxed_by, before.relax
    used = before.hessian_model or before.model
    settings = RelaxSettings(**before.settings).model_dump(mode="json")
    relax: dict[str, Any] = {"settings": settings, "model": [used.sha256, used.dtype]}
    return before.name, relax | ({"before": before.relax} if before.relax else {})


class Stage:
    """A stage that can name keys and compute.

    Args:
        spec: What it is.
        device: Torch device on which the models are opened, in place of that of the spec.
    """

    def __init__(self, spec: StageSpec, device: str | None = None) -> None:
        self.spec = spec
        self._device = device
        self.condition = Condition.of(spec.where, GATES.get(spec.task))
        self._models: tuple[FieldModel, FieldModel | None] | None = None
        self._bound: Property | None = None
        self._extra: dict[str, Any] | None = None
        self._identity: tuple[str, str, str, int] | None = None

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.spec.name

    def models(self) -> tuple[FieldModel, FieldModel | None]:
        """Return the models, opened once.

        Raises:
            CheckpointError: If one is not there, or is another one than when the campaign was planned.
        """
        if self._models is None:
            hessian = self.spec.hessian_model
            self._models = self._open(self.spec.model), None if hessian is None else self._open(hessian)
        return self._models

    def _open(self, model: ModelReference) -> FieldModel:
        return (model if self._device is None else replace(model, device=self._device)).open()

    def infos(self) -> tuple[ModelInfo, ModelInfo | None]:
        """Return the cards of the models."""
        model, hessian = self.models()
        return model.info, None if hessian is None else hessian.info

    def bind(self) -> Property | None:
        """Return the property for these models; None for a relaxation.

        Raises:
            CapabilityError: If the models cannot give what is asked.
        """
        if self.spec.task == "relax":
            model, hessian = self.infos()
            (hessian or model).require(("energy", "forces"), "relaxation")
            return None
        if self._bound is None:
            self._bound = make_property(self.spec.task, self.spec.settings).bind(*self.infos())
        return self._bound

    @property
    def extra(self) -> dict[str, Any]:
        """What besides the settings and models decides a result: relaxations before, heads."""
        if self._extra is None:
            model, hessian = self.infos()
            self._extra = extra_settings(None, model, hessian)
            relax = self.spec.relax
            if relax:
                own = hessian or model
                self._extra["relax"] = relax["settings"]
                if relax["model"] != [own.sha256, own.dtype]:
                    self._extra["relax_model"] = relax["model"]
                if "before" in relax:
                    self._extra["relax_before"] = relax["before"]
        return self._extra

    @property
    def extent(self) -> str | None:
        """Which part of its documents the stage asks for."""
        return self.spec.extent

    def key(self, structure_digest: str) -> str:
        """Return the key of the result for a crystal as it came in.

        Args:
            structure_digest: :func:`fieldflows.schemas.identity.structure_hash` of the crystal.
        """
        if self._identity is None:
            prop = self.bind()
            model, hessian = self.infos()
            if prop is None:
                self._identity = "relax", (hessian or model).sha256, self._relax_digest(), RELAXATION_VERSION
            else:
                digest = full_settings_hash(prop, model, hessian, self.extra)
                self._identity = prop.name, model.sha256, digest, prop.schema_version
        task, sha256, digest, version = self._identity
        return document_key(task, structure_digest, sha256, digest, version)

    def _relax_digest(self) -> str:
        model, hessian = self.infos()
        settings = RelaxSettings(**self.spec.settings).model_dump(mode="json")
        return settings_hash({"settings": settings, "extra": self.extra, "dtype": (hessian or model).dtype})

    def covers(self, row: Mapping[str, Any]) -> bool:
        """Return whether a stored result holds what the stage asks for; no model is needed to tell."""
        if self.spec.task == "relax":
            return True
        others = {item["model"]["sha256"] for item in row.get("independent") or ()}
        if not {model.sha256 for model in self.spec.other_models} <= others:
            return False
        return covers(asked_for(self.spec.task, self.spec.extent), row)

    @property
    def fields(self) -> set[str]:
        """Top-level fields of a stored result that the campaign needs to go on from it."""
        if self.spec.task == "relax":
            return {"structure", "relaxation"}
        own = {"independent"} if self.spec.other_models else set()
        return own.union(cover_fields(asked_for(self.spec.task, self.spec.extent)))

    def lacks(self, row: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
        """Return whether a stored result does not show a fact that is known of the crystal by now."""
        return self.spec.task == "dielectric" and any(row.get(name) is None for name in facts)

    @staticmethod
    def amended(row: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return a stored dielectric result with facts where it has none; nothing that was computed changes."""
        new = {name: value for name, value in facts.items() if row.get(name) is None}
        if "band_gap" in new:
            new["insulating"] = "yes" if new["band_gap"] > 0.0 else "no"
        return {**row, **new}

    def subject(self, item: Mapping[str, Any], atoms: Atoms, relaxed: Mapping[str, Any] | None) -> PropertyInput:
        """Return what the property is computed of.

        Args:
            item: What is known of the crystal.
            atoms: The crystal as it came in.
            relaxed: The stored relaxation before this stage, if there is one.
        """
        from fieldflows.schemas.dielectric import DielectricReference

        reference = item.get("reference")
        facts = {name: item.get(name) for name in ("material_id", "source", "index", "band_gap")}
        made = None if reference is None else DielectricReference.from_json_dict(reference)
        if relaxed is None:
            return PropertyInput(atoms, reference=made, **facts)
        return PropertyInput(
            structure_from_dict(relaxed["structure"]),
            relaxation=Relaxation.from_json_dict(relaxed["relaxation"]),
            input_structure=atoms,
            reference=made,
            **facts,
        )

    def evaluate(
        self, subjects: Sequence[PropertyInput], keys: Sequence[str]
    ) -> tuple[list[Outcome], dict[str, Response]]:
        """Return a document or a failure for each subject, and Hessians by key if they are to be kept.

        Args:
            subjects: The crystals.
            keys: Keys of their results.

        Raises:
            CapabilityError: If the models cannot give what is asked, whatever the crystal.
        """
        if self.spec.task == "relax":
            return [self._relaxed(subject, key) for subject, key in zip(subjects, keys, strict=True)], {}
        from fieldflows.properties.run import run_property

        hessians: dict[str, Response] = {}

        def keep(position: int, responses: Sequence[Response]) -> None:
            for response in responses:
                if response.hessian is not None:
                    hessians[keys[position]] = response

        prop = self.bind()
        assert prop is not None
        outcomes = run_property(
            prop,
            list(subjects),
            *self.models(),
            extra_settings=self.extra,
            max_batch_structures=max(len(subjects), 1),
            on_responses=keep if self.spec.keep_hessians else None,
        )
        if self.spec.other_models:
            outcomes = [self._compared(prop, outcome) for outcome in outcomes]
        return outcomes, hessians

    def _compared(self, prop: Any, outcome: Outcome) -> Outcome:
        """Return a spontaneous polarization with independent estimates by the other models."""
        from fieldflows.evaluation.independent import with_independent_estimates

        if not isinstance(outcome, SpontaneousPolarizationDocument):
            return outcome
        return with_independent_estimates(outcome, prop, [model.open() for model in self.spec.other_models])

    def _relaxed(self, subject: PropertyInput, key: str) -> Outcome:
        model, hessian = self.models()
        original = subject.structure if subject.input_structure is None else subject.input_structure
        settings = RelaxSettings(**self.spec.settings)
        try:
            structure, record = relax_structure(subject.structure, hessian or model, settings)
            composition = structure.composition
            return RelaxationDocument(
                key=key,
                material_id=subject.material_id,
                source=subject.source,
                formula_pretty=composition.reduced_formula,
                chemsys=composition.chemical_system,
                elements=tuple(sorted(element.symbol for element in composition)),
                nelements=len(composition),
                nsites=len(structure),
                volume=structure.volume,
                structure=structure,
                relaxation=record,
                provenance=Provenance(
                    model=model_card(hessian or model),
                    code_version=__version__,
                    settings={**settings.model_dump(mode="json"), **self.extra},
                    settings_hash=self._relax_digest(),
                    structure_hash=structure_hash(structure),
                    input_structure_hash=structure_hash(original),
                ),
            )
        except Exception as error:  # one crystal that cannot be relaxed must not stop the others
            return FailureDocument.from_error(
                error, "relax", source=subject.source, index=subject.index, material_id=subject.material_id,
                formula=_formula(original), task="relax", key=key,
            )  # fmt: skip


def _formula(structure: StructureLike) -> str | None:
    from fieldflows.structures import as_atoms

    try:
        return str(as_atoms(structure).get_chemical_formula(empirical=True))
    except Exception:  # the structure may be what is broken
        return None
