"""What a search may change, as data: knobs of the run config, each with its domain, some only under a condition.

A space imports neither Ray nor Optuna; who searches turns domains into theirs. Users write a space of their own as a
YAML file, or as a Python file with a `SPACE`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from attempt_ray.config import Config, Section, TaskGroup, parse
from attempt_ray.errors import ConfigError

Value = bool | int | float | str | None
Settings = Mapping[str, Any]
"""Config keys with dots, and their values."""


class Floats(Section):
    """Numbers of an interval."""

    kind: Literal["floats"] = "floats"
    low: float
    high: float
    log: bool = False
    """Uniform in the logarithm."""

    @model_validator(mode="after")
    def _check(self) -> Floats:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the interval {self.low} to {self.high} is empty; give low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic interval from {self.low}; give a positive low")
        return self

    def ends(self) -> tuple[Value, ...]:
        """Return values that stand for all."""
        return (self.low, self.high)

    def has(self, value: Any) -> bool:
        """Whether a value is of the domain."""
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high
        )


class Integers(Section):
    """Whole numbers of an interval, both ends counted in."""

    kind: Literal["integers"] = "integers"
    low: int
    high: int
    step: int = Field(default=1, ge=1)
    log: bool = False
    """Uniform in the logarithm."""

    @model_validator(mode="after")
    def _check(self) -> Integers:
        if self.low >= self.high:
            raise ValueError(f"the interval {self.low} to {self.high} is empty; give low < high")
        if self.log and (self.low <= 0 or self.step != 1):
            raise ValueError("a logarithmic interval wants a positive low and step 1")
        return self

    def ends(self) -> tuple[Value, ...]:
        """Return values that stand for all."""
        return (self.low, self.high)

    def has(self, value: Any) -> bool:
        """Whether a value is of the domain."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0


class Choice(Section):
    """One of several values."""

    kind: Literal["choice"] = "choice"
    values: tuple[Value, ...] = Field(min_length=1)

    def ends(self) -> tuple[Value, ...]:
        """Return all values."""
        return self.values

    def has(self, value: Any) -> bool:
        """Whether a value is of the domain."""
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values)


Domain = Annotated[Floats | Integers | Choice, Field(discriminator="kind")]


