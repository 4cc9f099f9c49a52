from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.config import load
from attempt_ray.errors import ConfigError
from tune_spaces import SPACES
from tune_spaces.space import Choice, Floats, Integers, Knob, Space, check_space, load_space

ROOT = Path(__file__).parents[3]
PRESETS = {"embedded": "embedded", **{name: "paper/t5-small" for name in SPACES if name != "embedded"}}


def knob(**given: Any) -> Knob:
    return Knob.model_validate({"key": "attention.auto_logit", "domain": Floats(low=1, high=2), **given})


@pytest.mark.parametrize("name", SPACES)
def test_every_space_fits_the_config_and_knows_the_papers_point(name: str) -> None:
    space = load_space(name, SPACES)
    config = load([ROOT / "attempt_ray" / "presets" / f"{PRESETS[name]}.yaml"])
    check_space(space, config)
    assert space.name == name
    tried = space.apply(config, space.known[0])
    assert (tried.attention.temperature, tried.attention.start, tried.study.prior) == (1.0, "source", True)
    assert tried.training.prompt_learning_rate == 0.3


def test_spaces_are_told_apart_by_their_content() -> None:
    digests = {load_space(name, SPACES).digest() for name in SPACES}
    assert len(digests) == len(SPACES)
    one = Space(name="x", knobs=(knob(),))
    assert one.digest() == Space(name="x", knobs=(knob(),)).digest()
    assert one.digest() != Space(name="x", knobs=(knob(domain=Floats(low=1, high=3)),)).digest()


def test_what_is_asked_depends_on_what_was_chosen_before() -> None:
    space = load_space("embedded", SPACES)
    by_key = {one.key: one for one in space.knobs}
    assert by_key["attention.auto_logit"].asked({"temperature": "auto"})
    assert not by_key["attention.auto_logit"].asked({"temperature": "absolute"})
    assert not by_key["attention.temperature"].asked({})
    assert by_key["attention.bottleneck"].asked({"study.prior": False})
    config = load([ROOT / "attempt_ray" / "presets" / "embedded.yaml"])
    assert space.apply(config, space.known[1]).attention.temperature == "auto"


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({}, "lacks 'temperature'"),
        ({"temperature": "auto"}, "lacks 'attention.auto_logit'"),
        ({"temperature": "auto", "attention.auto_logit": 99.0}, "outside of its domain"),
        ({"temperature": "none"}, "outside of its domain"),
        ({"temperature": "absolute", "attention.auto_logit": 1.0}, "which is not asked there"),
    ],
)
def test_a_point_that_is_not_of_the_space_is_refused(point: dict[str, Any], message: str) -> None:
    chosen = Knob(
        key="temperature", domain=Choice(values=("auto", "absolute")), sets={"auto": {}, "absolute": {}}
    )
    space = Space(name="x", knobs=(chosen, knob(when={"temperature": ("auto",)})))
    with pytest.raises(ValueError, match=message):
        space.check_point(point)
    with pytest.raises(ValueError, match=message):
        Space(name="x", knobs=space.knobs, known=(point,))


@pytest.mark.parametrize(
    ("key", "domain", "message"),
    [
        ("training.atention_learning_rate", Floats(low=1, high=2), "did you mean"),
        ("training.steps", Integers(low=-5, high=5), r"knob 'training.steps' at -5: .*greater than or equal"),
        ("attention.start", Choice(values=("source", "mnli")), "knob 'attention.start' at 'mnli'"),
    ],
)
def test_a_space_that_does_not_fit_the_config_is_refused(key: str, domain: Any, message: str) -> None:
    space = Space(name="x", knobs=(Knob(key=key, domain=domain),))
    with pytest.raises(ConfigError, match=message):
        check_space(space, load([]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "floats", "low": 2, "high": 1}, "the interval 2.0 to 1.0 is empty"),
        ({"kind": "floats", "low": 0, "high": 1, "log": True}, "give a positive low"),
        ({"kind": "integers", "low": 3, "high": 3}, "the interval 3 to 3 is empty"),
        (
            {"kind": "integers", "low": 1, "high": 9, "step": 2, "log": True},
            "wants a positive low and step 1",
        ),
        ({"kind": "choice", "values": []}, "at least 1 item"),
        ({"kind": "floatz", "low": 1, "high": 2}, "floatz"),
    ],
)
def test_a_domain_that_holds_nothing_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\nknobs:\n- key: training.steps\n  domain: {given}\n".replace("'", ""))
    with pytest.raises(ConfigError, match=message):
        load_space(str(file), SPACES)


def test_domains_know_their_values() -> None:
    inside = [
        (Floats(low=0, high=1), 0.5),
        (Integers(low=2, high=8, step=2), 6),
        (Choice(values=(True, 3)), 3),
    ]
    outside = [
        (Floats(low=0, high=1), True),
        (Integers(low=2, high=8, step=2), 5),
        (Choice(values=(1,)), True),
    ]
    assert all(domain.has(value) for domain, value in inside)
    assert not any(domain.has(value) for domain, value in outside)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ((knob(), knob()), "two knobs are"),
        ((knob(when={"other": (1,)}),), "waits for 'other', which is no knob before it"),
        ((), "has no knobs"),
    ],
)
def test_a_space_whose_knobs_do_not_fit_together_is_refused(knobs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space(name="x", knobs=knobs)


def test_a_knob_that_sets_keys_sets_them_for_every_value() -> None:
    with pytest.raises(ValueError, match="sets keys for a; wanted a, b"):
        Knob(key="x", domain=Choice(values=("a", "b")), sets={"a": {}})
    with pytest.raises(ValueError, match="give it the domain 'choice'"):
        Knob(key="x", domain=Floats(low=1, high=2), sets={"a": {}})


MINE = """
from tune_spaces.space import Floats, Knob, Space

SPACE = Space(name="mine", knobs=(Knob(key="attention.auto_logit", domain=Floats(low=1, high=2)),))
"""


def test_users_write_spaces_in_yaml_or_python(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nknobs:\n- key: attention.auto_logit\n  domain: {kind: floats, low: 1, high: 2}\n"
    )
    python, written = (load_space(str(tmp_path / f"mine.{end}"), SPACES) for end in ("py", "yaml"))
    assert python == written and python.digest() == written.digest()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gleu", None, "no search space or file 'gleu'; did you mean 'glue'"),
        ("none.yaml", None, "cannot read search space .*none.yaml"),
        ("none.py", None, "cannot read search space .*none.py"),
        ("bad.yaml", "a: [", "is not YAML"),
        ("bad.yaml", "name: x\nknobs: []\nextra: 1", "extra: Extra inputs"),
        ("bad.py", "import nothing_of_the_kind", "cannot be imported: ModuleNotFoundError"),
        ("bad.py", "x = 1", "has no SPACE"),
    ],
)
def test_what_is_no_space_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    place = name if "." not in name else str(tmp_path / name)
    with pytest.raises(ConfigError, match=message) as caught:
        load_space(place, SPACES)
    assert "\n" not in str(caught.value)


def test_every_pair_of_choices_makes_a_config() -> None:
    config = load([ROOT / "attempt_ray" / "presets" / "embedded.yaml"])
    space = load_space("embedded", SPACES)
    choices = [one for one in space.knobs if isinstance(one.domain, Choice)]
    for first, second in itertools.combinations(choices, 2):
        for values in itertools.product(first.domain.ends(), second.domain.ends()):
            space.apply(config, dict(zip((first.key, second.key), values, strict=True)))
