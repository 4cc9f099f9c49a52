"""Every knob of a run, with its unit, its default and the source of that default.

Defaults are the paper's (Asai et al. 2022, arXiv 2205.11961), unless the docstring says otherwise;
the presets under ``attempt_ray/presets`` move them. A config is a tree of frozen pydantic sections that refuses
unknown keys. It is read from YAML layers and ``section.key=value`` settings, later ones winning.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from attempt_ray.errors import ConfigError, unknown_name

PRESETS = Path(__file__).parent / "presets"

Job = Literal["source", "prior", "target"]


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What others have to know of a method; how it learns is in `attempt_ray/model/methods`."""

    backbone: Literal["frozen", "extended", "trained"]
    """`frozen`: runs share it. `extended`: it gets parts that train, so a run has one of its own. `trained`: all of its
    weights move."""
    sections: tuple[str, ...] = ()
    """Sections of the config that it reads, of those that not every method does."""
    rates: tuple[str, ...] = ()
    """Learning rates of `training` that it reads, such as `prompt` for `prompt_learning_rate`."""
    served: bool = False
    """What it learns is a prompt of the bank, which a deployment can answer with."""
    jobs: tuple[Job, ...] = ("target",)
    """What it can be trained for."""

    @property
    def prompted(self) -> bool:
        """Whether inputs open with a soft prompt."""
        return self.backbone == "frozen"


METHODS: Mapping[str, MethodFacts] = {
    "finetune": MethodFacts(backbone="trained", rates=("backbone",)),
    "adapter": MethodFacts(backbone="extended", sections=("adapter",)),
    "bitfit": MethodFacts(backbone="extended", sections=("bitfit",)),
    "lora": MethodFacts(backbone="extended", sections=("lora",)),
    "prompt_tuning": MethodFacts(
        backbone="frozen", sections=("prompt",), rates=("prompt",), served=True, jobs=("source", "target")
    ),
    "attempt": MethodFacts(
        backbone="frozen",
        sections=("prompt", "attention"),
        rates=("prompt", "attention"),
        served=True,
        jobs=("prior", "target"),
    ),
    "mpt": MethodFacts(
        backbone="frozen",
        sections=("prompt", "mpt"),
        rates=("prompt",),
        served=True,
        jobs=("source", "target"),
    ),
    "dept": MethodFacts(backbone="frozen", sections=("prompt", "dept"), rates=("prompt",)),
}
"""Every method by name, which is that of its file in `attempt_ray/model/methods`."""

TaskGroup = Literal["GLUE", "SuperGLUE", "MultiRC", "MRQA", "Others", "sources", "user"]


class Section(BaseModel):
    """A frozen group of knobs that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Page = TypeVar("Page", bound=Section)


class BackboneConfig(Section):
    """The frozen language model."""

    name: str = "google-t5/t5-base"
    """`nano` (shipped), a local directory, or a hub id. Paper: T5-base v1.0 (section 4.3)."""
    revision: str | None = None
    """Hub revision (commit, tag or branch); None is the hub's default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights; `auto` is bfloat16 where the device has it natively. Authors' code: fp32."""
    forward: Literal["own", "transformers"] = "own"
    """Who computes a frozen backbone: our pass without needless work, or transformers; equal up to rounding."""
    recompute: bool = False
    """Keep each encoder layer's input alone and compute the layer again in the backward pass: less memory, more time."""
    attention: Literal["auto", "fused", "plain"] = "auto"
    """Kernel of attention: torch's fused one, plain products, or `auto`: fused, and on a GPU the fastest by shape."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Mode of torch.compile, for GPUs; the last two replay CUDA graphs. On a processor it is slower than `off`."""


class DataConfig(Section):
    """Where rows come from and how they become batches."""

    origin: Literal["embedded", "hub", "mirror", "files"] = "hub"
    """`embedded` (generated), `hub`, `mirror` (a directory in hub layout) or `files` (the user's own)."""
    root: str | None = None
    """Directory of the mirror, or of `<task>/<split>.(parquet|jsonl|csv)` files; needed by those two origins."""
    user_tasks: tuple[str, ...] = ()
    """YAML files that each describe a task of the user's own."""
    split_policy: Literal["paper", "native"] = "paper"
    """`paper` cuts dev and test as the paper's code does; `native` keeps the data set's own splits."""
    split_seed: int = 42
    """Seed of the permutation behind the paper's splits (authors' code: 42)."""
    label_words: Literal["digits", "words"] = "digits"
    """Class labels as class ids (paper) or as words."""
    legacy_winogrande: bool = False
    """Print option 1 twice, as the authors' released template does; for comparison with published numbers only."""
    single_gold: bool = False
    """Score QA against the first gold answer alone, as the paper does, not against all of them."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Most training rows kept, cut after the permutation; None keeps all. Paper: 100,000 for Yelp-2."""
    max_dev_rows: int | None = Field(default=None, ge=1)
    """Most dev rows scored during training; None scores all."""
    max_test_rows: int | None = Field(default=None, ge=1)
    """Most test rows scored; None scores all."""
    max_source_tokens: int | None = Field(default=None, ge=4)
    """Longest input, in tokens, prompt not counted; None takes each task's own (paper: 256, MultiRC 348, QA 512)."""
    batch_rows: int = Field(default=32, ge=1)
    """Rows per task and optimizer step (paper: 32)."""
    batch_tokens: int | None = Field(default=None, ge=64)
    """Input tokens per step, padding counted; when set, it replaces `batch_rows`."""
    mixing: Literal["concatenate", "temperature"] = "concatenate"
    """Mixed-task batches: uniform over the concatenated rows (paper), or tasks drawn by size ** (1 / temperature)."""
    mixing_temperature: float = Field(default=2.0, gt=0)
    """Temperature of `mixing: temperature`; 1 is proportional to size, large values are uniform over tasks."""
    cache_dir: str = "~/.cache/attempt-ray"
    """Where tokenised data is kept, keyed by content."""
    embedded_seed: int = 7
    """Seed of the generated embedded rows."""
    embedded_train_rows: int | None = Field(default=None, ge=1)
    """Training rows generated for each embedded task; None is the miniature's own size."""