class Knob(Section):
    """Something a search changes."""

    key: str
    """A key of the run config, such as `attention.auto_logit`; or, where `sets` is given, a name of its own."""
    domain: Domain
    sets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """For each value of a `Choice`, as text, the config keys that it sets."""
    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Asked only where knobs before it have one of these values."""

    @model_validator(mode="after")
    def _check(self) -> Knob:
        if self.sets:
            if not isinstance(self.domain, Choice):
                raise ValueError(f"knob '{self.key}' sets keys by value; give it the domain 'choice'")
            named = {str(value) for value in self.domain.values}
            if named != set(self.sets):
                raise ValueError(
                    f"knob '{self.key}' sets keys for {', '.join(sorted(self.sets))}; wanted {', '.join(sorted(named))}"
                )
        return self

    def settings(self, value: Value) -> Settings:
        """Return what the config is set to for a value."""
        return self.sets[str(value)] if self.sets else {self.key: value}

    def asked(self, values: Mapping[str, Value]) -> bool:
        """Whether the knob is asked, given the values of those before it."""
        return all(key in values and values[key] in wanted for key, wanted in self.when.items())


class Space(Section):
    """A search space."""

    name: str
    """Name of the space."""
    groups: tuple[TaskGroup, ...] = ()
    """Task groups that it is made for; empty for all."""
    knobs: tuple[Knob, ...]
    """What is searched, in the order in which it is asked."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Config keys that every trial sets."""
    known: tuple[dict[str, Value], ...] = ()
    """Points known to be good, tried first; the paper's settings among them."""

    @model_validator(mode="after")
    def _check(self) -> Space:
        if not self.knobs:
            raise ValueError(f"space '{self.name}' has no knobs; give it at least one")
        seen: set[str] = set()
        for knob in self.knobs:
            if knob.key in seen:
                raise ValueError(f"two knobs are '{knob.key}'; join them")
            if missing := set(knob.when) - seen:
                raise ValueError(f"knob '{knob.key}' waits for '{missing.pop()}', which is no knob before it")
            seen.add(knob.key)
        for point in self.known:
            self.check_point(point)
        return self

    def check_point(self, point: Mapping[str, Value]) -> None:
        """Refuse a point that is not of the space: one value for each knob that is asked, and none besides.

        Raises:
            ValueError: It is not.
        """
        asked = [knob for knob in self.knobs if knob.asked(point)]
        for knob in asked:
            if knob.key not in point:
                raise ValueError(f"a point of '{self.name}' lacks '{knob.key}'; give it a value")
            if not knob.domain.has(point[knob.key]):
                raise ValueError(
                    f"a point of '{self.name}' has {knob.key}={point[knob.key]!r}, outside of its domain"
                )
        if extra := set(point) - {knob.key for knob in asked}:
            raise ValueError(f"a point of '{self.name}' has '{extra.pop()}', which is not asked there")

    def draw(self, pick: Callable[[Knob], Value]) -> dict[str, Value]:
        """Return a point, `pick` giving the value of each knob that is asked."""
        point: dict[str, Value] = {}
        for knob in self.knobs:
            if knob.asked(point):
                point[knob.key] = pick(knob)
        return point

    def settings(self, point: Mapping[str, Value]) -> dict[str, Any]:
        """Return the config keys that a point sets, `fixed` ones included."""
        found = dict(self.fixed)
        for knob in self.knobs:
            if knob.key in point:
                found |= knob.settings(point[knob.key])
        return found

    def apply(self, config: Config, point: Mapping[str, Value]) -> Config:
        """Return the config of a trial.

        Raises:
            ConfigError: A key is none of the config's, or a value cannot be used there.
        """
        return parse(
            [config.model_dump(), *(_nested(key, value) for key, value in self.settings(point).items())]
        )

    def digest(self) -> str:
        """Return the 12 hex digits that name the space by its content."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_space(space: Space, config: Config) -> None:
    """Refuse a space that does not fit a run config: every value that stands for a domain is tried.

    Raises:
        ConfigError: A knob's key is none of the config's, or a value cannot be used there.
    """
    for knob in space.knobs:
        for value in knob.domain.ends():
            for key, setting in knob.settings(value).items():
                try:
                    parse([config.model_dump(), _nested(key, setting)])
                except ConfigError as error:
                    raise ConfigError(
                        f"space '{space.name}', knob '{knob.key}' at {value!r}: {error}"
                    ) from None
    for point in space.known:
        space.apply(config, point)


def load_space(name: str, known: Iterable[str]) -> Space:
    """Return a space of this package by its name, or that of a user's file.

    Args:
        name: Name of a module of `tune_spaces`, or path of a .yaml or .py file.
        known: Names of the package's own.

    Raises:
        ConfigError: There is none, or the file holds no space.
    """
    from attempt_ray.errors import unknown_name

    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path)
    if path.suffix == ".py":
        return _from_python(path)
    known = tuple(known)
    if name not in known:
        raise ConfigError(unknown_name("search space or file", name, known))
    module = importlib.import_module(f"tune_spaces.{name}")
    space: Space = module.SPACE
    return space


def _from_yaml(path: Path) -> Space:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read search space {path}: {error.strerror}; give an existing file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return Space.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from None


def _from_python(path: Path) -> Space:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None or not path.is_file():
        raise ConfigError(f"cannot read search space {path}; give an existing file")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from None
    except Exception as error:  # noqa: BLE001 - the user's own code
        raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}") from None
    space = getattr(module, "SPACE", None)
    if not isinstance(space, Space):
        raise ConfigError(f"{path} has no SPACE; give it one: SPACE = Space(name=..., knobs=(...))")
    return space


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    words = first["msg"].removeprefix("Value error, ")
    return f"{place}: {words}" if place else words


def _nested(key: str, value: Any) -> dict[str, Any]:
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)
