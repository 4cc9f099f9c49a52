"""Everything a run reads, gathered and checked before its first step: backbone, rows, prompts of the bank.

Whatever a user can get wrong is found here. The content of it all, with the config, names the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from attempt_ray.bank.manifest import BackboneRecord
from attempt_ray.bank.names import check_name
from attempt_ray.bank.store import Bank
from attempt_ray.bank.versions import Loaded
from attempt_ray.config import METHODS, Config
from attempt_ray.data.batching import evaluation_batches
from attempt_ray.data.encoding import (
    EncodedSplit,
    encode_examples,
    encode_splits,
    template_options,
)
from attempt_ray.data.origins import load_split
from attempt_ray.data.splits import plan_splits, published_splits
from attempt_ray.errors import ConfigError, DataError, unknown_name
from attempt_ray.model.attention import pool_tokens
from attempt_ray.model.backbone import Backbone, load_backbone
from attempt_ray.model.methods import Method, build_method, initial_prompts
from attempt_ray.model.precision import Choice, choose_precision
from attempt_ray.model.published import backbone_record
from attempt_ray.model.soft_prompt import from_average, from_prompt
from attempt_ray.tasks import all_tasks
from attempt_ray.tasks.spec import Task

PREFERRED_SOURCE = {"qa": "squad", "classification": "mnli", "regression": "mnli"}
"""Source prompt a target prompt of ATTEMPT starts from, by kind of task (paper, section 4.3)."""

CENTER_ROWS = 512
"""Training rows of each task behind `attention.center`."""

_loaded: dict[str, tuple[Backbone, str]] = {}  # the last backbone, for the next run of this process


@dataclass(frozen=True, eq=False, kw_only=True)
class Ingredients:
    """What a run is made of."""

    config: Config
    """What to do with it; `backbone.dtype` is settled."""
    precision: Choice
    """Type of the backbone's weights, and why."""
    backbone: Backbone
    """The language model."""
    fingerprint: str
    """SHA-256 of its weights before the run."""
    tasks: tuple[Task, ...]
    """Tasks in the run's order."""
    train: tuple[EncodedSplit, ...]
    """Training rows of every task; empty where nothing is trained."""
    dev: tuple[EncodedSplit, ...]
    """Dev rows of every task; empty where nothing is selected."""
    test: tuple[EncodedSplit, ...]
    """Test rows of every task."""
    sources: dict[str, Loaded]
    """Source prompts by task: those of the mixture, in the order of the candidates, or those that teach MPT."""
    prior: Loaded | None
    """Version of G to start from."""
    initial: tuple[Loaded, ...]
    """Prompts that `prompt.init_from` names."""
    shared: Loaded | None = None
    """What `mpt.source` names."""

    @property
    def parents(self) -> tuple[str, ...]:
        """References of every version of the bank that the run starts from, each once."""
        one = [loaded for loaded in (self.prior, self.shared) if loaded is not None]
        found = [*self.sources.values(), *self.initial, *one]
        return tuple(dict.fromkeys(loaded.version.reference for loaded in found))

    @property
    def data_sha256(self) -> dict[str, str]:
        """Digest of every task's rows, all splits together."""
        digests = {}
        for task in self.tasks:
            splits = [split for split in (*self.train, *self.dev, *self.test) if split.task.name == task.name]
            content = json.dumps([split.digest for split in splits])
            digests[task.name] = hashlib.sha256(content.encode()).hexdigest()
        return digests

    def digest(self) -> str:
        """Return the digest that names the run: equal digests compute equal results."""
        identity = self.backbone.identity
        facts = {"backbone": identity.weights_sha256, "tokenizer": identity.tokenizer_sha256}
        facts |= {f"data/{name}": digest for name, digest in self.data_sha256.items()}
        facts |= {f"source/{name}": loaded.sha256 for name, loaded in self.sources.items()}
        facts |= {f"initial/{number}": loaded.sha256 for number, loaded in enumerate(self.initial)}
        if self.prior is not None:
            facts["prior"] = self.prior.sha256
        if self.shared is not None:
            facts["shared"] = self.shared.sha256
        if not self.train:
            facts["training"] = "none"
        return self.config.digest(**facts)

    def backbone_record(self) -> BackboneRecord:
        """Return what the bank remembers of the backbone."""
        return backbone_record(self.backbone)

    def build(self) -> Method:
        """Return the method at its starting values.

        Raises:
            ConfigError: The config asks for something that cannot be built, such as another prompt length.
            BackboneError: A prompt has another width than the backbone.
        """
        return build_method(
            self.config,
            self.backbone,
            tasks=self.tasks,
            sources={name: _prompt(loaded) for name, loaded in self.sources.items()},
            prior=None if self.prior is None else _tensors(self.prior),
            initial=self._initial(),
            center=self._center(),
            shared=None if self.shared is None else _tensors(self.shared),
        )

    def _initial(self) -> Tensor | None:
        """Return the prompt to start from, [P, H] or [N, P, H]; None leaves it to `build_method`.

        Targets of ATTEMPT start from a source prompt, as in the paper: with `prompt.init` left at `vocab`, from
        MNLI's (SQuAD's for question answering) where the mixture holds it, unless `attention.start` says otherwise.
        """
        wanted, width, length = self.config.prompt, self.backbone.width, self.config.prompt_length
        if not self.config.facts.prompted:
            return None
        if wanted.init == "prompt":
            return from_prompt(_prompt(self.initial[0]), length, width=width)
        if wanted.init == "average":
            return from_average(
                [_prompt(loaded) for loaded in self.initial],
                length,
                width=width,
                weights=wanted.init_weights,
            )
        start = self.config.attention.start if self.config.method == "attempt" else "vocab"
        if wanted.init != "vocab" or start == "vocab":
            return None
        if start == "normal":
            noise = self.config.updated(prompt={"init": "normal"})
            return initial_prompts(noise, self.backbone, tasks=self.tasks)
        return torch.stack([self._starting_prompt(task) for task in self.tasks])

    def _center(self) -> Tensor | None:
        """Return the mean pooled input [H] over the tasks' training rows, each task counting alike."""
        wanted = self.config.attention
        fresh = self.config.method == "attempt" and wanted.weights == "learned" and self.prior is None
        if not (fresh and wanted.center and self.train):
            return None
        return torch.stack([self._mean_pooled(split) for split in self.train]).mean(dim=0)

    def _mean_pooled(self, split: EncodedSplit) -> Tensor:
        pooled = []
        for drawn in evaluation_batches(split, rows=32, task_index=0, first=CENTER_ROWS):
            batch = drawn.to(self.backbone.device)
            pooled.append(pool_tokens(self.backbone.embed(batch.input_ids_BT), batch.mask_BT))
        return torch.cat(pooled).mean(dim=0).cpu()

    def _starting_prompt(self, task: Task) -> Tensor:
        source = self.sources.get(PREFERRED_SOURCE[task.kind])
        if source is None:
            return initial_prompts(self.config, self.backbone, tasks=[task])[0]
        return from_prompt(_prompt(source), self.config.prompt_length, width=self.backbone.width)