class PromptConfig(Section):
    """The trainable soft prompt."""

    length: int = Field(default=100, ge=1)
    """Prompt positions m (paper: 100)."""
    shared: bool = False
    """Prompt tuning: one prompt for all tasks of a run, as the paper's SPoT-MT has it, not one for each."""
    init: Literal["vocab", "text", "labels", "prompt", "average", "normal"] = "vocab"
    """Initialiser: rows of the pretrained embedding matrix sampled from its top ids (paper), the embedded `init_text`,
    embedded label words, a prompt of the bank, a weighted average of such prompts, or N(0, init_std)."""
    init_text: str = ""
    """Text for `init: text`, repeated or cut to `length` tokens."""
    init_from: tuple[str, ...] = ()
    """Bank references for `init: prompt` (one) and `init: average` (one or more)."""
    init_weights: tuple[float, ...] = ()
    """Weights of `init: average`, one for each reference; empty is uniform."""
    init_vocab_top: int = Field(default=5000, ge=1)
    """`init: vocab` samples ids below this one (paper: 5,000)."""
    init_std: float = Field(default=1.0, gt=0)
    """Standard deviation of `init: normal` (the authors' released prompts are N(0, 1))."""


class AttentionConfig(Section):
    """The attention module G and the mixture (paper section 3.2, equations 1 to 4)."""

    sources: tuple[str, ...] = ("mnli", "sst2", "qnli", "qqp", "squad", "record")
    """Source tasks whose prompts are the frozen candidates, in order."""
    bottleneck: int = Field(default=100, ge=1)
    """Width r of the bottleneck (paper: 100)."""
    temperature: float | Literal["auto"] = 1.0
    """K: scores are divided by d * e^K (paper: 1). `auto` divides by d * mean std of the pooled sources / `auto_logit`."""
    auto_logit: float = Field(default=2.0, gt=0)
    """Largest logit that `temperature: auto` aims at."""
    pooling: Literal["masked", "authors"] = "masked"
    """Max-pool over real tokens only, or over the padded width as the authors' code does."""
    authors_width: int = Field(default=256, ge=1)
    """Padded width that `pooling: authors` reproduces, in tokens (authors' configs: 256)."""
    center: bool = False
    """Take the mean pooled training input off each pooled input before G. Maxima over tokens are alike whatever the
    input, and G, which sees little but their common part, gives all inputs the same weights (ours; not in the
    paper)."""
    train_norm: bool = True
    """Train LayerNorm's gain and bias (paper's parameter count; the authors' code freezes them)."""
    weights: Literal["learned", "uniform", "uniform_sources"] = "learned"
    """`learned` by G; `uniform` 1/(t+1) over sources and target (code); `uniform_sources` 1/t over sources (paper)."""
    start: Literal["source", "vocab", "normal"] = "source"
    """Where target prompts of `prompt.init: vocab` start: from the prompt of MNLI, of SQuAD for question answering (paper
    section 4.3), from vocabulary rows like prompt tuning's, or from N(0, prompt.init_std). The last leaves it to G to
    find the parent, since at the start an instance's prompt is little but the mixture of sources."""
    target: Literal["trained", "none"] = "trained"
    """`none` drops the target prompt: a mixture of sources without a residual."""
    frozen: bool = False
    """Keep G at its starting values and train the target prompt alone."""
    prior: str | None = None
    """Bank reference of a G to start from, such as `attention/prior-text`; None starts afresh."""

    @model_validator(mode="after")
    def _check_center(self) -> AttentionConfig:
        if self.center and self.pooling == "authors":
            raise ValueError("center is for pooling 'masked' alone; set attention.center=false")
        return self


class AdapterConfig(Section):
    """Adapters (Houlsby et al. 2019) as the authors of the paper place them: after self-attention and feed-forward."""

    reduction: int = Field(default=32, ge=1)
    """Bottleneck is the model width over this (authors' config: 32)."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate of adapters and norm gains (authors' config: 3e-4)."""


class BitFitConfig(Section):
    """Biases alone (Ben Zaken et al. 2022)."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate (authors' config: 3e-4)."""


