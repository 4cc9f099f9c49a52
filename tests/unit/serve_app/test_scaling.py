from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.scaling import QUEUED_TOKENS, QueuedTokens


def context(
    tokens: list[float], *, replicas: int, now: float = 0.0, state: dict[str, Any] | None = None
) -> Any:
    return SimpleNamespace(
        target_num_replicas=replicas,
        current_time=now,
        policy_state=state or {},
        aggregated_metrics={QUEUED_TOKENS: dict(enumerate(tokens))},
    )


@pytest.fixture
def policy() -> QueuedTokens:
    return QueuedTokens(target_tokens=1000, calm_seconds=60)


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [([0.0], 1), ([1000.0], 1), ([1001.0], 2), ([900.0, 2300.0], 4)],
)
def test_more_tokens_want_more_replicas_at_once(
    policy: QueuedTokens, tokens: list[float], wanted: int
) -> None:
    assert policy(context(tokens, replicas=1)) == (wanted, {})


def test_fewer_are_wanted_only_after_a_calm_while(policy: QueuedTokens) -> None:
    wanted, state = policy(context([0.0, 0.0, 0.0], replicas=3, now=100.0))
    assert (wanted, state) == (3, {"calm_since": 100.0})
    wanted, state = policy(context([0.0], replicas=3, now=159.0, state=state))
    assert wanted == 3
    wanted, state = policy(context([1500.0], replicas=3, now=160.0, state=state))
    assert (wanted, state) == (2, {})


def test_a_burst_ends_the_calm(policy: QueuedTokens) -> None:
    _, state = policy(context([0.0], replicas=3, now=100.0))
    assert policy(context([2500.0], replicas=3, now=150.0, state=state)) == (3, {})


def test_before_replicas_have_told_anything_one_is_enough(policy: QueuedTokens) -> None:
    one = context([], replicas=1)
    one.aggregated_metrics = {}
    assert policy(one) == (1, {})
