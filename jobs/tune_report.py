"""Look at a search: its report, or optuna-dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attempt_ray.errors import ConfigError, unknown_name


def tune_report(study: str, *, storage: str | None, directory: str) -> dict[str, Any]:
    """Write the report of a search, which may be going on, into its directory, and return where.

    Args:
        study: Name of the search.
        storage: Where its study is; None is the SQLite file in its directory.
        directory: Directory of search directories.

    Raises:
        ConfigError: There is no such search.
        StorageError: The storage or the disk refused.
    """
    import optuna

    from attempt_ray.reporting.search import write_search_report

    place = Path(directory).expanduser() / study
    found = optuna.load_study(study_name=study, storage=_opened(study, storage, place))
    return {"job": "tune_report", **write_search_report(found, place).as_dict()}


def tune_ui(study: str, *, storage: str | None, directory: str, port: int) -> None:
    """Serve optuna-dashboard on a search, to this machine alone, until Ctrl-C.

    Raises:
        ConfigError: There is no such search, or the port is in use.
        StorageError: The storage refused.
    """
    from jobs.search_ui import serve_dashboard

    serve_dashboard(_opened(study, storage, Path(directory).expanduser() / study), port=port)


def _opened(study: str, storage: str | None, place: Path) -> Any:
    """Return the storage of a study, having checked that it holds the study."""
    import optuna

    from attempt_ray.orchestration.study_storage import open_study_storage

    if storage is None and not (place / "study.db").is_file():
        known = [path.parent.name for path in place.parent.glob("*/study.db")]
        raise ConfigError(f"{unknown_name('search', study, known)} (looked in {place.parent})")
    found = open_study_storage(storage or str(place / "study.db"))
    if study not in (names := optuna.get_all_study_names(found)):
        looked = storage or place / "study.db"
        raise ConfigError(f"{unknown_name('search', study, names)} (looked in {looked})")
    return found
