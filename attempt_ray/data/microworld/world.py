"""The micro-world: people who do things with things in places, in short English sentences.

Everything said about the world follows from a few tables, so that entailment, sameness of meaning, sentiment
and answers are known without a judge. All draws come from the `Speaker` that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeVar

MEN = ("tom", "jack", "peter", "john", "paul", "adam", "luke", "henry", "oscar", "simon", "victor", "david")
WOMEN = ("mary", "anna", "lucy", "emma", "sara", "julia", "helen", "nina", "clara", "alice", "ruth", "laura")
PEOPLE = MEN + WOMEN
PLACES = (
    *("park", "kitchen", "garden", "market", "school", "library", "station", "museum", "office", "harbor"),
    *("forest", "barn", "hotel", "castle", "cellar"),
)
KINDS = {
    "toy": ("ball", "kite", "doll"),
    "tool": ("hammer", "axe", "drill"),
    "fruit": ("apple", "pear", "plum"),
    "garment": ("hat", "coat", "scarf"),
    "vehicle": ("cart", "bike", "truck"),
    "vessel": ("cup", "bowl", "jar"),
    "text": ("book", "letter", "map"),
}
THINGS = tuple(thing for things in KINDS.values() for thing in things)
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}


@dataclass(frozen=True)
class Verb:
    """One way to say a deed: base form, past tense, past participle."""

    base: str
    past: str
    participle: str


DEEDS = (
    (Verb("buy", "bought", "bought"), Verb("purchase", "purchased", "purchased")),
    (Verb("find", "found", "found"), Verb("discover", "discovered", "discovered")),
    (Verb("see", "saw", "seen"), Verb("notice", "noticed", "noticed")),
    (Verb("take", "took", "taken"), Verb("grab", "grabbed", "grabbed")),
    (Verb("clean", "cleaned", "cleaned"), Verb("wash", "washed", "washed")),
    (Verb("break", "broke", "broken"), Verb("smash", "smashed", "smashed")),
    (Verb("draw", "drew", "drawn"), Verb("sketch", "sketched", "sketched")),
    (Verb("hide", "hid", "hidden"), Verb("conceal", "concealed", "concealed")),
    (Verb("carry", "carried", "carried"), Verb("haul", "hauled", "hauled")),
    (Verb("fix", "fixed", "fixed"), Verb("repair", "repaired", "repaired")),
)
TRANSFERS = (("gave", "handed"), ("sent", "mailed"), ("showed", "presented"), ("sold", "traded"))
QUALITIES = (
    ("big", "large"),
    ("small", "tiny"),
    ("new", "modern"),
    ("old", "ancient"),
    ("hot", "warm"),
    ("cold", "chilly"),
    ("wet", "damp"),
    ("dry", "arid"),
    ("hard", "firm"),
    ("soft", "tender"),
)
OPPOSITE = {index: index ^ 1 for index in range(len(QUALITIES))}
MOODS = ("happy", "sad", "tired", "angry", "calm", "hungry")
SUBJECTS = ("film", "song", "story", "play", "dish", "soup", "meal", "game", "trip", "show")
GOOD = ("good", "great", "lovely", "superb", "charming", "delightful")
BAD = ("bad", "awful", "dull", "poor", "dreadful", "boring")
LIKED = ("liked", "loved", "enjoyed")
HATED = ("hated", "disliked", "loathed")
SENSES = {
    "bat": (("flew", "slept", "hid"), ("swung", "split", "cracked")),
    "bank": (("lent", "charged", "paid"), ("flooded", "eroded", "sloped")),
    "bark": (("echoed", "scared", "sounded"), ("peeled", "grew", "rotted")),
    "spring": (("began", "ended", "arrived"), ("bounced", "coiled", "stretched")),
    "ring": (("shone", "glittered", "sparkled"), ("chimed", "buzzed", "woke")),
    "match": (("burned", "glowed", "lit"), ("started", "finished", "tied")),
    "seal": (("swam", "dived", "barked"), ("leaked", "stuck", "closed")),
    "crane": (("nested", "waded", "fished"), ("lifted", "lowered", "hoisted")),
}

Style = Literal["active", "passive", "fronted"]
STYLES: tuple[Style, ...] = ("active", "passive", "fronted")


Wording = TypeVar("Wording")


class Speaker(Random):
    """A generator of draws who speaks plainly or with variety.

    Attributes:
        variety: Share of wordings drawn among all there are; the others are the plainest: first synonym, active voice.
    """

    variety = 1.0

    def word(self, wordings: Sequence[Wording]) -> Wording:
        """Draw one of several ways to say the same, the plainest first."""
        if self.variety < 1.0 and self.random() >= self.variety:
            return wordings[0]
        return self.choice(wordings)


@dataclass(frozen=True)
class Event:
    """Somebody did something with a thing; its quality and place may be left out."""

    person: str
    deed: int
    thing: str
    quality: int | None
    place: str | None


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the event it was asked of."""

    text: str
    answer: str


def draw_event(rng: Speaker, *, quality: float = 0.5, place: float = 0.6) -> Event:
    """Draw an event whose quality and place are present with the given probabilities."""
    return Event(
        person=rng.choice(PEOPLE),
        deed=rng.randrange(len(DEEDS)),
        thing=rng.choice(THINGS),
        quality=rng.randrange(len(QUALITIES)) if rng.random() < quality else None,
        place=rng.choice(PLACES) if rng.random() < place else None,
    )


