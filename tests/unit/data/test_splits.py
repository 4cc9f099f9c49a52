from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attempt_ray.config import DataConfig
from attempt_ray.data.splits import load_splits, plan_splits, published_splits
from attempt_ray.errors import DataError
from attempt_ray.tasks import TASKS
from attempt_ray.tasks.spec import Task

# Rows of the full published splits, and the sizes of train, dev and test in the paper's tables.
FULL = {
    "mnli": (
        {"train": 392_702, "validation_mismatched": 9_832, "validation_matched": 9_815},
        (392_702, 9_832, 9_815),
    ),
    "qnli": ({"train": 104_743, "validation": 5_463}, (103_743, 1_000, 5_463)),
    "qqp": ({"train": 363_846, "validation": 40_430}, (362_846, 1_000, 40_430)),
    "sst2": ({"train": 67_349, "validation": 872}, (66_349, 1_000, 872)),
    "squad": ({"train": 87_599, "validation": 10_570}, (86_599, 1_000, 10_570)),
    "record": ({"train": 100_730, "validation": 10_000}, (99_730, 1_000, 10_000)),
    "wnli": ({"train": 635, "validation": 71}, (635, 35, 36)),
    "stsb": ({"train": 5_749, "validation": 1_500}, (5_749, 750, 750)),
    "mrpc": ({"train": 3_668, "validation": 408}, (3_668, 204, 204)),
    "rte": ({"train": 2_490, "validation": 277}, (2_490, 138, 139)),
    "cola": ({"train": 8_551, "validation": 1_043}, (8_551, 521, 522)),
    "boolq": ({"train": 9_427, "validation": 3_270}, (9_427, 1_635, 1_635)),
    "cb": ({"train": 250, "validation": 56}, (250, 28, 28)),
    "copa": ({"train": 400, "validation": 100}, (400, 50, 50)),
    "multirc": ({"train": 27_243, "validation": 4_848}, (27_243, 2_424, 2_424)),
    "wic": ({"train": 5_428, "validation": 638}, (5_428, 319, 319)),
    "wsc": ({"train": 554, "validation": 104}, (554, 52, 52)),
    "superglue-rte": ({"train": 2_490, "validation": 277}, (2_490, 138, 139)),
    "nq": ({"train": 104_071, "validation": 12_836}, (103_071, 1_000, 12_836)),
    "hotpotqa": ({"train": 72_928, "validation": 5_901}, (71_928, 1_000, 5_901)),
    "searchqa": ({"train": 117_384, "validation": 16_980}, (116_384, 1_000, 16_980)),
    "newsqa": ({"train": 74_160, "validation": 4_212}, (73_160, 1_000, 4_212)),
    "winogrande": ({"train": 40_398, "validation": 1_267}, (39_398, 1_000, 1_267)),
    "yelp": ({"train": 560_000, "test": 38_000}, (100_000, 1_000, 38_000)),
    "scitail": ({"train": 23_596, "validation": 1_304}, (23_596, 652, 652)),
    "paws": ({"train": 49_401, "validation": 8_000, "test": 8_000}, (49_401, 8_000, 8_000)),
}


def _rows(plan_part: object) -> set[int]:
    return set(plan_part.rows.tolist())  # type: ignore[attr-defined]


def test_every_task_of_the_paper_is_in_the_table() -> None:
    assert set(FULL) == set(TASKS)


@pytest.mark.parametrize("name", FULL)
def test_full_data_sets_split_into_the_sizes_of_the_paper(name: str) -> None:
    counts, sizes = FULL[name]
    data = DataConfig()
    assert set(published_splits(TASKS[name], data)) == set(counts)
    plan = plan_splits(TASKS[name], data, counts=counts)
    assert (len(plan.train), len(plan.dev), len(plan.test)) == sizes


# First rows of torch.randperm under seed 42, written down so that a change of the generator shows.
@pytest.mark.parametrize(
    ("count", "first"),
    [
        (71, [56, 38, 48, 49, 53]),
        (277, [207, 84, 253, 243, 190]),
        (67_349, [6677, 49712, 38268, 32909, 23395]),
    ],
)
def test_the_permutation_is_the_seed_42_one_of_torch(count: int, first: list[int]) -> None:
    small = plan_splits(TASKS["rte"], DataConfig(), counts={"train": 5, "validation": count})
    assert small.dev.rows[:5].tolist() == first
    assert small.dev.rows.tolist() + small.test.rows.tolist() == _permutation(count)
    large = plan_splits(TASKS["sst2"], DataConfig(), counts={"train": count, "validation": 9})
    assert large.dev.rows.tolist() + large.train.rows.tolist() == _permutation(count)