class LoraConfig(Section):
    """Low-rank updates of the query and value matrices (Hu et al. 2022), through PEFT."""

    rank: int = Field(default=8, ge=1)
    """Rank r (Hu et al., appendix, RoBERTa base; PEFT's default). 884,736 numbers on T5-base; the 3.8M that later papers
    print are those of a rank of about 35."""
    alpha: int = Field(default=8, ge=1)
    """Updates are scaled by alpha / r (Hu et al., appendix, RoBERTa base; PEFT's default)."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate (Hu et al., appendix, RoBERTa base: 4e-4 to 5e-4)."""


class MptConfig(Section):
    """Multitask prompt tuning (Wang et al. 2023, arXiv 2303.02861): a shared prompt times a rank-1 matrix per task.

    The paper could not be read here again; its numbers are given as remembered.
    """

    source: str | None = None
    """Bank reference of a source stage to start from, such as `source/mpt-mnli-squad`; None starts afresh: the shared
    prompt as `prompt.init` says, the tasks' parts at 1."""
    task_learning_rate: float = Field(default=0.4, gt=0)
    """Peak learning rate of the tasks' parts; the shared prompt has `training.prompt_learning_rate` (paper: 0.4 and 0.3)."""
    distill: float = Field(default=0.9, ge=0)
    """Weight lambda of distillation in the source stage (paper: 0.9): the bank's prompt of each source task teaches, by
    the distance of label distributions and of hidden states. 0 leaves the teachers alone."""


class DeptConfig(Section):
    """Decomposed prompt tuning (Shi and Lipani 2024, arXiv 2309.05173): a short prompt, a low-rank update of the input.

    The defaults train 76,800 numbers on T5-base, as many as a prompt of 100 positions has.
    """

    length: int = Field(default=40, ge=1)
    """Prompt positions m, in place of `prompt.length` (authors' scripts: 40)."""
    rank: int = Field(default=45, ge=1)
    """Rank r of the update (authors' scripts: 45)."""
    positions: int = Field(default=256, ge=1)
    """Input positions s that are updated; later ones are left as they are (authors' scripts: 256)."""
    alpha: float = Field(default=8.0, gt=0)
    """The update is scaled by alpha / sqrt(r) (authors' code: 8)."""
    update_learning_rate: float = Field(default=5e-3, gt=0)
    """Peak learning rate of the update; the prompt has `training.prompt_learning_rate` (authors' scripts search 5e-4, 5e-3
    and 0.3; their released runs have 1e-4)."""


