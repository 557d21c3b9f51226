"""The LaunchPad of FireWorks: which file describes it, and whether it can be used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldflows.campaigns.engines.base import SERVER_TIMEOUT_S, first_line
from fieldflows.errors import SettingsError, StoreError

if TYPE_CHECKING:
    from fireworks import LaunchPad

LOCAL_NAME = "launchpad.yaml"
CONFIG_VARIABLE = "FW_CONFIG_FILE"
GUIDE = "See docs/guides/fireworks.md."


def require_fireworks() -> None:
    """Import FireWorks, which reads its configuration on import.

    Raises:
        SettingsError: If it is not installed, or cannot read its configuration.
    """
    try:
        import fireworks  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"The engine 'fireworks' needs FireWorks, which cannot be imported: {first_line(error)}.",
            "Run: pip install fieldflows[fireworks]",
        ) from error
    except Exception as error:  # whatever FireWorks and its readers of YAML raise for a wrong file
        raise SettingsError(f"FireWorks cannot read its FW_config.yaml: {first_line(error)}.", GUIDE) from error


def find_launchpad(path: str | Path | None = None) -> Path:
    """Return the file that describes the LaunchPad.

    The first of these that is given decides: ``path``; ``LAUNCHPAD_LOC`` in the file that ``FW_CONFIG_FILE`` names;
    ``launchpad.yaml`` in the working directory; what FireWorks itself finds (``my_launchpad.yaml``).

    Raises:
        SettingsError: If there is none.
    """
    require_fireworks()
    from fireworks import fw_config

    if path is not None:
        return _existing(Path(path).expanduser(), "The LaunchPad")
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        config = _mapping(_existing(Path(named), CONFIG_VARIABLE))
        if config.get("LAUNCHPAD_LOC"):
            return _existing(Path(config["LAUNCHPAD_LOC"]), f"LAUNCHPAD_LOC of {named}")
    if Path(LOCAL_NAME).is_file():
        return Path(LOCAL_NAME)
    if fw_config.LAUNCHPAD_LOC:
        return _existing(Path(fw_config.LAUNCHPAD_LOC), "The LaunchPad of FireWorks' configuration")
    raise SettingsError(
        f"There is no LaunchPad: no file is named, {CONFIG_VARIABLE} "
        f"{'has no LAUNCHPAD_LOC' if named else 'is not set'}, and there is no {LOCAL_NAME} here.",
        GUIDE,
    )


def open_launchpad(path: Path) -> LaunchPad:
    """Return the LaunchPad that a file describes, after asking its server for a sign of life.

    Raises:
        SettingsError: If the file is malformed, or the database was never set up.
        StoreError: If the server does not answer, or refuses.
    """
    require_fireworks()
    import pymongo
    from fireworks import LaunchPad
    from pymongo.errors import PyMongoError

    settings = _mapping(path)
    if not isinstance(settings.get("host"), str):
        raise SettingsError(f"{path} describes no LaunchPad: it names no host.", GUIDE)
    try:
        launchpad = LaunchPad.from_dict({**settings, "strm_lvl": "ERROR"})
    except (PyMongoError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"{path} describes no LaunchPad: {first_line(error)}.", GUIDE) from error
    try:
        with pymongo.timeout(SERVER_TIMEOUT_S):
            is_set_up = launchpad.fw_id_assigner.find_one({}) is not None
    except PyMongoError as error:
        launchpad.connection.close()
        raise StoreError(
            f"The server of the LaunchPad in {path} does not answer: {first_line(error)}.",
            "Start it, or correct host, port, username and password there.",
        ) from error
    if not is_set_up:
        launchpad.connection.close()
        raise SettingsError(
            f"The LaunchPad in {path} was never set up.", f"Run once: lpad -l {path} reset (it empties the LaunchPad)."
        )
    return launchpad


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise SettingsError(f"{what} names {path}, which is no file.", GUIDE)
    return path


def _mapping(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.", GUIDE) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" (line {mark.line + 1})"
        raise SettingsError(f"{path} is no valid YAML{place}.", GUIDE) from error
    if not isinstance(content, Mapping):
        raise SettingsError(f"{path} holds {type(content).__name__}, not a mapping.", GUIDE)
    return content