def gather(config: Config, *, rows: Literal["all", "test"] = "all") -> Ingredients:
    """Load and check everything a run reads.

    Args:
        config: The run.
        rows: `test` leaves training and dev rows alone, which then need not exist.

    Raises:
        ConfigError: The config's parts do not fit together, or a name is unknown.
        BackboneError: The backbone cannot be loaded, or a prompt was made for another one.
        BankError: A prompt is not in the bank, or not whole.
        DataError: Rows are missing or cannot be used.
        StorageError: The disk refused.
    """
    _check(config)
    precision = choose_precision(
        config.backbone.dtype, config.device, weights_train=config.facts.backbone != "frozen"
    )
    # Named in the config, so that a run that went on elsewhere would not go on in another type.
    settled = config.backbone.model_copy(update={"dtype": precision.dtype})
    config = config.model_copy(update={"backbone": settled})
    known = all_tasks(config.data.user_tasks)
    for name in config.tasks:
        if name not in known:
            raise ConfigError(unknown_name("task", name, known))
    tasks = tuple(known[name] for name in config.tasks)
    bank = Bank(config.bank)
    mixes, starts = config.method == "attempt", config.facts.prompted
    sources = {name: bank.load(f"source/{name}") for name in _read_sources(config)}
    learned = mixes and config.attention.weights == "learned"
    prior = bank.load(config.attention.prior) if learned and config.attention.prior else None
    initial = tuple(bank.load(text) for text in config.prompt.init_from) if starts and _copies(config) else ()
    shared = bank.load(config.mpt.source) if config.method == "mpt" and config.mpt.source else None
    _check_kinds(prior, initial)
    backbone, fingerprint = _borrowed(config)
    for loaded in (*sources.values(), *initial, *(one for one in (prior, shared) if one is not None)):
        loaded.manifest.check_backbone(backbone_record(backbone))
    if rows == "test":
        encoded = None
        test = tuple(_test_rows(task, config, backbone) for task in tasks)
    else:
        digest = backbone.identity.tokenizer_sha256
        encoded = [
            encode_splits(task, config.data, backbone.tokenizer, tokenizer_digest=digest) for task in tasks
        ]
        test = tuple(splits.test for splits in encoded)
    return Ingredients(
        config=config,
        precision=precision,
        backbone=backbone,
        fingerprint=fingerprint,
        tasks=tasks,
        train=tuple(splits.train for splits in encoded or ()),
        dev=tuple(splits.dev for splits in encoded or ()),
        test=test,
        sources=sources,
        prior=prior,
        initial=initial,
        shared=shared,
    )


def forget_backbone() -> None:
    """Drop the backbone that is kept for the next run of this process."""
    _loaded.clear()