def _permutation(count: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(42)).tolist()


def test_small_leaves_train_in_order() -> None:
    plan = plan_splits(TASKS["rte"], DataConfig(), counts={"train": 50, "validation": 7})
    assert plan.train.rows.tolist() == list(range(50))
    assert plan.dev.split == plan.test.split == "validation"
    assert (len(plan.dev), len(plan.test)) == (3, 4)


def test_large_takes_at_most_a_tenth_of_a_partial_train_set() -> None:
    plan = plan_splits(TASKS["hotpotqa"], DataConfig(), counts={"train": 403, "validation": 150})
    assert (len(plan.train), len(plan.dev), len(plan.test)) == (362, 41, 150)
    assert _rows(plan.train).isdisjoint(_rows(plan.dev))


def test_native_policy_scores_the_whole_published_split_and_selects_on_train_rows() -> None:
    data = DataConfig(split_policy="native")
    plan = plan_splits(TASKS["rte"], data, counts={"train": 2_490, "validation": 277})
    assert (plan.train.split, plan.dev.split, plan.test.split) == ("train", "train", "validation")
    assert (len(plan.train), len(plan.dev), len(plan.test)) == (2_241, 249, 277)


def test_native_policy_takes_published_dev_and_test() -> None:
    data = DataConfig(split_policy="native")
    counts = {"train": 23_596, "validation": 1_304, "test": 2_126}
    plan = plan_splits(TASKS["scitail"], data, counts=counts)
    assert (len(plan.train), len(plan.dev), len(plan.test)) == (23_596, 1_304, 2_126)


def test_native_policy_lifts_the_cap_of_the_paper() -> None:
    data = DataConfig(split_policy="native")
    plan = plan_splits(TASKS["yelp"], data, counts={"train": 560_000, "test": 38_000})
    assert len(plan.train) == 559_000


def test_embedded_rows_keep_their_own_splits() -> None:
    data = DataConfig(origin="embedded")
    assert published_splits(TASKS["rte"], data) == ("train", "validation", "test")


def test_caps_keep_the_first_rows_of_the_permutation() -> None:
    counts = {"train": 5_000, "validation": 300}
    whole = plan_splits(TASKS["sst2"], DataConfig(), counts=counts)
    data = DataConfig(max_train_rows=70, max_dev_rows=40, max_test_rows=30)
    plan = plan_splits(TASKS["sst2"], data, counts=counts)
    assert plan.train.rows.tolist() == whole.train.rows[:70].tolist()
    assert plan.dev.rows.tolist() == whole.dev.rows[:40].tolist()
    assert plan.test.rows.tolist() == _permutation(300)[:30]


def test_a_cap_above_the_task_s_own_does_not_lift_it() -> None:
    data = DataConfig(max_train_rows=200_000)
    plan = plan_splits(TASKS["yelp"], data, counts={"train": 560_000, "test": 38_000})
    assert len(plan.train) == 100_000


def test_another_seed_cuts_other_rows() -> None:
    counts = {"train": 5, "validation": 100}
    one = plan_splits(TASKS["rte"], DataConfig(), counts=counts)
    other = plan_splits(TASKS["rte"], DataConfig(split_seed=1), counts=counts)
    assert _rows(one.dev) != _rows(other.dev)


@pytest.mark.parametrize(
    ("name", "counts", "role"),
    [("rte", {"train": 5, "validation": 1}, "dev"), ("sst2", {"train": 1, "validation": 1}, "train")],
)
def test_too_few_rows_to_cut_are_refused(name: str, counts: dict[str, int], role: str) -> None:
    with pytest.raises(DataError, match=f"too few rows for its {role} split"):
        plan_splits(TASKS[name], DataConfig(), counts=counts)


def test_rows_of_a_mirror_are_cut_by_the_plan(with_rule: Callable[..., Task], mirror: DataConfig) -> None:
    task = with_rule(split_rule="small")
    splits = load_splits(task, mirror)
    order = [60 + row for row in _permutation(20)]
    assert splits.train["idx"][:] == list(range(60))
    assert splits.dev["idx"][:] + splits.test["idx"][:] == order
