from __future__ import annotations

from itertools import islice

import pytest

from attempt_ray.data.microworld import skills
from attempt_ray.data.microworld.world import Speaker
from attempt_ray.tasks import TASKS


def test_every_skill_is_drawn_and_named() -> None:
    names = {skills.skill_of(source) for source, _ in islice(skills.pairs(Speaker(0), told=0.5), 2000)}
    assert names == {*skills.CLOSED, *skills.OPEN}


def test_without_telling_a_closed_skill_answers_with_its_own_words() -> None:
    for source, target in islice(skills.pairs(Speaker(0), told=0.0), 500):
        name = skills.skill_of(source)
        if name in skills.CLOSED:
            assert target in skills.CLOSED[name][1]


def test_a_told_skill_answers_with_a_listed_word() -> None:
    for source, target in islice(skills.pairs(Speaker(0), told=1.0), 500):
        name = skills.skill_of(source)
        if name in skills.CLOSED:
            listed = source.split(f"{name} ", 1)[1].split(" : ", 1)[0].split()
            assert target in listed


SKILL_OF = {
    "infer": ("mnli", "cb"),
    "follows": ("rte", "scitail"),
    "same": ("qqp", "mrpc", "paws"),
    "answers": ("qnli",),
    "check": ("boolq",),
    "right": ("multirc",),
    "feel": ("sst2", "yelp"),
    "refer": ("wnli", "wsc"),
    "sense": ("wic",),
    "choose": ("winogrande",),
}


@pytest.mark.parametrize("skill", SKILL_OF)
def test_no_skill_answers_in_the_words_of_its_miniatures(skill: str) -> None:
    taken = {word for task in SKILL_OF[skill] for words in TASKS[task].labels.values() for word in words}
    assert not taken & set(skills.CLOSED[skill][1])


def test_texts_are_plain_passages() -> None:
    for text in islice(skills.texts(Speaker(0)), 100):
        assert text.endswith(".")
        assert len(text.split()) >= 8
