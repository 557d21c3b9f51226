"""The project of jobflow-remote: which it is, and whether it can take the jobs of a campaign."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.engines.base import SERVER_TIMEOUT_S, first_line, without_passwords
from fieldflows.errors import SettingsError, StoreError, suggestion

if TYPE_CHECKING:
    from jobflow import Job
    from jobflow_remote.config.base import Project
    from jobflow_remote.jobs.jobcontroller import JobController

GUIDE = "See docs/guides/jobflow-remote.md."


def require_remote() -> None:
    """Import jobflow-remote, which reads its settings on import.

    Raises:
        SettingsError: If it is not installed, or cannot read its settings.
    """
    from fieldflows.store import require_jobflow

    require_jobflow()
    try:
        import jobflow_remote  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"The engine 'remote' needs jobflow-remote, which cannot be imported: {first_line(error)}.",
            "Run: pip install fieldflows[remote]",
        ) from error
    except Exception as error:  # whatever jobflow-remote and its readers raise for a wrong ~/.jfremote.yaml
        raise SettingsError(f"jobflow-remote cannot read its settings: {first_line(error)}.", GUIDE) from error


def find_project(name: str | None = None) -> Project:
    """Return a project of jobflow-remote.

    Args:
        name: Its name; by default the one that ``JFREMOTE_PROJECT`` or ``~/.jfremote.yaml`` selects, or the only one.

    Raises:
        SettingsError: If there is no such project, or its file is wrong.
    """
    require_remote()
    from jobflow_remote import SETTINGS
    from jobflow_remote.config.base import ConfigError
    from jobflow_remote.config.manager import ConfigManager

    folder = Path(SETTINGS.projects_folder)
    try:
        manager = ConfigManager()
        chosen = manager.select_project_name(name)
    except ConfigError as error:
        broken = _broken(folder, set(), None)
        raise SettingsError(
            f"No project of jobflow-remote is selected in {folder}: {broken or first_line(error)}.", GUIDE
        ) from error
    if chosen not in manager.projects:
        broken = _broken(folder, {str(data.filepath) for data in manager.projects_data.values()}, chosen)
        raise SettingsError(
            f"There is no project {chosen!r} of jobflow-remote in {folder}{f': {broken}' if broken else ''}.",
            suggestion(chosen, manager.projects) if manager.projects else GUIDE,
        )
    return manager.projects[chosen]


def check_project(
    project: Project, workers: Collection[str], exec_config: str | None = None, jobs: Sequence[Job] = ()
) -> None:
    """Check that a project has what jobs need.

    Args:
        project: The project.
        workers: Names of workers.
        exec_config: Name of an ``exec_config``.
        jobs: Jobs, which may need additional stores for their outputs.

    Raises:
        SettingsError: If it has not.
    """
    from jobflow_remote.remote.data import check_additional_stores
    from maggma.stores import MemoryStore

    from fieldflows.store.results import RESULTS_COLLECTION

    for name in sorted(set(workers) - set(project.workers)):
        raise SettingsError(
            f"The project {project.name!r} has no worker {name!r}.",
            suggestion(name, project.workers) if project.workers else "It has none; " + GUIDE,
        )
    if exec_config is not None and exec_config not in project.exec_config:
        raise SettingsError(
            f"The project {project.name!r} has no exec_config {exec_config!r}.",
            suggestion(exec_config, project.exec_config),
        )
    store = project.get_jobstore()
    if store is None or type(store.docs_store) is MemoryStore:
        raise SettingsError(
            f"The project {project.name!r} has no jobstore that outlives its runner: outputs would be lost.",
            "Write a jobstore into its file, as in workflows/remote/fieldflows.yaml.",
        )
    missing = sorted({name for job in jobs for name in check_additional_stores(job, store)})
    if missing:
        raise SettingsError(
            f"The jobstore of the project {project.name!r} has no additional store {', '.join(missing)}.",
            "Add it, as in workflows/remote/fieldflows.yaml.",
        )
    if RESULTS_COLLECTION in store.additional_stores:
        raise SettingsError(
            f"The jobstore of the project {project.name!r} has an additional store {RESULTS_COLLECTION!r}, which "
            "jobflow-remote would fill under another key.",
            "Take it out there; results travel in the outputs of jobs, from where they are copied.",
        )


def open_controller(project: Project) -> JobController:
    """Return the controller of the queue of a project, after asking its databases for a sign of life.

    Raises:
        SettingsError: If the queue was never set up, or is described wrongly.
        StoreError: If a database does not answer, or refuses.
    """
    import pymongo
    from jobflow_remote.jobs.jobcontroller import JobController
    from pymongo.errors import PyMongoError

    controller = None
    try:
        with pymongo.timeout(SERVER_TIMEOUT_S):
            controller = JobController.from_project(project)
            is_set_up = controller.auxiliary.find_one({"next_id": {"$exists": True}}) is not None
    except PyMongoError as error:
        if controller is not None:
            controller.close()
        raise StoreError(
            f"The database of the project {project.name!r} does not answer: {first_line(error)}.",
            "Start it, or correct queue and jobstore in the file of the project.",
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(
            f"The queue of the project {project.name!r} cannot be opened: {first_line(error)}.", GUIDE
        ) from error
    if not is_set_up:
        controller.close()
        raise SettingsError(
            f"The queue of the project {project.name!r} was never set up.",
            f"Run once: jf -p {project.name} admin reset (it empties the queue).",
        )
    return controller


def _broken(folder: Path, good: Collection[str], name: str | None) -> str:
    """Return what is wrong with the first file that should describe a project, without any value that it holds."""
    import yaml
    from jobflow_remote.config.base import Project
    from pydantic import ValidationError

    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.json")]):
        if str(path) in good:
            continue
        try:
            text = path.read_text(encoding="utf-8")
            content: Any = yaml.safe_load(text)
            if name is None or not isinstance(content, dict) or content.get("name") == name:
                Project.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = without_passwords(first["msg"].strip().splitlines()[-1])
            left = re.search(r"\$\{\w+\}", text)
            reason += f"; {left[0]} is not filled in" if left else ""
            return f"{path.name} is wrong at {where or 'its top'} ({reason})"
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            return f"{path.name} cannot be read ({type(error).__name__})"
    return ""