def _check(config: Config) -> None:
    """Refuse a config whose parts do not fit together."""
    if not config.tasks:
        raise ConfigError("tasks is empty; name at least one, such as tasks=[rte]")
    if len(set(config.tasks)) != len(config.tasks):
        raise ConfigError(f"tasks names one twice: {', '.join(config.tasks)}; name each once")
    for name in config.tasks:
        check_name(name)
    if config.job not in config.facts.jobs:
        able = [name for name, facts in METHODS.items() if config.job in facts.jobs]
        raise ConfigError(
            f"job '{config.job}' got method '{config.method}'; set method={' or method='.join(able)}"
        )
    if config.job == "source":
        _check_source(config)
    if config.job == "prior":
        _check_prior(config)
    if config.prompt.init == "prompt" and len(config.prompt.init_from) != 1:
        raise ConfigError(
            f"prompt.init 'prompt' got {len(config.prompt.init_from)} references; name one in prompt.init_from, or set "
            "prompt.init=average"
        )
    try:
        device = torch.device(config.device)
    except RuntimeError:
        raise ConfigError(
            f"device '{config.device}' is no torch device; set device=cpu or device=cuda"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{config.device}' got no GPU that torch can use; set device=cpu")


def _check_source(config: Config) -> None:
    if config.method == "prompt_tuning" and not config.prompt.shared and len(config.tasks) != 1:
        raise ConfigError(
            f"job 'source' got {len(config.tasks)} tasks; give each source task a run of its own, or set "
            "prompt.shared=true for one prompt of them all"
        )
    if len(config.tasks) > 1 and config.training.selection == "per_task":
        raise ConfigError("job 'source' publishes one prompt for all its tasks; set training.selection=mean")


def _read_sources(config: Config) -> tuple[str, ...]:
    """Return the tasks whose source prompts the run reads: those it mixes, or those that teach it."""
    if config.method == "attempt":
        return config.attention.sources
    return config.tasks if config.method == "mpt" and config.job == "source" and config.mpt.distill else ()


def _check_prior(config: Config) -> None:
    if config.attention.weights != "learned" or config.attention.frozen:
        raise ConfigError(
            "job 'prior' trains G, and the config keeps it constant; set attention.weights=learned and "
            "attention.frozen=false"
        )
    if config.training.selection == "per_task":
        raise ConfigError("job 'prior' publishes one G for all its tasks; set training.selection=mean")


def _copies(config: Config) -> bool:
    return config.prompt.init in ("prompt", "average")


def _check_kinds(prior: Loaded | None, initial: Sequence[Loaded]) -> None:
    if prior is not None and prior.version.kind != "attention":
        raise ConfigError(
            f"attention.prior got {prior.version}, a prompt; name a G, such as attention/prior-text"
        )
    for loaded in initial:
        if loaded.version.kind == "attention":
            raise ConfigError(
                f"prompt.init_from got {loaded.version}, a G; name prompts, such as source/mnli"
            )


def _borrowed(config: Config) -> tuple[Backbone, str]:
    """Return the backbone and the hash of its weights; a frozen one is kept for the next run of this process."""
    key = json.dumps([config.backbone.model_dump(), config.device, _stamp(config.backbone.name)])
    if config.facts.backbone != "frozen":
        _loaded.clear()  # it will be changed, so it is for this run alone
        return _fresh(config)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _fresh(config)
    return _loaded[key]


def _fresh(config: Config) -> tuple[Backbone, str]:
    backbone = load_backbone(config.backbone, config.device)
    # In float32 the identity already holds this hash; it costs a second per gigabyte.
    whole = config.backbone.dtype == "float32"
    return backbone, backbone.identity.weights_sha256 if whole else backbone.fingerprint()


def _stamp(name: str) -> list[tuple[str, int, int]]:
    """Return what tells that the files of a local backbone changed."""
    directory = Path(name).expanduser()
    if not directory.is_dir():
        return []
    facts = ((path, path.stat()) for path in sorted(directory.iterdir()) if path.is_file())
    return [(path.name, stat.st_mtime_ns, stat.st_size) for path, stat in facts]


def _test_rows(task: Task, config: Config, backbone: Backbone) -> EncodedSplit:
    """Encode the test rows of a task whose training rows need not exist."""
    data, options = config.data, template_options(config.data)
    published = {
        name: load_split(task, name, data) for name in published_splits(task, data) if name != "train"
    }
    # No rule takes test rows from train, so any count of training rows gives the same test rows.
    counts = {"train": 10, **{name: len(rows) for name, rows in published.items()}}
    part = plan_splits(task, data, counts=counts).test
    rows = published[part.split].select(part.rows.numpy())
    try:
        examples = [task.eval_example(row, options) for row in rows]
    except DataError as error:
        raise DataError(f"{error} (test rows)") from None
    return encode_examples(
        task, examples, backbone.tokenizer, split="test", max_source_tokens=data.max_source_tokens
    )


def _prompt(loaded: Loaded) -> Tensor:
    return _tensors(loaded)["prompt"]


def _tensors(loaded: Loaded) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in loaded.tensors.items()}
