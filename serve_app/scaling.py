"""How many engine replicas there shall be, by the tokens that wait for them."""

from __future__ import annotations

import math
from typing import Any, Protocol

QUEUED_TOKENS = "queued_tokens"
"""Name under which replicas tell their tokens."""


class Context(Protocol):
    """What Serve tells a policy (`ray.serve.config.AutoscalingContext`)."""

    target_num_replicas: int
    current_time: float
    policy_state: dict[str, Any]
    aggregated_metrics: dict[str, dict[Any, float]]


class QueuedTokens:
    """As many replicas as keep each below a number of tokens; fewer only after a calm while.

    Serve keeps the answer between the deployment's bounds.
    """

    def __init__(self, *, target_tokens: int, calm_seconds: float) -> None:
        """Set the limits.

        Args:
            target_tokens: Tokens that wait or run on a replica above which another is wanted.
            calm_seconds: How long fewer replicas must have been enough before one leaves.
        """
        self._target_tokens = target_tokens
        self._calm_seconds = calm_seconds

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """Return the replicas wanted, and what to remember."""
        tokens = sum((context.aggregated_metrics or {}).get(QUEUED_TOKENS, {}).values())
        wanted = max(1, math.ceil(tokens / self._target_tokens))
        if wanted >= context.target_num_replicas:
            return wanted, {}
        state = dict(context.policy_state or {})
        calm_since = state.setdefault("calm_since", context.current_time)
        if context.current_time - calm_since < self._calm_seconds:
            return context.target_num_replicas, state
        return wanted, {}