class TrainingConfig(Section):
    """The optimizer, its budget and what is kept."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; takes precedence over `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows, converted to steps and printed; used when `steps` is None."""
    prompt_learning_rate: float = Field(default=0.3, gt=0)
    """Peak learning rate of prompts (paper: 0.3)."""
    attention_learning_rate: float = Field(default=0.3, gt=0)
    """Peak learning rate of G (paper: 0.1 for SuperGLUE and Others multi-task, 0.3 elsewhere)."""
    backbone_learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate of full fine-tuning (authors' config: 3e-4)."""
    warmup_steps: int = Field(default=500, ge=0)
    """Linear warm-up (paper: 500 steps)."""
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    """Warm-up is never longer than this share of the run; 1 keeps the paper's, whose small tasks never leave it."""
    weight_decay: float = Field(default=1e-5, ge=0)
    """AdamW's decoupled weight decay (paper: 1e-5)."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm clip over all trainables (Hugging Face Trainer's default, used by the authors)."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout of the backbone while training; None keeps the backbone's own (T5: 0.1)."""
    absent_tasks: Literal["dense", "lazy"] = "dense"
    """Whether Adam's momentum moves the prompt of a task that has no row in the batch (authors' code: dense)."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between dev evaluations; None is a tenth of the run (paper: each epoch)."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations without a better dev score before training stops; None never stops early."""
    selection: Literal["mean", "per_task", "last"] = "mean"
    """Which state is kept: best mean of the tasks' dev headline metrics, each task's own best, or the last."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Optimizer steps between resumable checkpoints."""
    tensorboard: bool = False
    """Write metrics.jsonl as a TensorBoard event file too, in the run's directory."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads of the process; None leaves torch's choice. Results are bit-identical for equal threads only."""


class EvaluationConfig(Section):
    """How answers are produced and scored."""

    decode: Literal["greedy", "labels"] = "greedy"
    """Greedy generation over the whole vocabulary (paper), or the best of the closed label set where there is one."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest generated answer of open tasks, in tokens; closed tasks use their longest label."""
    batch_rows: int = Field(default=128, ge=1)
    """Rows per evaluation batch."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Most input tokens per evaluation batch, padding counted; replaces `batch_rows`."""


class StudyConfig(Section):
    """What `run_pipeline`, `run_study` and `report` lay side by side."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the study's directory; None is made of the digest of all that decides it."""
    directory: str = "studies"
    """Local directory of study directories, with study.json and report."""
    targets: tuple[str, ...] = ("wnli", "stsb", "mrpc", "rte")
    """Target tasks."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Target tasks trained together by the multi-task methods; empty is one group of all targets."""
    methods: tuple[str, ...] = ("prompt_tuning", "spot", "attempt", "attempt_mt")
    """Rows of the table, by the names that `attempt study rows` lists; those that end in `_mt` have one run per group."""
    seeds: tuple[int, ...] = (42,)
    """Seeds of every run (paper: 42 alone)."""
    ablations: tuple[str, ...] = ()
    """Changes of the row `attempt`, by the names that `attempt study rows` lists; `attempt_mt/<name>` changes that row."""
    ablation_targets: tuple[str, ...] = ()
    """Targets of the ablations, a group being taken for any of its tasks; empty is all targets."""
    leave_one_out: bool | tuple[str, ...] = False
    """Targets, or `true` for all, whose `attempt` row is trained again without each source in turn."""
    backbones: tuple[str, ...] = ()
    """The study is done on each: a preset or YAML file laid over it (its `study` left out), or a name as for
    `backbone.name`. Several have a bank each, below `bank`. Empty is `backbone` alone."""
    parents: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """True source tasks of a target, where they are known; SPoT starts from the first one."""
    source_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of each source prompt; None takes `training`'s budget."""
    source_batch_rows: int | None = Field(default=None, ge=1)
    """Rows per step of each source prompt; None takes `data.batch_rows`."""
    prior_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of each attention prior; 0 steps is written as `prior: false`."""
    prior: bool = True
    """Pre-train G on the source tasks (paper section 3.3) and start targets from it."""
    generic_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of SPoT's generic prompt, trained on all sources at once; None takes `source_steps`."""
    shared_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of MPT's shared prompt, distilled from the sources; None takes `source_steps`."""
    similar_top_k: int = Field(default=3, ge=1)
    """Source prompts whose average, weighted by similarity, starts `spot_targeted` (the paper does not give its k)."""
    prior_groups: dict[str, tuple[str, ...]] = Field(
        default_factory=lambda: {"text": ("mnli", "sst2", "qnli", "qqp"), "qa": ("squad", "record")}
    )
    """Source tasks each prior is trained on; `qa` serves MRQA targets and `text` all others (paper appendix)."""


class SearchConfig(Section):
    """A search of settings on dev rows; test rows are scored once, by what it found."""

    study: str | None = None
    """Name of the search; None is made of its space and of the digest of all that decides its trials, so that the same
    command goes on with the same search."""
    space: str | None = None
    """A module of `tune_spaces`, or a YAML or Python file; None is that of the tasks' group."""
    method: Literal["attempt", "attempt_mt"] = "attempt"
    """A trial has one run for each task, or one of all tasks with a shared G."""
    seeds: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Seeds of every trial, whose value is the mean."""
    final_seeds: tuple[int, ...] = Field(default=(101, 102, 103), min_length=1)
    """Fresh seeds of the best trial's runs that are scored on test rows."""
    objectives: tuple[Literal["dev", "parameters", "flops"], ...] = ("dev",)
    """`dev`, the mean headline metric, as large as can be; beside it what shall be small: `parameters` trained, or `flops`
    of answering a row. With two, no trial is pruned."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Multivariate tree-structured Parzen estimator (Bergstra et al. 2011), or random search."""
    startup_trials: int = Field(default=10, ge=0)
    """Finished trials before TPE models them; until then it draws at random."""
    pruner: Literal["asha", "median", "none"] = "asha"
    """Asynchronous successive halving (Li et al. 2020) over optimizer steps, the median rule (Golovin et al. 2017), or no
    early end."""
    reduction_factor: int = Field(default=3, ge=2)
    """ASHA lets one of so many trials go on from each rung to the next, which is as many times longer."""
    first_rung: int | None = Field(default=None, ge=1)
    """Optimizer steps of ASHA's first rung; None is the first evaluation of the first trial."""
    seed: int = 0
    """Seed of what is suggested."""
    trials: int = Field(default=30, ge=1)
    """Trials of the search, those of earlier calls counted, another attempt at one not."""
    hours: float | None = Field(default=None, gt=0)
    """Longest time of this call, in hours: no trial starts later."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of all runs of the search, after which no trial starts."""
    trials_at_once: int | None = Field(default=None, ge=1)
    """Trials under way at once; None is as many as the workers have places for, at least one."""
    packed: bool = True
    """Trials share the pool's frozen backbones and their forward passes; False gives each a process of its own."""
    attempts: int = Field(default=3, ge=1)
    """Times a trial is begun that a crash ends or leaves behind; then it counts as failed."""
    storage: str | None = None
    """An SQLite file on a local disk, or a `postgresql://user@host:port/database` whose password is in PGPASSWORD or
    ~/.pgpass; None is `study.db` in the search's directory."""
    directory: str = "searches"
    """Local directory of search directories, with report and SQLite file."""

    @model_validator(mode="after")
    def _check_search(self) -> SearchConfig:
        if self.objectives[:1] != ("dev",) or len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives got {list(self.objectives)}; name dev first, and each one once")
        if again := set(self.seeds) & set(self.final_seeds):
            raise ValueError(
                f"final_seeds shares {sorted(again)} with seeds; the best trial is to be tested with fresh ones"
            )
        return self


class ClusterConfig(Section):
    """What Ray is asked for."""

    address: str | None = None
    """Cluster to join; None is the one whose job this is (`ray job submit`), else a private local one."""
    mode: Literal["pool", "isolated"] = "pool"
    """`pool`: workers lease whole runs, several at once. `isolated`: one trainer after the other, each run on all workers,
    which share every batch: for long runs, and for backbones that want many GPUs. Both take the same steps, but for
    rounding and dropout's draws."""
    workers: int = Field(default=2, ge=1)
    """Training workers, each with one frozen backbone."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with as few workers as these while nodes are gone; None waits for nodes to have `workers` again."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs of one worker; also its torch threads, at least one, unless `training.threads` says otherwise."""
    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs of one worker."""
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Other resources of one worker, by Ray's names, such as `memory` in bytes or a custom one."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that may hold workers, as Ray's label selectors: `value`, `!value`, `in(a,b)` or `!in(a,b)`."""
    spread: bool = False
    """Spread workers over nodes instead of packing them."""
    wait_seconds: float = Field(default=0.0, ge=0)
    """Longest wait for nodes that an autoscaler may bring, in seconds; 0 refuses at once what does not fit."""
    runs_per_worker: int | None = Field(default=None, ge=1)
    """Runs that a worker of a pool has under way at once on its one backbone, their steps in shared forward passes; None
    is 8 on a GPU and 1 on a processor, where only batches of a few rows gain."""
    attempts: int = Field(default=2, ge=1)
    """Times a failing run is tried before it is set aside with its reason."""
    stall_seconds: float = Field(default=3600.0, gt=0)
    """A worker whose runs take no step and end no evaluation for as long, in seconds, is taken to hang and is killed."""

    @model_validator(mode="after")
    def _check_workers(self) -> ClusterConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is more than workers {self.workers}; lower cluster.min_workers"
            )
        if clash := {"CPU", "GPU"} & set(self.resources_per_worker):
            raise ValueError(
                f"resources_per_worker names {clash.pop()}; set cluster.cpus_per_worker and cluster.gpus_per_worker"
            )
        return self

    def bundle(self) -> dict[str, float]:
        """Return what one worker asks of Ray."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpus, **self.resources_per_worker}

    @property
    def runs_at_once(self) -> int:
        """Runs that a worker has under way at once: `runs_per_worker`, or what it is where it is left open."""
        return self.runs_per_worker or (8 if self.gpus_per_worker else 1)


class ServingConfig(Section):
    """How rows are answered, by a deployment or a job."""

    prompt_bytes: int = Field(default=2**30, ge=1)
    """Most bytes of prompts and Gs kept on the device, in float32; those not used for longest give way. 1 GiB has room
    for 3,400 prompts of 100 positions on T5-base."""
    pass_tokens: int | None = Field(default=None, ge=1)
    """Most input tokens of a forward pass, prompts and padding counted; None is 2,048 on a processor, 65,536 on a GPU."""
    weights_cache: str | None = "~/.cache/attempt-ray/weights"
    """Directory where replicas keep the backbone's weights as they compute with them, and map them from; None reads the
    checkpoint anew each time."""
    batch_rows: int = Field(default=256, ge=1)
    """Most rows that the engine is given at a time."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Most tokens that it is given at a time: prompts, inputs with padding, and answers at their longest."""
    queue_rows: int = Field(default=4096, ge=1)
    """Most rows that wait; more are refused."""
    queue_seconds: float = Field(default=10.0, gt=0)
    """Longest wait that a row may expect at the rate of late; those that come then are refused at once."""
    max_age_seconds: float = Field(default=1.0, ge=0)
    """A row that has waited this long for its place in a batch is overtaken by none that came later."""
    follow_seconds: float = Field(default=0.5, gt=0)
    """How often a replica looks for changes of the bank."""
    shadow_percent: float = Field(default=0.0, ge=0, le=100)
    """Share of a task's rows that its `candidate` answers too, unseen, to be compared."""
    stall_seconds: float = Field(default=60.0, gt=0)
    """A replica that computes one batch for longer than this is unhealthy and gets replaced."""
    drain_seconds: float = Field(default=30.0, gt=0)
    """How long a replica that leaves may take to answer what it has accepted."""
    min_replicas: int = Field(default=1, ge=1)
    """Engine replicas at least."""
    max_replicas: int = Field(default=1, ge=1)
    """Engine replicas at most; between the two, queued tokens decide."""
    target_queued_tokens: int = Field(default=16_384, ge=1)
    """Tokens that wait or run on a replica above which another is started."""
    cpus_per_replica: float = Field(default=1.0, ge=0)
    """CPU cores of an engine replica, which are its threads."""
    gpus_per_replica: float = Field(default=0.0, ge=0)
    """GPUs of an engine replica."""
    ingress_replicas: int = Field(default=1, ge=1)
    """Replicas of the HTTP side; each keeps the limits of `http` for itself."""
    surge_percent: int = Field(default=100, ge=0, le=100)
    """New replicas started before old ones leave, in percent; 0 needs no spare room and loses capacity meanwhile."""

    @model_validator(mode="after")
    def _ordered(self) -> ServingConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}; wanted min_replicas ({self.min_replicas}) or more"
            )
        return self


