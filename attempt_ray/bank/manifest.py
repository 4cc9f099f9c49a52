"""What a version says about itself: facts from the run that made it, and the tensors and files it consists of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from attempt_ray.bank.names import Kind, Reference, check_name
from attempt_ray.config import Section
from attempt_ray.errors import BackboneError, BankError

SCHEMA = 1
DTYPE = "float32"
"""Prompts and G are trained, kept and served in single precision (docs/architecture.md)."""
MAX_VALUES = 2**28
"""Most numbers in one version (1 GiB); the largest real one, G for T5-11B, holds under a million."""

Arrays = Mapping[str, np.ndarray[Any, Any]]


def _pinned(text: str) -> str:
    if Reference.parse(text).number is None:
        raise ValueError(f"got '{text}'; wanted a reference with its number, such as source/mnli@v1")
    return text


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, AfterValidator(check_name)]
Pinned = Annotated[str, AfterValidator(_pinned)]


class BackboneRecord(Section):
    """The frozen language model that a version was trained with and works with."""

    name: str
    """Hub id or directory."""
    revision: str | None = None
    """Hub revision."""
    weights_sha256: Sha256
    """Digest of the weights."""
    tokenizer_sha256: Sha256
    """Digest of the tokenizer."""
    width: int = Field(ge=1)
    """Model width d."""


class TensorRecord(Section):
    """Shape and type of one tensor."""

    shape: tuple[Annotated[int, Field(ge=1)], ...]
    """Sizes of its dimensions."""
    dtype: Literal["float32"]
    """Type of its numbers."""


class MetricRecord(Section):
    """One score of a version."""

    value: Annotated[float | None, BeforeValidator(_defined)]
    """Score in 0..100; None where it is undefined, as a correlation with a constant is."""
    n: int = Field(ge=0)
    """Rows that were scored."""
    split: str
    """Split they came from: train, dev or test."""


class MixtureRecord(Section):
    """How a target prompt is mixed with sources (paper section 3.2)."""

    sources: tuple[Pinned, ...]
    """Source prompts, in the order of the mixing weights."""
    attention: Pinned | None = None
    """Module G; None for constant weights."""
    divisor: float = Field(gt=0, allow_inf_nan=False)
    """Scores are divided by it before the softmax (paper: d * e^K)."""
    pooling: Literal["masked", "authors"]
    """Max-pool over real tokens only, or over the padded width."""
    authors_width: int = Field(ge=1)
    """Padded width of `pooling: authors`, in tokens."""
    weights: Literal["learned", "uniform", "uniform_sources"]
    """Where mixing weights come from."""
    target: Literal["trained", "none"]
    """Whether the target prompt takes part."""


class ImportRecord(Section):
    """Where an imported version came from."""

    reference: Pinned
    """What it was called there."""
    manifest_sha256: Sha256
    """Digest of the manifest it had there."""


class Facts(Section):
    """What the run that made a version knows about it."""

    backbone: BackboneRecord
    """The language model it belongs to."""
    tasks: tuple[str, ...]
    """Tasks it was trained on."""
    config_digest: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    """Digest of the run (`Config.digest`)."""
    data_sha256: dict[str, Sha256] = Field(default_factory=dict)
    """Digest of each task's rows."""
    metrics: dict[str, MetricRecord] = Field(default_factory=dict)
    """Scores by metric; with several tasks or splits, by ``task/metric`` or ``split/task/metric``."""
    parents: tuple[Pinned, ...] = ()
    """Versions it started from."""
    mixture: MixtureRecord | None = None
    """How it is mixed with sources; None for a prompt that is used alone."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """Anything else worth keeping, such as the config; plain JSON."""


class Manifest(Facts):
    """Everything written in ``manifest.json``."""

    model_config = ConfigDict(populate_by_name=True)

    schema_number: int = Field(default=SCHEMA, alias="schema")
    """Layout of the version."""
    kind: Kind
    """Source prompt, target prompt or module G."""
    name: Name
    """Its name in the bank."""
    number: int = Field(ge=1, le=999_999_999)
    """Its number under that name."""
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    """When it was first published, UTC."""
    tensors: dict[str, TensorRecord]
    """What ``tensors.safetensors`` holds."""
    files: dict[Name, Sha256]
    """Digest of every other file of the version."""
    imported: ImportRecord | None = None
    """Set by `Bank.import_`."""

    @property
    def reference(self) -> str:
        """The text that means this version."""
        return f"{self.kind}/{self.name}@v{self.number}"

    def check_backbone(self, backbone: BackboneRecord) -> None:
        """Check that the version was made for `backbone`; its name may differ, its content may not.

        Raises:
            BackboneError: Width, weights or tokenizer differ.
        """
        for field in ("width", "weights_sha256", "tokenizer_sha256"):
            made_for, got = getattr(self.backbone, field), getattr(backbone, field)
            if made_for != got:
                raise BackboneError(
                    f"{self.reference} was made for backbone '{self.backbone.name}' ({field} {made_for}); got"
                    f" '{backbone.name}' ({field} {got}); use that backbone, or train {self.kind} '{self.name}' anew"
                )

    def to_json(self) -> bytes:
        """Return the content of ``manifest.json``.

        Raises:
            BankError: The recipe holds what JSON cannot.
        """
        return encode_json(self.model_dump(by_alias=True))

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read the content of ``manifest.json``.

        Raises:
            BankError: It is not a manifest, or one of a newer layout.
        """
        content = decode_json(data)
        if (
            isinstance(content, dict)
            and isinstance(content.get("schema"), int)
            and content["schema"] > SCHEMA
        ):
            raise BankError(
                f"its schema is {content['schema']}, this release reads up to {SCHEMA}; upgrade attempt-ray"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            raise BankError(f"{'.'.join(map(str, problem['loc'])) or 'manifest'}: {problem['msg']}") from None


def check_tensors(kind: Kind, tensors: Arrays, *, width: int) -> None:
    """Check names, shapes, type and finiteness of a version's tensors.

    Prompts are ``prompt`` [P, H], with ``shared_PH`` [P, H], ``rows_P`` [P] and ``columns_H`` [H] where it is their product,
    as a source stage of MPT leaves it; G is ``down.weight`` [R, H], ``up.weight`` [H, R], ``norm.weight`` [H],
    ``norm.bias`` [H] and, where inputs are centred, ``center_H`` [H].

    Raises:
        BankError: Something differs, with its name.
    """
    if kind == "attention":
        down = tensors.get("down.weight")
        bottleneck = down.shape[0] if down is not None and down.ndim == 2 else None
        wanted = {
            "down.weight": (bottleneck, width),
            "up.weight": (width, bottleneck),
            "norm.weight": (width,),
            "norm.bias": (width,),
        } | ({"center_H": (width,)} if "center_H" in tensors else {})
    else:
        prompt = tensors.get("prompt")
        length = prompt.shape[0] if prompt is not None and prompt.ndim == 2 else None
        wanted = {"prompt": (length, width)}
        if "shared_PH" in tensors:
            wanted |= {"shared_PH": (length, width), "rows_P": (length,), "columns_H": (width,)}
    if set(tensors) != set(wanted):
        raise BankError(
            f"got tensors {', '.join(sorted(map(ascii, tensors)))}; {kind} wants {', '.join(sorted(wanted))}"
        )
    for name, array in tensors.items():
        if array.shape != wanted[name] or array.size == 0:
            sizes = ", ".join("any" if size is None else str(size) for size in wanted[name])
            raise BankError(
                f"tensor '{name}' is {list(array.shape)}; wanted [{sizes}] for a backbone of width {width}"
            )
        if array.dtype != DTYPE:
            raise BankError(f"tensor '{name}' is {array.dtype}; wanted {DTYPE}: convert it first")
        if not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise BankError(
                f"tensor '{name}' has {bad} of {array.size} values NaN or infinite; publish a finite state"
            )
    if sum(array.size for array in tensors.values()) > MAX_VALUES:
        raise BankError(
            f"the tensors hold more than {MAX_VALUES:,} numbers; publish a shorter prompt or a smaller G"
        )


def encode_json(content: Any) -> bytes:
    """Return JSON with sorted keys: equal contents give equal bytes.

    Raises:
        BankError: Something in it is no plain JSON, such as NaN.
    """
    try:
        text = json.dumps(content, sort_keys=True, indent=2, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise BankError(f"facts must be plain JSON: {error}; drop or convert what is not") from None
    return (text + "\n").encode()


def decode_json(data: bytes) -> Any:
    """Read JSON, refusing what readers may understand differently: repeated keys, NaN, bytes that are not UTF-8.

    Raises:
        BankError: It is not such JSON.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BankError(f"not JSON: {ascii(str(error))[1:-1][:200]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is repeated")
    return content


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
