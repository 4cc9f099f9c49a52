"""Loaded by schemathesis: leads valid cases to what the bank has, so that some of them get an answer.

Cases that are meant to be invalid are left as they are.
"""

from __future__ import annotations

import schemathesis

TASKS = ("rte", "cb", "newsqa", "rte@candidate", "rte@v2")


@schemathesis.hook
def map_case(context: object, case: schemathesis.Case) -> schemathesis.Case:
    mode = case.meta.generation.mode if case.meta is not None else None
    if mode is None or not mode.is_positive:
        return case
    lead = sum(map(ord, repr(case.body))) + len(repr(case.path_parameters))
    known = TASKS[lead % len(TASKS)]
    for name in ("task", "model"):
        if lead % 4 and name in case.path_parameters:
            plain = name == "task" or "version" in case.path_parameters
            case.path_parameters[name] = known.partition("@")[0] if plain else known
    if lead % 4 and "version" in case.path_parameters:
        case.path_parameters["version"] = "1"
    if isinstance(case.body, dict):
        # Whoever gives an answer a microsecond gets the 504 that is meant for it.
        if case.body.get("timeout_seconds") is not None:
            case.body["timeout_seconds"] = max(case.body["timeout_seconds"], 30)
        if "timeout" in (case.body.get("parameters") or {}):
            del case.body["parameters"]["timeout"]
        if lead % 4:
            for row in case.body.get("rows", ()):
                row["task"], row["prompt"] = known, None
            if "model" in case.body:
                case.body["model"] = known
    return case
