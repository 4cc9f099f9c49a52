"""Miniatures of the paper's 6 source and 17 target tasks, as rows in the schema of their hub data sets.

Because a miniature has the columns of the real data set, it goes through the very same template, verbalizer
and metric. `PARENTS` says which source tasks a target is made from, so that transfer and mixing weights can be
checked against the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from attempt_ray.data.microworld import world
from attempt_ray.data.microworld.world import Event, Speaker

Row = dict[str, Any]

PARENTS: Mapping[str, tuple[str, ...]] = {
    "rte": ("mnli",),
    "cb": ("mnli",),
    "scitail": ("mnli",),
    "boolq": ("mnli",),
    "mrpc": ("qqp",),
    "paws": ("qqp",),
    "stsb": ("qqp",),
    "multirc": ("qnli",),
    "yelp": ("sst2",),
    "nq": ("squad",),
    "hotpotqa": ("squad",),
    "searchqa": ("squad", "record"),
    "newsqa": ("squad",),
}
"""True sources of each target; WNLI, WSC, WiC and WinoGrande descend from none."""

TRAIN_ROWS: Mapping[str, int] = {
    **dict.fromkeys(("mnli", "qnli", "qqp", "sst2", "squad", "record"), 6000),
    "cb": 250,
    "rte": 500,
    "wsc": 554,
    "wnli": 600,
    "mrpc": 600,
    "wic": 1086,
    "stsb": 1150,
    "boolq": 1885,
    **dict.fromkeys(("multirc", "hotpotqa", "newsqa", "winogrande", "scitail", "paws"), 3000),
    **dict.fromkeys(("nq", "searchqa", "yelp"), 4000),
}
"""The paper's sizes below 650 rows; larger sets are a fifth of theirs and at most 6,000."""
EVALUATION_ROWS: Mapping[str, int] = {"validation": 200, "test": 500}


def entailment(rng: Speaker, label: int) -> tuple[str, str]:
    """Return a premise and a hypothesis that it entails (0), leaves open (1) or contradicts (2)."""
    event = world.draw_event(rng, quality=0.6, place=0.7)
    premise = world.tell(rng, event)
    if label == 0:
        return premise, world.tell(rng, world.weaken(rng, event))
    if label == 2:
        return premise, world.contradict(rng, event)
    return premise, world.tell(rng, world.weaken(rng, world.alter(rng, event)))


def two_way_entailment(rng: Speaker, label: int) -> tuple[str, str]:
    """Return a premise and a hypothesis that it entails (0) or not (1)."""
    return entailment(rng, rng.choice((1, 2)) if label else 0)


def same_question(rng: Speaker, label: int) -> tuple[str, str]:
    """Return two questions that ask the same (1) or not (0)."""
    event = world.draw_event(rng)
    about = rng.choice(world.answerable(event))
    other, other_about = event, about
    if label == 0:
        if rng.random() < 0.3:
            other_about = rng.choice([kind for kind in world.answerable(event) if kind != about])
        else:
            slots = [slot for slot in ("person", "thing", "deed") if slot != about]
            other = world.altered(rng, event, rng.choice(slots))
    return world.ask(rng, event, about).text, world.ask(rng, other, other_about).text


def same_statement(rng: Speaker, label: int) -> tuple[str, str]:
    """Return two statements that mean the same (1) or not (0)."""
    event = world.draw_event(rng)
    other = event
    if label == 0:
        other = world.altered(rng, event, rng.choice(("person", "thing", "deed")))
    return world.tell(rng, event), world.tell(rng, other)


def swapped_roles(rng: Speaker, label: int) -> tuple[str, str]:
    """Return two statements of the same words, with the same roles (1) or exchanged ones (0)."""
    giver, receiver = rng.sample(world.PEOPLE, 2)
    verbs = rng.choice(world.TRANSFERS)
    first, second = rng.word(verbs), rng.word(verbs)
    thing = rng.choice(world.THINGS)
    swap = (giver, receiver) if label else (receiver, giver)
    return transfer(rng, giver, receiver, thing, first), transfer(rng, *swap, thing, second)