class HttpConfig(Section):
    """What a deployment takes from its callers."""

    keys: str | None = None
    """File of API keys (`attempt keys`); None takes callers of this machine alone, without a key."""
    hosts: tuple[str, ...] = ()
    """Names under which it is reached, as callers write them in `Host`, without port; empty: any name with keys, and the
    names of this machine's loopback without."""
    max_body_bytes: int = Field(default=2**20, ge=1)
    """Longest request body."""
    max_header_bytes: int = Field(default=16_384, ge=256)
    """Longest request head: names and values of all headers."""
    max_json_depth: int = Field(default=32, ge=1, le=200)
    """Deepest nesting of a body."""
    body_seconds: float = Field(default=10.0, gt=0)
    """How long a request may take to arrive."""
    max_rows: int = Field(default=64, ge=1)
    """Most rows of a request."""
    max_text_chars: int = Field(default=20_000, ge=1)
    """Most characters of one row: of its text, or of all its fields together."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """How long an answer is waited for where the request names no time."""
    max_timeout_seconds: float = Field(default=300.0, gt=0)
    """Longest time that a request may name."""
    requests_per_second: float = Field(default=100.0, gt=0)
    """Requests of one key, in the mean; without keys, of all callers together."""
    burst_requests: int = Field(default=200, ge=1)
    """Requests of one key at once, after a pause."""
    concurrent_requests: int = Field(default=64, ge=1)
    """Requests of one key under way."""
    concurrent_requests_in_all: int = Field(default=256, ge=1)
    """Requests under way; more are refused before they are read."""


class Config(Section):
    """Everything a job needs. A run is the part of it that decides its result (see `digest`)."""

    job: Job = "target"
    """What the run learns: a source prompt, the attention prior, or target prompts."""
    method: str = "attempt"
    """How: `finetune`, `adapter`, `bitfit` and `lora` change the backbone; `prompt_tuning` (SPoT: one that starts from a
    source), `attempt` (the mixture), `mpt` and `dept` leave it frozen. See `METHODS`."""
    tasks: tuple[str, ...] = ()
    """Tasks trained in the run; several share one G in mixed batches."""
    seed: int = 42
    """Seed of initialisation, data order and dropout (paper: 42)."""
    trial: bool = False
    """A trial of a search: its test rows are not scored, and it publishes nothing."""
    device: str = "cpu"
    """Torch device of a worker, such as `cpu` or `cuda`."""
    bank: str = "bank"
    """Directory or pyarrow filesystem URI of the prompt bank."""
    runs: str = "runs"
    """Directory or pyarrow filesystem URI of run directories."""
    backbone: BackboneConfig = BackboneConfig()
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    attention: AttentionConfig = AttentionConfig()
    adapter: AdapterConfig = AdapterConfig()
    bitfit: BitFitConfig = BitFitConfig()
    lora: LoraConfig = LoraConfig()
    mpt: MptConfig = MptConfig()
    dept: DeptConfig = DeptConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    study: StudyConfig = StudyConfig()
    cluster: ClusterConfig = ClusterConfig()
    search: SearchConfig = SearchConfig()
    serving: ServingConfig = ServingConfig()
    http: HttpConfig = HttpConfig()

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(unknown_name("method", method, METHODS))
        return method

    @model_validator(mode="after")
    def _check_places(self) -> Config:
        for key, place in (("bank", self.bank), ("runs", self.runs)):
            if carries_secret(place):
                raise ValueError(
                    f"{key} got a URI that carries a password or key, which every run would store; take it out, and give "
                    "it in the environment (S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
                )
        if self.search.storage is not None and carries_secret(self.search.storage):
            raise ValueError(
                "search.storage got a URL that carries a password, which every run would store; take it out, and give it "
                "in PGPASSWORD or ~/.pgpass"
            )
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        if self.data.origin in ("mirror", "files") and self.data.root is None:
            raise ValueError(
                f"data.origin '{self.data.origin}' needs data.root; set it to the directory of the rows"
            )
        if self.attention.target == "none" and self.attention.weights == "uniform":
            raise ValueError(
                "attention.target 'none' has no target to weigh; set attention.weights=uniform_sources"
            )
        if self.prompt.shared and self.method != "prompt_tuning":
            raise ValueError(
                f"prompt.shared got method '{self.method}'; it is for method 'prompt_tuning' alone; set prompt.shared=false"
            )
        return self

    @property
    def facts(self) -> MethodFacts:
        """What is to be known of the method."""
        return METHODS[self.method]

    @property
    def prompt_length(self) -> int:
        """Positions of the soft prompt that inputs open with; 0 where there is none."""
        if not self.facts.prompted:
            return 0
        return self.dept.length if self.method == "dept" else self.prompt.length

    @property
    def source_name(self) -> str:
        """Name in the bank of the source prompt that a run of `job: source` makes: its task, or what is shared by all.

        That is `mpt-` or `shared-` (`prompt.shared`) and the tasks, so that no task's own prompt has that name.
        """
        if self.method == "mpt":
            return joined(("mpt", *self.tasks))
        return joined(("shared", *self.tasks)) if self.prompt.shared else joined(self.tasks)

    def updated(self, **changes: Any) -> Config:
        """Return a copy with `changes` laid over it; a section takes a mapping of the keys to change.

        Raises:
            ConfigError: A key or value cannot be used.
        """
        return parse([self.model_dump(), changes])

    def common(self) -> dict[str, Any] | None:
        """Return the knobs that runs must agree on to take steps in one forward pass; None for one that must be alone.

        A method that changes the backbone has one of its own.
        """
        if self.facts.backbone != "frozen":
            return None
        return {
            "backbone": self.backbone,
            "device": self.device,
            "training.dropout": self.training.dropout,
            "training.threads": self.training.threads,
        }

    def digest(self, **facts: str) -> str:
        """Return the 12 hex digits that name the run: equal digests compute equal results.

        Places and conveniences (`bank`, `runs`, `cluster`, `study`, `search`, `serving`, `http`, cache, recomputation, checkpoint interval,
        event files, evaluation batch) do not enter, nor do the sections of other methods (`METHOD_SECTIONS`).

        Args:
            **facts: Content hashes that the config only points at: data, backbone, prompts read from the bank.
        """
        dump = self.model_dump(
            mode="json", exclude={"bank", "runs", "cluster", "study", "search", "serving", "http"}
        )
        for section in METHOD_SECTIONS:
            if section not in self.facts.sections:
                dump.pop(section)
        for section, keys in _CONVENIENCES.items():
            for key in keys:
                dump[section].pop(key)
        text = json.dumps({"config": dump, "facts": facts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class ShapeConfig(Section):
    """Shape of a T5 that is pre-trained from nothing. Defaults are the shipped nano's."""

    width: int = Field(default=128, ge=8)
    """Model width d."""
    head_width: int = Field(default=32, ge=4)
    """Width of one attention head."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    feed_forward: int = Field(default=256, ge=8)
    """Inner width of the feed-forward blocks."""
    encoder_layers: int = Field(default=4, ge=1)
    """Encoder blocks."""
    decoder_layers: int = Field(default=2, ge=1)
    """Decoder blocks."""
    activation: Literal["relu", "gated-gelu"] = "relu"
    """`relu` as in T5 v1.0, `gated-gelu` as in v1.1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout while pre-training."""


class PretrainPhase(Section):
    """A stretch of pre-training with a mixture of its own."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    pairs: NonNegativeInt | dict[str, NonNegativeInt]
    """Supervised pairs drawn for the phase (micro-world), or the most kept of each task or of each named task (real
    tasks)."""
    texts: int = Field(ge=0)
    """Passages to repair drawn for the phase."""
    told: float = Field(default=0.5, ge=0, le=1)
    """Share of the closed skills' or tasks' pairs that list the words to answer with."""
    variety: float = Field(default=1.0, ge=0, le=1)
    """Micro-world: share of wordings that are free; the others are the plainest, which a model learns from sooner."""

    def pairs_of(self, name: str) -> int:
        """Return the most pairs of a task, or of the micro-world."""
        return self.pairs if isinstance(self.pairs, int) else self.pairs.get(name, 0)