def draw_events(rng: Speaker, count: int, *, quality: float = 0.5, place: float = 1.0) -> list[Event]:
    """Draw events that share no person, thing or place, so that questions about them have one answer."""
    people, things = rng.sample(PEOPLE, count), rng.sample(THINGS, count)
    places = rng.sample(PLACES, count)
    events = [draw_event(rng, quality=quality, place=place) for _ in range(count)]
    return [
        replace(event, person=who, thing=what, place=where if event.place else None)
        for event, who, what, where in zip(events, people, things, places, strict=True)
    ]


def noun_phrase(rng: Speaker, event: Event) -> str:
    """Return the thing with its quality, in one of the quality's two words."""
    return (
        f"the {rng.word(QUALITIES[event.quality])} {event.thing}"
        if event.quality is not None
        else f"the {event.thing}"
    )


def tell(rng: Speaker, event: Event, style: Style | None = None) -> str:
    """Say an event in one sentence; synonyms and word order are free."""
    verb, noun = rng.word(DEEDS[event.deed]), noun_phrase(rng, event)
    where = f" in the {event.place}" if event.place else ""
    match style or rng.word(STYLES):
        case "passive":
            return f"{noun} was {verb.participle} by {event.person}{where} ."
        case "fronted" if event.place:
            return f"in the {event.place} {event.person} {verb.past} {noun} ."
        case _:
            return f"{event.person} {verb.past} {noun}{where} ."


def deny(rng: Speaker, event: Event) -> str:
    """Say that an event did not happen."""
    verb, where = rng.word(DEEDS[event.deed]), f" in the {event.place}" if event.place else ""
    return f"{event.person} did not {verb.base} {noun_phrase(rng, event)}{where} ."


def weaken(rng: Speaker, event: Event) -> Event:
    """Return an event that follows from `event`: details dropped, or the thing named by its kind."""
    return replace(
        event,
        quality=event.quality if rng.random() < 0.5 else None,
        place=event.place if rng.random() < 0.5 else None,
        thing=KIND_OF[event.thing] if rng.random() < 0.25 else event.thing,
    )


def contradict(rng: Speaker, event: Event) -> str:
    """Say something that cannot be true where `event` is: denied, opposite quality, or another place."""
    ways = ["deny", *(["quality"] if event.quality is not None else []), *(["place"] if event.place else [])]
    match rng.choice(ways):
        case "quality" if event.quality is not None:
            return tell(rng, replace(event, quality=OPPOSITE[event.quality]))
        case "place":
            return tell(rng, altered(rng, event, "place"))
        case _:
            return deny(rng, weaken(rng, event))


def alter(rng: Speaker, event: Event) -> Event:
    """Return an event that is neither implied nor excluded by `event`: another person, kind of thing or deed."""
    slot = rng.choice(("person", "thing", "deed"))
    if slot == "thing":
        kind = KIND_OF[event.thing]
        return replace(event, thing=rng.choice([thing for thing in THINGS if KIND_OF[thing] != kind]))
    return altered(rng, event, slot)


def altered(rng: Speaker, event: Event, slot: str) -> Event:
    """Return an event with another person, thing, place or deed, as `slot` says."""
    match slot:
        case "person":
            return replace(event, person=rng.choice([name for name in PEOPLE if name != event.person]))
        case "thing":
            return replace(event, thing=rng.choice([thing for thing in THINGS if thing != event.thing]))
        case "place":
            return replace(event, place=rng.choice([place for place in PLACES if place != event.place]))
        case _:
            return replace(event, deed=rng.choice([deed for deed in range(len(DEEDS)) if deed != event.deed]))


def ask(rng: Speaker, event: Event, about: str | None = None) -> Question:
    """Ask for the person, thing, place or quality of an event."""
    verb = rng.word(DEEDS[event.deed])
    about = about or rng.choice(answerable(event))
    match about:
        case "person":
            where = f" in the {event.place}" if event.place and rng.random() < 0.3 else ""
            opening = rng.word(("who", "which person"))
            return Question(f"{opening} {verb.past} the {event.thing}{where} ?", event.person)
        case "thing":
            where = f" in the {event.place}" if event.place and rng.random() < 0.3 else ""
            opening = rng.word(("what", "which thing"))
            return Question(f"{opening} did {event.person} {verb.base}{where} ?", event.thing)
        case "place" if event.place:
            opening = rng.word(("where", "in which place"))
            return Question(f"{opening} did {event.person} {verb.base} the {event.thing} ?", event.place)
        case _:
            raise ValueError(about)


def answerable(event: Event) -> list[str]:
    """Return what can be asked of an event."""
    return ["person", "thing", *(["place"] if event.place else [])]


def judge(rng: Speaker, polarity: int) -> str:
    """Return a sentence of praise (1) or blame (0)."""
    subject, person = rng.choice(SUBJECTS), rng.choice(PEOPLE)
    if rng.random() < 0.5:
        subject = f"{subject} in the {rng.choice(PLACES)}"
    words, others = (GOOD, BAD) if polarity else (BAD, GOOD)
    deeds = LIKED if polarity else HATED
    return rng.choice(
        (
            f"the {subject} was {rng.choice(words)} .",
            f"the {subject} was not {rng.choice(others)} .",
            f"{person} said the {subject} was {rng.choice(words)} .",
            f"{person} {rng.choice(deeds)} the {subject} .",
            f"it was a {rng.choice(words)} {subject} .",
            f"nobody said the {subject} was {rng.choice(others)} .",
        )
    )


def pronoun(person: str) -> str:
    """Return he or she."""
    return "he" if person in MEN else "she"


def couple(rng: Speaker) -> tuple[str, str]:
    """Draw a man and a woman, in either order."""
    pair = [rng.choice(MEN), rng.choice(WOMEN)]
    rng.shuffle(pair)
    return pair[0], pair[1]