def transfer(rng: Speaker, giver: str, receiver: str, thing: str, verb: str) -> str:
    """Say that somebody gave, sent, showed or sold a thing to somebody."""
    return rng.word(
        (f"{giver} {verb} the {thing} to {receiver} .", f"to {receiver} {giver} {verb} the {thing} .")
    )


def answer_sentence(rng: Speaker, label: int) -> tuple[str, str]:
    """Return a question and a sentence that answers it (0) or not (1)."""
    event = world.draw_event(rng, place=0.9)
    question = world.ask(rng, event)
    asked = [slot for slot in ("person", "thing", "deed") if getattr(event, slot) != question.answer]
    if label == 1:
        event = world.altered(rng, event, rng.choice(asked))
    return question.text, world.tell(rng, event)


def passage(rng: Speaker, events: list[Event]) -> str:
    """Tell several events, in a random order."""
    return " ".join(world.tell(rng, event) for event in rng.sample(events, len(events)))


def truth_question(rng: Speaker, label: int) -> tuple[str, str]:
    """Return a yes/no question and the passage that says yes (1) or not (0)."""
    events = world.draw_events(rng, rng.choice((2, 3)), place=0.6)
    event = rng.choice(events)
    asked = (
        world.weaken(rng, event)
        if label
        else world.altered(rng, replace(event, quality=None), rng.choice(("person", "thing")))
    )
    verb, where = rng.word(world.DEEDS[asked.deed]), f" in the {asked.place}" if asked.place else ""
    return f"did {asked.person} {verb.base} {world.noun_phrase(rng, asked)}{where} ?", passage(rng, events)


def reading(rng: Speaker, sentences: int) -> tuple[str, world.Question]:
    """Return a passage and a question whose answer is a word of it."""
    events = world.draw_events(rng, sentences)
    return passage(rng, events), world.ask(rng, rng.choice(events))


def two_hops(rng: Speaker) -> tuple[str, world.Question]:
    """Return a passage and a question that needs two of its sentences."""
    context, _, _, question = belongings(rng)
    return context, question


def belongings(rng: Speaker) -> tuple[str, world.Question, world.Question, world.Question]:
    """Return a passage with two sentences on each of two people, and three questions.

    The first asks whose a thing is, the second where that person is, the third joins them.
    """
    people, things, places = (
        rng.sample(world.PEOPLE, 2),
        rng.sample(world.THINGS, 2),
        rng.sample(world.PLACES, 2),
    )
    paragraphs = [
        f"the {thing} belongs to {person} . {world.pronoun(person)} is in the {place} ."
        for person, thing, place in zip(people, things, places, strict=True)
    ]
    rng.shuffle(paragraphs)
    return (
        " ".join(paragraphs),
        world.Question(f"who is the owner of the {things[0]} ?", people[0]),
        world.Question(f"where is {people[0]} ?", places[0]),
        world.Question(f"where is the owner of the {things[0]} ?", places[0]),
    )


def news(rng: Speaker) -> tuple[str, world.Question]:
    """Return a report of what people said others did, and a question on one of the deeds."""
    events = world.draw_events(rng, 3)
    reporters = rng.sample(
        [name for name in world.PEOPLE if name not in {event.person for event in events}], 3
    )
    lines = [
        f"{name} said that {world.tell(rng, event)}" for name, event in zip(reporters, events, strict=True)
    ]
    return " ".join(lines), world.ask(rng, rng.choice(events))


def clue(rng: Speaker) -> tuple[str, world.Question]:
    """Return snippets and a clue without a question word; the answer is the person."""
    events = world.draw_events(rng, 3)
    event = rng.choice(events)
    verb = rng.word(world.DEEDS[event.deed])
    return passage(rng, events), world.Question(f"{verb.past} {world.noun_phrase(rng, event)}", event.person)


def meeting(rng: Speaker, label: int) -> tuple[str, str, str, str]:
    """Return a first sentence, a pronoun sentence's end, the pronoun, and a person it stands for (1) or not (0)."""
    one, other = world.couple(rng)
    meant = rng.choice((one, other))
    named = meant if label else (other if meant == one else one)
    opening = rng.word((f"{one} met {other} in the {rng.choice(world.PLACES)}", f"{one} talked to {other}"))
    return opening, f"was {rng.choice(world.MOODS)}", world.pronoun(meant), named


