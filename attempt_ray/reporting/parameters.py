"""The paper's parameter accounting (Table 2, section 6.2) from a backbone's shape alone: no weights are loaded.

LoRA, MPT and DePT, which came later, are counted with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attempt_ray import __file__ as _package_file
from attempt_ray.config import AdapterConfig, DeptConfig, LoraConfig
from attempt_ray.errors import ConfigError, unknown_name
from attempt_ray.reporting import markdown

_SHIPPED = Path(_package_file).parent / "backbones"
_POSITION_BUCKETS = 32  # T5's relative position bias, one table in the encoder and one in the decoder


@dataclass(frozen=True, kw_only=True)
class BackboneShape:
    """What decides the number of parameters of a T5-family encoder-decoder."""

    name: str
    width: int
    """d."""
    head_width: int
    heads: int
    feed_forward: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int = 32_128
    """Rows of the embedding matrix as published."""
    tokens: int = 32_100
    """Rows that the authors' fine-tuning keeps: it cuts the matrix to the tokenizer's length."""
    gated: bool = False
    """Gated feed-forward, two input matrices (T5 v1.1, Flan, mT5)."""
    tied: bool = True
    """Output layer shares the embedding matrix (T5 v1.0)."""
    dropout: float = 0.1
    """The model's own while it trains."""

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_width

    @property
    def norms(self) -> int:
        """Number of RMS norms: one before each block and one after each stack."""
        return 2 * self.encoder_layers + 1 + 3 * self.decoder_layers + 1

    def parameters(self, *, vocabulary: int) -> int:
        """Return every weight of the model with an embedding matrix of `vocabulary` rows."""
        d = self.width
        attention = 4 * d * self.inner
        feed_forward = (3 if self.gated else 2) * d * self.feed_forward
        encoder = self.encoder_layers * (attention + feed_forward)
        decoder = self.decoder_layers * (2 * attention + feed_forward)
        embeddings = vocabulary * d * (1 if self.tied else 2)
        return embeddings + encoder + decoder + self.norms * d + 2 * _POSITION_BUCKETS * self.heads

    @property
    def adapter_width(self) -> int:
        """Bottleneck of the adapters, d / 32 as in the authors' configs."""
        return max(1, self.width // AdapterConfig().reduction)

    @property
    def adapter(self) -> int:
        """Houlsby adapters after self-attention and feed-forward in both stacks, and all RMS-norm gains."""
        bottleneck = self.adapter_width
        one = 2 * self.width * bottleneck + bottleneck + self.width
        return 2 * (self.encoder_layers + self.decoder_layers) * one + self.norms * self.width

    @property
    def bitfit(self) -> int:
        """Biases added to every linear map, every RMS norm and the output layer (T5 itself has none)."""
        attention = 3 * self.inner + self.width
        feed_forward = (2 if self.gated else 1) * self.feed_forward + self.width
        encoder = self.encoder_layers * (attention + feed_forward)
        decoder = self.decoder_layers * (2 * attention + feed_forward)
        return encoder + decoder + self.norms * self.width + self.vocabulary

    def lora(self, rank: int) -> int:
        """Updates of that rank of the query and value matrices of every attention."""
        attentions = self.encoder_layers + 2 * self.decoder_layers
        return 2 * attentions * rank * (self.width + self.inner)


def _t5(
    name: str, *, layers: int, width: int, feed_forward: int, heads: int, head_width: int = 64
) -> BackboneShape:
    return BackboneShape(
        name=name,
        width=width,
        head_width=head_width,
        heads=heads,
        feed_forward=feed_forward,
        encoder_layers=layers,
        decoder_layers=layers,
    )


BACKBONES: Mapping[str, BackboneShape] = {
    shape.name: shape
    for shape in (
        _t5("t5-small", layers=6, width=512, feed_forward=2_048, heads=8),
        _t5("t5-base", layers=12, width=768, feed_forward=3_072, heads=12),
        _t5("t5-large", layers=24, width=1_024, feed_forward=4_096, heads=16),
        _t5("t5-3b", layers=24, width=1_024, feed_forward=16_384, heads=32, head_width=128),
        _t5("t5-11b", layers=24, width=1_024, feed_forward=65_536, heads=128, head_width=128),
    )
}
"""T5 v1.0 (Raffel et al. 2020, section 3.7; the hub's ``config.json`` files)."""

_PRINTED = {  # Asai et al. 2022, Table 2: T5-base, m = r = 100, N = 4
    "FT": "220M",
    "Adapter": "1.8M",
    "BitFit": "280k",
    "PT": "77k",
    "SPoT": "77k",
    "ATTEMPT-ST": "232k",
    "FT-MT": "55M",
    "Adapter-MT": "450k",
    "SPoT-MT": "19k",
    "ATTEMPT-MT": "134k",
}


@dataclass(frozen=True, kw_only=True)
class Count:
    """Trainable parameters of one method, counted per task."""

    method: str
    formula: str
    per_task: float
    printed: str | None
    """What the paper prints for it; None for shapes and settings that it does not print."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class BackboneCounts:
    """The counts of every method on one backbone."""

    shape: BackboneShape
    counts: tuple[Count, ...]

    def per_task(self, method: str) -> float:
        """Return the trainable parameters per task of a method, such as ``ATTEMPT-ST``."""
        return next(count.per_task for count in self.counts if count.method == method)


@dataclass(frozen=True, kw_only=True)
class ParameterTable:
    """The paper's parameter table for one or several backbones."""

    prompt_length: int
    """m."""
    bottleneck: int
    """r."""
    num_tasks: int
    """N, tasks that share what the -MT rows share."""
    backbones: tuple[BackboneCounts, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the table, JSON-able."""
        return {
            "prompt_length": self.prompt_length,
            "bottleneck": self.bottleneck,
            "num_tasks": self.num_tasks,
            "backbones": {
                entry.shape.name: {
                    "width": entry.shape.width,
                    "total": entry.shape.parameters(vocabulary=entry.shape.vocabulary),
                    "methods": {
                        count.method: {
                            "per_task": count.per_task,
                            "formula": count.formula,
                            "paper_prints": count.printed,
                            "note": count.note,
                        }
                        for count in entry.counts
                    },
                }
                for entry in self.backbones
            },
        }


def parameter_table(
    backbone: str | None, *, prompt_length: int = 100, bottleneck: int = 100, num_tasks: int = 4
) -> ParameterTable:
    """Return the trainable parameters per task of every method the paper compares, and of those that came later.

    LoRA and DePT are counted at the defaults of `LoraConfig` and `DeptConfig`.

    Args:
        backbone: ``t5-small`` to ``t5-11b`` (an organisation before it is allowed), a shipped one, a directory with a
            ``config.json`` of the T5 family, or None for T5 small to 11B.
        prompt_length: Prompt positions m (paper: 100).
        bottleneck: Width r of G's bottleneck (paper: 100).
        num_tasks: Tasks N that share a model, an adapter, a prompt or G in the -MT rows (paper: 4).

    Raises:
        ConfigError: The backbone is not known, or a number is below 1.
    """
    for name, value in (
        ("prompt_length", prompt_length),
        ("bottleneck", bottleneck),
        ("num_tasks", num_tasks),
    ):
        if value < 1:
            raise ConfigError(f"{name}: got {value}; wanted 1 or more")
    shapes = tuple(BACKBONES.values()) if backbone is None else (backbone_shape(backbone),)
    return ParameterTable(
        prompt_length=prompt_length,
        bottleneck=bottleneck,
        num_tasks=num_tasks,
        backbones=tuple(
            BackboneCounts(shape=shape, counts=_counts(shape, m=prompt_length, r=bottleneck, tasks=num_tasks))
            for shape in shapes
        ),
    )


def render_markdown(table: ParameterTable) -> str:
    """Return the table with one section per backbone."""
    m, r, tasks = table.prompt_length, table.bottleneck, table.num_tasks
    parts = [
        f"Trainable parameters per task; m = {m} prompt positions, r = {r}, N = {tasks} tasks in the -MT rows."
    ]
    for entry in table.backbones:
        shape = entry.shape
        total = shape.parameters(vocabulary=shape.vocabulary)
        rows = [
            [
                count.method,
                count.formula,
                f"{count.per_task:,.0f}",
                f"{count.per_task / total:.3%}",
                count.printed or "-",
                count.note,
            ]
            for count in entry.counts
        ]
        header = ["method", "formula", "per task", "of the backbone", "paper", "note"]
        parts.append(f"## {shape.name}: {total:,} parameters, d = {shape.width:,}")
        parts.append(markdown.table(header, rows, left=2))
    return "\n\n".join(parts) + "\n"


def _counts(shape: BackboneShape, *, m: int, r: int, tasks: int) -> tuple[Count, ...]:
    d = shape.width
    prompt = m * d
    attention = 2 * d * r + 2 * d
    whole = shape.parameters(vocabulary=shape.tokens)
    as_paper = shape.name == "t5-base" and (m, r) == (100, 100)
    found: list[Count] = []

    def add(method: str, formula: str, per_task: float, note: str = "") -> None:
        multi = method.endswith("-MT")
        printed = _PRINTED.get(method) if as_paper and (not multi or tasks == 4) else None
        if as_paper and method == "ATTEMPT-MT" and tasks == 8:
            printed = "96k"
            note = "v2 of the paper"
        found.append(Count(method=method, formula=formula, per_task=per_task, printed=printed, note=note))

    cut = shape.tokens != shape.vocabulary
    add("FT", "all weights", whole, f"embeddings cut to the tokenizer's {shape.tokens:,} rows" if cut else "")
    add("Adapter", f"adapters of width {shape.adapter_width} + norm gains", shape.adapter)
    add("BitFit", "added biases", shape.bitfit, f"{shape.vocabulary:,} of them in the output layer")
    lora, dept = LoraConfig(), DeptConfig()
    add("LoRA", f"2 r (d + inner) per attention, r = {lora.rank}", shape.lora(lora.rank), "Hu et al. 2022")
    add("PT", "m d", prompt)
    add("SPoT", "m d", prompt)
    add("ATTEMPT-ST", "m d + 2 d r + 2 d", prompt + attention)
    add("MPT", "m d + m + d", prompt + m + d, "Wang et al. 2023")
    add(
        "DePT",
        f"{dept.length} d + r ({dept.positions} + d), r = {dept.rank}",
        dept.length * d + dept.rank * (dept.positions + d),
        "Shi and Lipani 2024",
    )
    add("FT-MT", "FT / N", whole / tasks)
    add("Adapter-MT", "Adapter / N", shape.adapter / tasks)
    add("SPoT-MT", "m d / N", prompt / tasks)
    add("MPT-MT", "m d / N + m + d", prompt / tasks + m + d, "Wang et al. 2023")
    twice = "the paper counts the prompt twice: m d + ATTEMPT-ST / 4" if as_paper and tasks == 4 else ""
    add("ATTEMPT-MT", "m d + (2 d r + 2 d) / N", prompt + attention / tasks, twice)
    return tuple(found)


def backbone_shape(backbone: str) -> BackboneShape:
    """Return a shape by name.

    Args:
        backbone: ``t5-small`` to ``t5-11b`` (an organisation before it is allowed), a shipped one such as ``nano``, or a
            directory with a ``config.json`` of the T5 family.

    Raises:
        ConfigError: The backbone is not known, or the file does not describe one.
    """
    shipped = shipped_backbones()
    directory = _SHIPPED / backbone if backbone in shipped else Path(backbone)
    if (directory / "config.json").is_file():
        return _read_shape(backbone, directory / "config.json")
    name = backbone.removeprefix("google-t5/").removeprefix("google/")
    if name not in BACKBONES:
        raise ConfigError(unknown_name("backbone", backbone, [*BACKBONES, *shipped]))
    return BACKBONES[name]


def shipped_backbones() -> list[str]:
    """Return the names of the backbones in the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob("*/config.json"))


def _read_shape(name: str, path: Path) -> BackboneShape:
    try:
        content = json.loads(path.read_bytes())
        layers = int(content["num_layers"])
        decoder_layers = content.get("num_decoder_layers")
        return BackboneShape(
            name=name,
            width=int(content["d_model"]),
            head_width=int(content["d_kv"]),
            heads=int(content["num_heads"]),
            feed_forward=int(content["d_ff"]),
            encoder_layers=layers,
            decoder_layers=layers if decoder_layers is None else int(decoder_layers),
            vocabulary=int(content["vocab_size"]),
            tokens=int(content["vocab_size"]),
            gated=str(content.get("feed_forward_proj", "relu")).startswith("gated-"),
            tied=bool(content.get("tie_word_embeddings", True)),
            dropout=float(content.get("dropout_rate", 0.1)),
        )
    except OSError as error:
        raise ConfigError(f"backbone '{name}': cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"backbone '{name}': {path} does not describe a T5-family model ({' '.join(str(error).split())}); "
            "give one with d_model, d_kv, d_ff, num_heads, num_layers and vocab_size"
        ) from None
