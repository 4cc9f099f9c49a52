from __future__ import annotations

import json
from collections import Counter

import pytest

from attempt_ray.data import microworld
from attempt_ray.data.microworld import miniatures, world
from attempt_ray.data.microworld.world import Speaker
from attempt_ray.errors import DataError
from attempt_ray.tasks import SOURCE_TASKS, TARGET_TASKS, TASKS
from attempt_ray.tasks.spec import TemplateOptions

SMALL = {"count": 60, "seed": 3}


def test_there_is_a_miniature_of_every_source_and_of_the_17_targets() -> None:
    assert set(microworld.MINIATURES) == {*SOURCE_TASKS, *TARGET_TASKS} - {"cola", "copa"}
    assert set(microworld.TRAIN_ROWS) == set(microworld.MINIATURES)


def test_parents_are_sources() -> None:
    assert {parent for parents in microworld.PARENTS.values() for parent in parents} <= set(SOURCE_TASKS)
    assert set(microworld.PARENTS) <= set(TARGET_TASKS)


@pytest.mark.parametrize("name", sorted(microworld.MINIATURES))
def test_rows_are_a_function_of_the_seed(name: str) -> None:
    first, again, other = (microworld.rows(name, "test", seed=seed, count=60) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", sorted(microworld.MINIATURES))
def test_splits_share_no_row(name: str) -> None:
    keys = [
        {json.dumps(row) for row in microworld.rows(name, split, seed=3)[:300]}
        for split in ("train", "validation", "test")
    ]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]


@pytest.mark.parametrize("name", sorted(microworld.MINIATURES))
def test_rows_go_through_the_templates_of_the_real_task(name: str) -> None:
    for row in microworld.rows(name, "validation", **SMALL):
        for words in ("digits", "words"):
            example = TASKS[name].eval_example(row, TemplateOptions(label_words=words))
            assert example.source.startswith(f"{TASKS[name].prefix} ")
            assert example.target in example.golds


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.kind == "classification"])
def test_classes_are_balanced(name: str) -> None:
    if name not in microworld.MINIATURES:
        pytest.skip("no miniature")
    rows = microworld.rows(name, "test", seed=3)
    counts = Counter(TASKS[name].eval_example(row, TemplateOptions()).target for row in rows)
    assert set(counts) == set(TASKS[name].labels["digits"])
    assert max(counts.values()) < 1.4 * min(counts.values())


def test_answers_stand_in_the_passage_at_the_place_given() -> None:
    for row in microworld.rows("squad", "test", seed=3):
        (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(answer)] == answer
    for name in ("nq", "hotpotqa", "searchqa", "newsqa"):
        for row in microworld.rows(name, "test", **SMALL):
            span = row["labels"][0]
            assert row["context"][span["start"][0] : span["end"][0] + 1] == row["answers"][0]


def test_paraphrases_of_swapped_roles_use_the_same_people() -> None:
    rng = Speaker(0)
    for label in (0, 1):
        one, other = miniatures.swapped_roles(rng, label)
        people = [{word for word in text.split() if word in world.PEOPLE} for text in (one, other)]
        assert people[0] == people[1]


@pytest.mark.parametrize("score", range(6))
def test_likeness_counts_the_parts_two_statements_share(score: int) -> None:
    synonyms = {word: index for index, pair in enumerate(world.QUALITIES) for word in pair}
    deeds = {
        form: 100 + index
        for index, verbs in enumerate(world.DEEDS)
        for verb in verbs
        for form in (verb.past, verb.participle)
    }

    def parts(text: str) -> set[object]:
        names = {*world.PEOPLE, *world.THINGS, *world.PLACES}
        return {
            deeds.get(word, synonyms.get(word, word))
            for word in text.split()
            if word in {*names, *synonyms, *deeds}
        }

    one, other = miniatures.likeness(Speaker(score), score)
    assert len(parts(one) & parts(other)) == score


def test_an_unknown_miniature_or_split_is_told_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'rte'"):
        microworld.rows("rtee", "train", seed=0)
    with pytest.raises(DataError, match="did you mean 'test'"):
        microworld.rows("rte", "tests", seed=0)


def test_more_rows_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microworld, "MINIATURES", {"wic": lambda rng: {"label": rng.randrange(50)}})
    with pytest.raises(DataError, match="fewer than 200 distinct rows"):
        microworld.rows("wic", "validation", seed=0)