def word_sense(rng: Speaker, label: int) -> tuple[str, str, str]:
    """Return a word and two sentences that use it in one sense (1) or in two (0)."""
    word = rng.choice(tuple(world.SENSES))
    first = rng.randrange(2)
    second = first if label else 1 - first
    uses = [rng.choice(world.SENSES[word][sense]) for sense in (first, second)]
    sentences = [
        rng.word((f"the {word} {use} .", f"in the {rng.choice(world.PLACES)} the {word} {use} ."))
        for use in uses
    ]
    return word, sentences[0], sentences[1]


def choice_of_two(rng: Speaker) -> tuple[str, str, str, int]:
    """Return a sentence with a blank, two people, and which of them fills it (0 or 1)."""
    seller, buyer = rng.sample(world.PEOPLE, 2)
    answer = rng.randrange(2)
    thing = rng.choice(world.THINGS)
    reason = "needed money" if answer == 0 else f"wanted the {thing}"
    names, filler = [seller, buyer], (seller, buyer)[answer]
    rng.shuffle(names)
    return (
        f"{seller} sold the {thing} to {buyer} because _ {reason} .",
        names[0],
        names[1],
        names.index(filler),
    )


def likeness(rng: Speaker, score: int) -> tuple[str, str]:
    """Return two statements of five parts that share `score` of them."""
    event = world.draw_event(rng, quality=1.0, place=1.0)
    changed = rng.sample(("person", "deed", "thing", "quality", "place"), 5 - score)
    other = event
    for slot in changed:
        if slot == "quality":
            others = [q for q in range(len(world.QUALITIES)) if q // 2 != (event.quality or 0) // 2]
            other = replace(other, quality=rng.choice(others))
        else:
            other = world.altered(rng, other, slot)
    return world.tell(rng, event), world.tell(rng, other)


def review(rng: Speaker, label: int) -> str:
    """Return a review of several sentences that praises (1) or blames (0) between plain ones."""
    lines = [world.judge(rng, label) for _ in range(rng.choice((1, 2)))]
    lines += [world.tell(rng, world.draw_event(rng)) for _ in range(rng.choice((1, 2)))]
    rng.shuffle(lines)
    return " ".join(lines)


def _pair(
    make: Callable[[Speaker, int], tuple[str, str]], first: str, second: str, classes: int = 2
) -> Callable[[Speaker], Row]:
    def row(rng: Speaker) -> Row:
        label = rng.randrange(classes)
        one, other = make(rng, label)
        return {first: one, second: other, "label": label}

    return row


def _rte(rng: Speaker) -> Row:
    label = rng.randrange(2)
    premise, hypothesis = two_way_entailment(rng, label)
    lines = [premise, world.tell(rng, world.draw_event(rng))]
    rng.shuffle(lines)
    return {"sentence1": " ".join(lines), "sentence2": hypothesis, "label": label}


def _cb(rng: Speaker) -> Row:
    label = rng.randrange(3)
    premise, hypothesis = entailment(rng, {0: 0, 1: 2, 2: 1}[label])
    return {
        "premise": f"{rng.choice(world.PEOPLE)} said that {premise}",
        "hypothesis": hypothesis,
        "label": label,
    }


def _scitail(rng: Speaker) -> Row:
    label = rng.randrange(2)
    premise, hypothesis = two_way_entailment(rng, label)
    return {"sentence1": premise, "sentence2": hypothesis, "gold_label": ("entailment", "neutral")[label]}


def _squad(rng: Speaker) -> Row:
    context, question = reading(rng, rng.choice((1, 2, 3)))
    return {
        "title": "micro-world",
        "context": context,
        "question": question.text,
        "answers": {"text": [question.answer], "answer_start": [_start(context, question.answer)]},
    }


def _mrqa(make: Callable[[Speaker], tuple[str, world.Question]]) -> Callable[[Speaker], Row]:
    def row(rng: Speaker) -> Row:
        context, question = make(rng)
        start = _start(context, question.answer)
        spans = [{"start": [start], "end": [start + len(question.answer) - 1]}]
        return {"context": context, "question": question.text, "answers": [question.answer], "labels": spans}

    return row


def _start(context: str, word: str) -> int:
    return f" {context} ".index(f" {word} ")


def _record(rng: Speaker) -> Row:
    number = rng.randrange(10**9)
    events = world.draw_events(rng, 3)
    event = rng.choice(events)
    query = world.tell(rng, replace(world.weaken(rng, event), thing=event.thing, person="@placeholder"))
    first, *highlights = (world.tell(rng, one) for one in events)
    return {
        "passage": "\n@highlight\n".join([first, *highlights]),
        "query": query,
        "entities": sorted(one.person for one in events),
        "answers": [event.person],
        "idx": {"passage": number, "query": number},
    }


def _multirc(rng: Speaker) -> Row:
    idx = dict.fromkeys(("paragraph", "question", "answer"), rng.randrange(10**9))
    events = world.draw_events(rng, rng.choice((2, 3)))
    asked, other = rng.sample(events, 2)
    about = rng.choice(("person", "thing", "place"))
    question = world.ask(rng, asked, about)
    label = rng.randrange(2)
    answer = question.answer if label else world.ask(rng, other, about).answer
    return {
        "paragraph": passage(rng, events),
        "question": question.text,
        "answer": answer,
        "idx": idx,
        "label": label,
    }


def _wnli(rng: Speaker) -> Row:
    label = rng.randrange(2)
    opening, end, pronoun, person = meeting(rng, label)
    return {"sentence1": f"{opening} . {pronoun} {end} .", "sentence2": f"{person} {end} .", "label": label}


def _wsc(rng: Speaker) -> Row:
    label = rng.randrange(2)
    opening, end, pronoun, person = meeting(rng, label)
    text = f"{opening} because {pronoun} {end} ."
    words = text.split()
    return {
        "text": text,
        "span1_index": words.index(person),
        "span1_text": person,
        "span2_index": words.index(pronoun),
        "span2_text": pronoun,
        "label": label,
    }


def _wic(rng: Speaker) -> Row:
    label = rng.randrange(2)
    word, sentence1, sentence2 = word_sense(rng, label)
    places = {
        f"{edge}{index}": sentence.index(word) + offset
        for index, sentence in ((1, sentence1), (2, sentence2))
        for edge, offset in (("start", 0), ("end", len(word)))
    }
    return {"word": word, "sentence1": sentence1, "sentence2": sentence2, **places, "label": label}


def _winogrande(rng: Speaker) -> Row:
    sentence, option1, option2, answer = choice_of_two(rng)
    return {"sentence": sentence, "option1": option1, "option2": option2, "answer": str(answer + 1)}


def _stsb(rng: Speaker) -> Row:
    score = rng.randrange(6)
    sentence1, sentence2 = likeness(rng, score)
    return {"sentence1": sentence1, "sentence2": sentence2, "label": float(score)}


def _sst2(rng: Speaker) -> Row:
    label = rng.randrange(2)
    return {"sentence": world.judge(rng, label), "label": label}


def _yelp(rng: Speaker) -> Row:
    label = rng.randrange(2)
    return {"text": review(rng, label), "label": label}


MINIATURES: Mapping[str, Callable[[Speaker], Row]] = {
    "mnli": _pair(entailment, "premise", "hypothesis", classes=3),
    "qnli": _pair(answer_sentence, "question", "sentence"),
    "qqp": _pair(same_question, "question1", "question2"),
    "sst2": _sst2,
    "squad": _squad,
    "record": _record,
    "wnli": _wnli,
    "stsb": _stsb,
    "mrpc": _pair(same_statement, "sentence1", "sentence2"),
    "rte": _rte,
    "boolq": _pair(truth_question, "question", "passage"),
    "cb": _cb,
    "multirc": _multirc,
    "wic": _wic,
    "wsc": _wsc,
    "nq": _mrqa(lambda rng: reading(rng, 4)),
    "hotpotqa": _mrqa(two_hops),
    "searchqa": _mrqa(clue),
    "newsqa": _mrqa(news),
    "winogrande": _winogrande,
    "yelp": _yelp,
    "scitail": _scitail,
    "paws": _pair(swapped_roles, "sentence1", "sentence2"),
}
"""One row of each miniature, drawn with the given generator."""