class PretrainConfig(Section):
    """How a backbone is made from nothing: span corruption plus a supervised mixture (Raffel et al. 2020)."""

    output: str = "backbones/mine"
    """Directory that receives the backbone, as save_pretrained writes it, with its recipe.json."""
    seed: int = 0
    """Seed of weights, text, corruption and order."""
    corpus: Literal["microworld", "files"] = "microworld"
    """The generated micro-world, or `texts` and the training rows of `tasks`."""
    texts: tuple[str, ...] = ()
    """Parquet, JSONL or plain-text files, or directories of them, with a `text` column."""
    tasks: tuple[str, ...] = ()
    """Tasks whose training rows join the mixture, rendered by their templates; rows come from `data`."""
    data: DataConfig = DataConfig()
    """Origin and template choices of `tasks`."""
    passage_words: int = Field(default=96, ge=8)
    """Texts are cut into passages of about this many words."""
    tokenizer: str = "words"
    """`words` or `unigram` train a vocabulary on the mixture; else a directory or hub id of a T5 tokenizer."""
    vocabulary_size: int = Field(default=8000, ge=100)
    """Pieces of a trained `unigram` vocabulary."""
    sentinels: int = Field(default=10, ge=1, le=100)
    """Sentinel tokens `<extra_id_0>` and on (T5: 100)."""
    corruption_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of words that are masked (Raffel et al.: 0.15)."""
    mean_span: float = Field(default=3.0, ge=1)
    """Mean length of a masked span, in words (Raffel et al.: 3 tokens)."""
    shape: ShapeConfig = ShapeConfig()
    """Shape of the model."""
    phases: tuple[PretrainPhase, ...] = (PretrainPhase(steps=1000, pairs=50_000, texts=10_000),)
    """Stretches of training, one after the other, under one learning-rate schedule."""
    batch_tokens: int = Field(default=4096, ge=64)
    """Input tokens per step, padding counted."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of Muon and AdamW; linear warm-up, then linear decay to 0."""
    warmup_steps: int = Field(default=200, ge=0)
    """Steps of linear warm-up, at most a tenth of the run."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient norm clip."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """Steps between resumable checkpoints."""
    threads: int | None = Field(default=None, ge=1)
    """Torch threads; None leaves torch's choice."""

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @model_validator(mode="after")
    def _check_corpus(self) -> PretrainConfig:
        if self.corpus == "files" and not (self.texts or self.tasks):
            raise ValueError("corpus 'files' got neither texts nor tasks; give at least one of them")
        mixed = self.tasks if self.corpus == "files" else ("microworld",)
        for phase in self.phases:
            if isinstance(phase.pairs, dict) and (unlisted := sorted(set(phase.pairs) - set(mixed))):
                raise ValueError(
                    f"phases.pairs names {', '.join(unlisted)}, which the mixture does not have; it has {', '.join(mixed)}"
                )
        return self


