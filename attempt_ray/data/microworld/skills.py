"""What the embedded backbone is pre-trained on: text to repair, and skills to follow.

A skill example opens with the skill's name and, half of the time, with the words to use as labels, drawn anew for
each example. So the backbone learns to be told what to do and how to answer - which is what a soft prompt does -
and no miniature's own prefix or verbalizer is tied to a skill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from random import Random

from attempt_ray.data.microworld import miniatures, world
from attempt_ray.data.microworld.world import Speaker
from attempt_ray.tasks import TASKS
from attempt_ray.tasks.spec import LabelWords, TemplateOptions

Fields = list[tuple[str, str]]
Drawn = tuple[Fields, int]

LABEL_WORDS: tuple[LabelWords, ...] = ("digits", "words")
DIGITS = tuple("0123456789")
SCORES = tuple(f"{score}.0" for score in range(6))
PAIR_FIELDS = (
    ("premise:", "hypothesis:"),
    ("sentence1:", "sentence2:"),
    ("question1:", "question2:"),
    ("sentence:", "question:"),
    ("passage:", "question:"),
)


def _two(rng: Speaker, texts: tuple[str, str]) -> Fields:
    return list(zip(rng.choice(PAIR_FIELDS), texts, strict=True))


def _infer(rng: Speaker) -> Drawn:
    label = rng.randrange(3)
    premise, hypothesis = miniatures.entailment(rng, label)
    return _two(rng, (_framed(rng, premise), hypothesis)), label


def _follows(rng: Speaker) -> Drawn:
    label = rng.randrange(2)
    premise, hypothesis = miniatures.two_way_entailment(rng, label)
    return _two(rng, (_framed(rng, premise), hypothesis)), label


def _framed(rng: Speaker, premise: str) -> str:
    match rng.randrange(6):
        case 0:
            return f"{rng.choice(world.PEOPLE)} said that {premise}"
        case 1:
            return f"{premise} {world.tell(rng, world.draw_event(rng))}"
        case 2:
            return f"{world.tell(rng, world.draw_event(rng))} {premise}"
        case _:
            return premise


def _same(rng: Speaker) -> Drawn:
    label = rng.randrange(2)
    make = rng.choice((miniatures.same_question, miniatures.same_statement, miniatures.swapped_roles))
    return _two(rng, make(rng, label)), label


def _answers(rng: Speaker) -> Drawn:
    label = rng.randrange(2)
    question, sentence = miniatures.answer_sentence(rng, label)
    return [("question:", question), (rng.choice(("sentence:", "passage:")), sentence)], label


def _check(rng: Speaker) -> Drawn:
    label = rng.randrange(2)
    question, passage = miniatures.truth_question(rng, label)
    return [("question:", question), (rng.choice(("passage:", "paragraph:")), passage)], label


def _right(rng: Speaker) -> Drawn:
    row = miniatures.MINIATURES["multirc"](rng)
    fields = [("question:", row["question"]), ("answer:", row["answer"]), ("paragraph:", row["paragraph"])]
    return fields, int(row["label"])


def _feel(rng: Speaker) -> Drawn:
    label = rng.randrange(2)
    text = rng.choice((world.judge, miniatures.review))(rng, label)
    return [(rng.choice(("sentence:", "text:")), text)], label


def _refer(rng: Speaker) -> Drawn:
    label = rng.randrange(2)
    opening, end, pronoun, person = miniatures.meeting(rng, label)
    if rng.random() < 0.5:
        return _two(rng, (f"{opening} . {pronoun} {end} .", f"{person} {end} .")), label
    marked = opening.replace(person, f"* {person} *")
    return [("text:", f"{marked} because # {pronoun} # {end} .")], label


def _sense(rng: Speaker) -> Drawn:
    label = rng.randrange(2)
    word, first, second = miniatures.word_sense(rng, label)
    return [("sentence1:", first), ("sentence2:", second), ("word:", word)], label


def _choose(rng: Speaker) -> Drawn:
    sentence, option1, option2, answer = miniatures.choice_of_two(rng)
    return [("sentence:", sentence), ("option0:", option1), ("option1:", option2)], answer


def _count(rng: Speaker) -> Drawn:
    score = rng.randrange(6)
    return _two(rng, miniatures.likeness(rng, score)), score


CLOSED: Mapping[str, tuple[Callable[[Speaker], Drawn], tuple[str, ...], float]] = {
    "infer": (_infer, ("implied", "open", "denied"), 2.0),
    "follows": (_follows, ("follows", "unproven"), 1.0),
    "same": (_same, ("different", "alike"), 2.5),
    "answers": (_answers, ("answered", "unanswered"), 1.5),
    "check": (_check, ("untrue", "so"), 1.5),
    "right": (_right, ("wrong", "right"), 1.5),
    "feel": (_feel, ("blame", "praise"), 1.0),
    "refer": (_refer, ("other", "self"), 2.0),
    "sense": (_sense, ("apart", "together"), 1.2),
    "choose": (_choose, ("former", "latter"), 2.0),
    "count": (_count, SCORES, 1.8),
}
"""Skill -> (draw, its own label words, share of the mixture)."""


def _find(rng: Speaker) -> tuple[str, str]:
    kind = rng.randrange(12)
    if kind < 4:
        context, question = miniatures.reading(rng, 1 + rng.randrange(4))
    elif kind == 4:
        context, question = miniatures.clue(rng)
    elif kind == 5:
        context, question = miniatures.news(rng)
    elif kind == 6:
        opening, end, pronoun, person = miniatures.meeting(rng, 1)
        context, question = f"{opening} . {pronoun} {end} .", world.Question(f"who {end} ?", person)
    elif kind == 7:
        sentence, *options, answer = miniatures.choice_of_two(rng)
        reason = sentence.partition("_ ")[2].removesuffix(" .")
        context, question = sentence, world.Question(f"who {reason} ?", options[answer])
    else:
        # The single steps come with the question that joins them; without them it is not learned.
        context, *questions = miniatures.belongings(rng)
        question = questions[min(kind - 8, 2)]
    return f"question: {question.text} context: {context}", question.answer


def _fill(rng: Speaker) -> tuple[str, str]:
    row = miniatures.MINIATURES["record"](rng)
    passage = row["passage"].replace("\n@highlight\n", " ")
    return f"query: {row['query']} entities: {' , '.join(row['entities'])} passage: {passage}", row[
        "answers"
    ][0]


OPEN: Mapping[str, tuple[Callable[[Speaker], tuple[str, str]], float]] = {
    "find": (_find, 10.0),
    "fill": (_fill, 2.0),
}


def pairs(rng: Speaker, *, told: float = 0.6) -> Iterator[tuple[str, str]]:
    """Yield (source, target) texts of the skills for ever, in the proportions of `CLOSED` and `OPEN`.

    Args:
        rng: Source of all draws.
        told: Share of the closed skills' examples that list the words to answer with.
    """
    names = [*CLOSED, *OPEN]
    shares = [share for *_, share in CLOSED.values()] + [share for *_, share in OPEN.values()]
    prefixes = sorted({task.prefix for task in TASKS.values()})
    while True:
        (name,) = rng.choices(names, shares)
        stray = f"{rng.choice(prefixes)} " if rng.random() < 0.25 else ""
        if name in OPEN:
            source, target = OPEN[name][0](rng)
            yield f"{stray}{name} : {source}", target
            continue
        draw, own, _ = CLOSED[name]
        fields, label = draw(rng)
        words, listed = list(own), ""
        if rng.random() < told:
            words = draw_labels(rng, len(own))
            listed = " ".join(words) + " "
        yield (
            f"{stray}{name} {listed}: " + " ".join(f"{field} {text}" for field, text in fields),
            words[label],
        )


def texts(rng: Speaker) -> Iterator[str]:
    """Yield short passages of the micro-world for ever, for span corruption.

    What one sentence says another one often says again, so that a masked word can be found in the passage: repairing
    such text is what teaches a small model early to match one place of its input with another.
    """
    while True:
        lines = [line for _ in range(rng.choice((1, 2, 2))) for line in _twice(rng)]
        if rng.random() < 0.3:
            lines.append(
                rng.choice((world.judge(rng, rng.randrange(2)), world.tell(rng, world.draw_event(rng))))
            )
        rng.shuffle(lines)
        yield " ".join(lines)


def _twice(rng: Speaker) -> tuple[str, ...]:
    event = world.draw_event(rng)
    match rng.randrange(8):
        case 0:
            opening, end, pronoun, person = miniatures.meeting(rng, 1)
            return f"{opening} . {pronoun} {end} .", f"{person} {end} ."
        case 1:
            return miniatures.swapped_roles(rng, 1)
        case 2:
            return world.deny(rng, event), world.deny(rng, event)
        case 3 | 4:
            question = world.ask(rng, event)
            return world.tell(rng, event), f"{question.text} {question.answer} ."
        case 5:
            context, *questions = miniatures.belongings(rng)
            question = rng.choice(questions)
            return context, f"{question.text} {question.answer} ."
        case 6:
            sentence, *options, answer = miniatures.choice_of_two(rng)
            return (sentence.replace("_", options[answer]),)
        case _:
            return world.tell(rng, event), world.tell(rng, world.weaken(rng, event))


def draw_labels(rng: Random, count: int) -> list[str]:
    """Draw different words to answer with."""
    return rng.sample(DIGITS if rng.random() < 0.3 else label_pool(), count)


@cache
def label_pool() -> Sequence[str]:
    """Return every word that a skill example may be told to answer with."""
    words = {*world.PEOPLE, *world.PLACES, *world.THINGS, *world.MOODS, *world.SUBJECTS, *DIGITS}
    for task in TASKS.values():
        for spelled in task.labels.values():
            words.update(spelled)
    return tuple(sorted(words))


def skill_of(source: str) -> str:
    """Return the skill that a source text of `pairs` asks for."""
    first, second, *_ = source.split()
    return first if first in CLOSED or first in OPEN else second


def by_skill(drawn: Iterable[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Sort what `pairs` yields by the skill that it asks for."""
    found: dict[str, list[tuple[str, str]]] = {}
    for source, target in drawn:
        found.setdefault(skill_of(source), []).append((source, target))
    return found


def template_pairs(rng: Speaker, *, rows: int = 200) -> Iterator[tuple[str, str]]:
    """Yield the texts of rows of every miniature with either verbalizer, for a vocabulary that covers them."""
    for name, draw in miniatures.MINIATURES.items():
        for words in LABEL_WORDS:
            options = TemplateOptions(label_words=words)
            for _ in range(rows):
                example = TASKS[name].eval_example(draw(rng), options)
                yield example.source, example.target
    yield " ".join(sorted({*label_pool(), *SCORES})), ""