METHOD_SECTIONS = ("adapter", "bitfit", "lora", "mpt", "dept")
"""Sections that one method alone reads."""

_CONVENIENCES = {
    "backbone": ("recompute",),
    "data": ("cache_dir",),
    "training": ("checkpoint_steps", "tensorboard"),
    "evaluation": ("batch_rows", "batch_tokens"),
}


_MAX_JOINED_CHARACTERS = 60


def joined(tasks: tuple[str, ...]) -> str:
    """Return a name for tasks that were trained together, short enough for a directory and the bank."""
    text = "-".join(tasks)
    if len(text) <= _MAX_JOINED_CHARACTERS:
        return text
    return f"{text[:45].rstrip('-._')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parse(layers: Iterable[Mapping[str, Any]]) -> Config:
    """Return the config of several layers, later ones winning key by key.

    Raises:
        ConfigError: A key is unknown (with the nearest known one) or a value cannot be used.
    """
    return _parse(Config, layers)


def _parse(page: type[Page], layers: Iterable[Mapping[str, Any]]) -> Page:
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    try:
        return page.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_first_problem(page, error)) from None


def preset_names() -> list[str]:
    """Return the name of every preset, such as `paper/t5-base`."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def config_paths(names: Iterable[str]) -> list[Path]:
    """Return the YAML file of every name: a file's path, or a preset.

    Raises:
        ConfigError: There is neither a file nor a preset of that name.
    """
    paths = []
    for name in names:
        preset = PRESETS / f"{name}.yaml"
        if name in preset_names():
            paths.append(preset)
        elif Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
            paths.append(Path(name).expanduser())
        else:
            raise ConfigError(unknown_name("preset or YAML file", name, preset_names()))
    return paths


def load(paths: Iterable[Path], settings: Iterable[str] = ()) -> Config:
    """Read YAML layers, then `section.key=value` settings.

    Raises:
        ConfigError: A file is missing or not a YAML mapping, a setting is malformed, or a key or value is refused.
    """
    return parse(load_layers(paths, settings))


def load_pretrain(paths: Iterable[Path], settings: Iterable[str] = ()) -> PretrainConfig:
    """Read a pre-training page as `load` reads a run's.

    Raises:
        ConfigError: As for `load`.
    """
    return _parse(PretrainConfig, load_layers(paths, settings))


def load_layers(paths: Iterable[Path], settings: Iterable[str] = ()) -> list[Mapping[str, Any]]:
    """Return what YAML files and `section.key=value` settings hold, for `parse`.

    A file's key `extends` names presets or YAML files, one or several, that come before it.

    Raises:
        ConfigError: A file is missing or not a YAML mapping, extends itself, or a setting is malformed.
    """
    return [*_file_layers(paths, ()), *(_setting(text) for text in settings)]


def _file_layers(paths: Iterable[Path], extending: tuple[Path, ...]) -> list[Mapping[str, Any]]:
    layers: list[Mapping[str, Any]] = []
    for path in paths:
        if path in extending:
            raise ConfigError(f"{path} extends itself, through {extending[-1]}; take that out")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"cannot read config {path}: {error.strerror}; give an existing YAML file"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{path} holds {type(content).__name__}; wanted a mapping of config keys")
        base = content.pop("extends", ())
        names = [base] if isinstance(base, str) else base
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"{path}: extends got {base!r}; wanted the name of a preset or YAML file, or a list"
            )
        layers += [*_file_layers(config_paths(names), (*extending, path)), content]
    return layers


def _setting(text: str) -> Mapping[str, Any]:
    dotted, equals, value = text.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"--set got '{text}'; wanted section.key=value, such as training.steps=500")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        nested = value
    if nested is None and value.strip() not in ("null", "~"):
        nested = ""
    for key in reversed(dotted.strip().split(".")):
        nested = {key: nested}
    return nested  # type: ignore[no-any-return]


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict) and key not in _WHOLE:
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


_SECRETS = re.compile(r"password|secret|token|signature|(^|_)(key|sig)$")


def carries_secret(uri: str) -> bool:
    """Return whether a URI holds a password, or an option that by its name is a password, key or token."""
    rest = uri.partition("://")[2]
    options = (option.partition("=")[0].lower() for option in rest.partition("?")[2].split("&"))
    # Keys of S3 hold slashes, so a password may reach beyond what a parser takes for the host.
    return ":" in rest.rpartition("@")[0] or any(map(_SECRETS.search, options))


_WHOLE = ("parents", "prior_groups")  # mappings that a later layer replaces whole


def _first_problem(page: type[Section], error: ValidationError) -> str:
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        section: Any = page
        for part in problem["loc"][:-1]:
            section = get_args(section)[0] if isinstance(part, int) else section.model_fields[part].annotation
        where = f"config key in [{'.'.join(path[:-1])}]" if path[:-1] else "config key"
        return unknown_name(where, path[-1], section.model_fields)
    message = problem["msg"].removeprefix("Value error, ")
    place = ".".join(part for part in path if not part.startswith(("literal[", "function-")))
    if isinstance(problem["input"], Mapping):
        # It may hold a password; the message tells of its own what was got.
        return f"{place}: {message}" if place else message
    return f"{place}: got {problem['input']!r}; {message}" if place else message
