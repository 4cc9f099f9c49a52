"""What can be learned on a backbone: a prompt, a mixture of prompts, or all of its weights, behind one interface.

Source: Asai et al. (2022), sections 3.2 and 3.3 (ATTEMPT, its two learning rates), 4.2 (the baselines).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attempt_ray.config import AttentionConfig, Config, TrainingConfig
from attempt_ray.data.batching import Batch
from attempt_ray.errors import BackboneError, ConfigError, unknown_name
from attempt_ray.model.attention import PromptAttention, auto_divisor, temperature_divisor
from attempt_ray.model.backbone import IGNORED, Backbone, Segment
from attempt_ray.model.mixture import Mixed, PromptMixture
from attempt_ray.model.soft_prompt import SoftPrompts, from_labels, from_normal, from_text, from_vocabulary
from attempt_ray.tasks.spec import Task

_ATTENTION_SEED_OFFSET = 1_000_003
"""Keeps G's starting values apart from the draw of the prompts under the same seed."""


class Generated(NamedTuple):
    """Greedy answers, and the mixing weights they were given under."""

    ids_BL: Tensor
    weights_BK: Tensor | None


class Scored(NamedTuple):
    """Log probability in nats of each candidate answer, and the mixing weights it was given under."""

    logprob_BC: Tensor
    weights_BK: Tensor | None


class Method(nn.Module, ABC):
    """A way to fit a backbone to tasks. Every row of a batch may belong to another task.

    Attributes:
        backbone: The language model.
        tasks: Names of the run's tasks; a batch's `task_B` indexes them.
        prompts: The trainable prompts, one per task, or None where there are none.
        attention: G, or None where there is none.
        candidates: Names of the K columns of the mixing weights; empty where nothing is mixed.
    """

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[str],
        *,
        prompts: SoftPrompts | None = None,
        attention: PromptAttention | None = None,
        candidates: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tasks = tuple(tasks)
        self.prompts = prompts
        self.attention = attention
        self.candidates = candidates

    @abstractmethod
    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:
        """Return what each row's encoder input opens with.

        Args:
            embedded_BTH: Raw token embeddings as `Backbone.embed` returns them.
            mask_BT: True on real tokens; every row has at least one.
            task_B: Index of each row's task in `tasks`.
        """

    @abstractmethod
    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the optimizer's groups: `prompts`, `attention` or `backbone` under `name`, each with its own `lr`.

        A group without a trainable tensor is left out. The authors' code selects G by names that match nothing, so
        there all tensors train at the prompts' rate; here the paper's two rates (section 3.3) are real.
        """

    def segment(self, batch: Batch, *, seed: int | None = None) -> Segment:
        """Return the batch with each row's prompt, for the backbone to compute, alone or beside other segments."""
        embedded_BTH = self.backbone.embed(batch.input_ids_BT)
        prompts_BPH, _ = self.instance_prompts(embedded_BTH, batch.mask_BT, batch.task_B)
        return Segment(
            prompts_BPH=prompts_BPH,
            embedded_BTH=embedded_BTH,
            mask_BT=batch.mask_BT,
            labels_BL=batch.labels_BL,
            seed=seed,
        )

    def loss(self, batch: Batch, *, seed: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats over all label tokens of the batch, whatever task they belong to.

        Args:
            batch: The rows.
            seed: Seed of dropout; None draws from the global generator.
        """
        (loss,) = losses(self.backbone, [self.segment(batch, seed=seed)])
        return loss

    @torch.no_grad()
    def generate(
        self, batch: Batch, *, max_new_tokens: int, candidates_CL: Tensor | None = None
    ) -> Generated:
        """Return each row's greedy answer under its own task's prompt; see `Backbone.generate`. Call in eval mode."""
        embedded_BTH = self.backbone.embed(batch.input_ids_BT)
        prompts_BPH, weights_BK = self.instance_prompts(embedded_BTH, batch.mask_BT, batch.task_B)
        ids_BL = self.backbone.generate(
            prompts_BPH,
            embedded_BTH,
            batch.mask_BT,
            max_new_tokens=max_new_tokens,
            candidates_CL=candidates_CL,
        )
        return Generated(ids_BL, weights_BK)

    @torch.no_grad()
    def score_labels(self, batch: Batch, candidates_CL: Tensor) -> Scored:
        """Return the log probability of every candidate answer under each row's own task's prompt. Call in eval mode.

        Args:
            batch: The rows; their labels are not read.
            candidates_CL: Token ids of the candidates as `Backbone.encode_candidates` returns them.
        """
        embedded_BTH = self.backbone.embed(batch.input_ids_BT)
        prompts_BPH, weights_BK = self.instance_prompts(embedded_BTH, batch.mask_BT, batch.task_B)
        logprob_BC = self.backbone.score_labels(prompts_BPH, embedded_BTH, batch.mask_BT, candidates_CL)
        return Scored(logprob_BC, weights_BK)

    @property
    def trainable_parameters(self) -> int:
        """Count of the numbers that train."""
        return sum(parameter.numel() for _, parameter in self._trainable())

    def trainable_state(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all tensors that train, by name."""
        return {
            name: parameter.detach().to("cpu", copy=True).contiguous()
            for name, parameter in self._trainable()
        }

    @torch.no_grad()
    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Set all tensors that train.

        Raises:
            ConfigError: The state is of another method or shape; nothing was set.
        """
        own = dict(self._trainable())
        if own.keys() != state.keys():
            raise ConfigError(
                f"the state holds {', '.join(sorted(state)) or 'nothing'}; this run trains {', '.join(sorted(own))}; "
                "load it into a run of the same config"
            )
        for name, parameter in own.items():
            _check_shape(name, state[name], tuple(parameter.shape))
        for name, parameter in own.items():
            parameter.copy_(state[name])

    def prompt_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the trainable prompts [P, H] by task, as the bank stores them."""
        if self.prompts is None:
            return {}
        prompts_NPH = self.prompts.prompts_NPH.detach().to("cpu", copy=True)
        return {task: prompts_NPH[index].clone() for index, task in enumerate(self.tasks)}

    def attention_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of G's tensors under the names of the bank; empty where there is no G."""
        if self.attention is None:
            return {}
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.attention.state_dict().items()}

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]


class PromptTuning(Method):
    """One soft prompt per task (Lester et al. 2021); SPoT is this, started from other prompts."""

    def __init__(self, backbone: Backbone, tasks: Sequence[str], prompts: SoftPrompts) -> None:
        super().__init__(backbone, tasks, prompts=prompts)
        self._soft_prompts = prompts

    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:  # noqa: ARG002 - the interface
        """Return each row's task's prompt; nothing is mixed."""
        return Mixed(self._soft_prompts(task_B), None)

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the one group `prompts`."""
        return _groups(training, prompts=self.prompts, attention=None)


class AttemptMixture(Method):
    """ATTEMPT: frozen source prompts and a trained target prompt per task, mixed for every input."""

    def __init__(self, backbone: Backbone, tasks: Sequence[str], mixture: PromptMixture) -> None:
        super().__init__(
            backbone,
            tasks,
            prompts=mixture.targets,
            attention=mixture.attention,
            candidates=mixture.candidates,
        )
        self.mixture = mixture

    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:
        """Return the mixture for each row (paper equation 4) with its weights."""
        mixed: Mixed = self.mixture(embedded_BTH, mask_BT, task_B)
        return mixed

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the groups `prompts` and `attention`, each where it trains."""
        return _groups(training, prompts=self.prompts, attention=self.attention)


class FineTuning(Method):
    """Full fine-tuning. It takes the backbone over: its weights move, so nothing else may share it."""

    def __init__(self, backbone: Backbone, tasks: Sequence[str]) -> None:
        super().__init__(backbone, tasks)
        self.backbone.unfreeze()

    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:  # noqa: ARG002 - the interface
        """Return no prompt."""
        return Mixed(None, None)

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the one group `backbone`."""
        return [_group("backbone", self.backbone, training.backbone_learning_rate, training.weight_decay)]


def losses(backbone: Backbone, segments: Sequence[Segment]) -> list[Tensor]:
    """Return each segment's mean cross-entropy in nats over all of its label tokens, from one forward pass.

    Segments of several methods on one backbone do not see each other: the gradient of the sum is, for each method's own
    parameters, that of its own loss.
    """
    found = backbone.losses(segments)
    return [
        loss_BL.sum() / (segment.labels_BL != IGNORED).sum()
        for loss_BL, segment in zip(found, segments, strict=True)
    ]


def build_method(
    config: Config,
    backbone: Backbone,
    *,
    tasks: Sequence[Task],
    sources: Mapping[str, Tensor] | None = None,
    prior: Mapping[str, Tensor] | None = None,
    initial: Tensor | None = None,
    center: Tensor | None = None,
) -> Method:
    """Return the method a config asks for, on the backbone's device, with the config's dropout set.

    Args:
        config: What to learn and how.
        backbone: The frozen backbone; full fine-tuning takes it over.
        tasks: The run's tasks in order.
        sources: Source prompts [P, H] by task name; needed by `method: attempt`, others than
            `attention.sources` are ignored.
        prior: Tensors of a G to start from, named as in the bank; None starts afresh.
        initial: Prompt to start from: [P, H] for all tasks or [N, P, H]; None follows `prompt.init`.
        center: Mean pooled input [H] of a fresh G; needed by `attention.center` without a prior, which has its own.

    Raises:
        ConfigError: The config asks for something that cannot be built or has nothing to train.
        BackboneError: A prompt has another width than the backbone.
    """
    names = [task.name for task in tasks]
    method: Method
    if config.method == "finetune":
        if config.backbone.dtype == "bfloat16":
            raise ConfigError(
                f"method 'finetune' got backbone.dtype {config.backbone.dtype}, whose steps it would round away; "
                "set backbone.dtype=float32"
            )
        method = FineTuning(backbone, names)
    elif config.method == "prompt_tuning":
        method = PromptTuning(backbone, names, _targets(config, backbone, tasks, initial))
    else:
        chosen = _chosen_sources(config, backbone, sources or {})
        targets = _targets(config, backbone, tasks, initial) if config.attention.target == "trained" else None
        learned = config.attention.weights == "learned"
        attention = _attention(config, backbone, chosen, prior=prior, center=center) if learned else None
        mixture = PromptMixture(
            chosen, targets=targets, attention=attention, weights=config.attention.weights
        )
        method = AttemptMixture(backbone, names, mixture)
    if method.trainable_parameters == 0:
        raise ConfigError(
            "nothing trains: attention.target is 'none' and G is frozen or replaced by constant weights; "
            "set attention.target=trained, or attention.weights=learned with attention.frozen=false"
        )
    backbone.set_dropout(config.training.dropout)
    return method.to(backbone.device)


def initial_prompts(config: Config, backbone: Backbone, *, tasks: Sequence[Task]) -> Tensor:
    """Return initial_NPH as `prompt.init` says, for the initialisers that need no bank.

    All tasks start from the same draw, so a task starts alike alone and in a group; `labels` differ by task.

    Raises:
        ConfigError: `prompt.init` needs prompts of the bank, a text or label words that are not given.
    """
    prompt, vocabulary_VH = config.prompt, backbone.vocabulary_VH
    if prompt.init in ("prompt", "average"):
        raise ConfigError(
            f"prompt.init '{prompt.init}' got no prompt to start from; name bank references in prompt.init_from"
        )
    if prompt.init == "labels":
        rows = [_label_prompt(task, config, backbone) for task in tasks]
        return torch.stack(rows)
    if prompt.init == "text":
        ids = backbone.encode(prompt.init_text)[:-1] if prompt.init_text else []
        initial_PH = from_text(vocabulary_VH, prompt.length, ids=ids)
    elif prompt.init == "normal":
        initial_PH = from_normal(
            prompt.length, backbone.width, std=prompt.init_std, generator=_generator(config.seed)
        )
    else:
        initial_PH = from_vocabulary(
            vocabulary_VH, prompt.length, top=prompt.init_vocab_top, generator=_generator(config.seed)
        )
    return initial_PH.expand(len(tasks), -1, -1)


def _label_prompt(task: Task, config: Config, backbone: Backbone) -> Tensor:
    words = task.labels.get(config.data.label_words, ())
    if not words:
        raise ConfigError(f"prompt.init 'labels' got task '{task.name}', which has no label words; use vocab")
    return from_labels(
        backbone.vocabulary_VH,
        config.prompt.length,
        labels=[backbone.encode(word)[:-1] for word in words],
        top=config.prompt.init_vocab_top,
        generator=_generator(config.seed),
    )


def _targets(
    config: Config, backbone: Backbone, tasks: Sequence[Task], initial: Tensor | None
) -> SoftPrompts:
    if initial is None:
        return SoftPrompts(initial_prompts(config, backbone, tasks=tasks))
    initial_NPH = initial.expand(len(tasks), -1, -1) if initial.ndim == 2 else initial
    _check_prompt_shape("the prompt to start from", initial_NPH[0], config, backbone)
    if len(initial_NPH) != len(tasks):
        raise ConfigError(
            f"got {len(initial_NPH)} prompts to start from for {len(tasks)} tasks; give one for each"
        )
    return SoftPrompts(initial_NPH)


def _chosen_sources(config: Config, backbone: Backbone, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wanted = config.attention.sources
    if len(set(wanted)) != len(wanted):
        raise ConfigError(f"attention.sources names a task twice: {', '.join(wanted)}; name each once")
    for name in wanted:
        if name not in sources:
            raise ConfigError(unknown_name("source prompt", name, sources))
        _check_prompt_shape(f"source prompt '{name}'", sources[name], config, backbone)
    return {name: sources[name] for name in wanted}


def _attention(
    config: Config,
    backbone: Backbone,
    sources: Mapping[str, Tensor],
    *,
    prior: Mapping[str, Tensor] | None,
    center: Tensor | None,
) -> PromptAttention:
    wanted = config.attention
    if prior is not None and ("center_H" in prior) != wanted.center:
        made = "with" if "center_H" in prior else "without"
        raise ConfigError(
            f"the prior was trained {made} a centre; set attention.center={str(not wanted.center).lower()} or name "
            "another in attention.prior"
        )
    if wanted.center and prior is None and center is None:
        raise ConfigError("attention.center got no rows to take the mean of; set attention.center=false")
    attention = PromptAttention(
        backbone.width,
        bottleneck=wanted.bottleneck,
        divisor=_divisor(wanted, backbone.width, sources),
        pooling=wanted.pooling,
        train_norm=wanted.train_norm,
        pad_embedding_H=backbone.pad_embedding_H.cpu(),
        authors_width=wanted.authors_width,
        center_H=(center if prior is None else prior["center_H"]) if wanted.center else None,
        generator=_generator(config.seed + _ATTENTION_SEED_OFFSET),
    )
    if prior is not None:
        own = attention.state_dict()
        if own.keys() != prior.keys():
            raise ConfigError(
                f"the prior holds {', '.join(sorted(prior)) or 'nothing'}; wanted {', '.join(sorted(own))}; "
                "name an attention version in attention.prior"
            )
        for name, tensor in own.items():
            _check_shape(name, prior[name], tuple(tensor.shape))
        attention.load_state_dict(dict(prior))
    if wanted.frozen:
        attention.requires_grad_(False)
    return attention


def _divisor(attention: AttentionConfig, width: int, sources: Mapping[str, Tensor]) -> float:
    if attention.temperature == "auto":
        keys_SH = torch.stack([prompt.float().amax(dim=0) for prompt in sources.values()])
        return auto_divisor(keys_SH, auto_logit=attention.auto_logit)
    return temperature_divisor(width, temperature=attention.temperature)


def _check_prompt_shape(what: str, prompt_PH: Tensor, config: Config, backbone: Backbone) -> None:
    length, width = config.prompt.length, backbone.width
    if prompt_PH.ndim != 2 or prompt_PH.shape[1] != width:
        raise BackboneError(
            f"{what} has shape {list(prompt_PH.shape)}; backbone '{backbone.identity.name}' wants [{length}, {width}]; "
            "use a prompt that was trained on this backbone"
        )
    if prompt_PH.shape[0] != length:
        raise ConfigError(
            f"{what} has {prompt_PH.shape[0]} positions; prompt.length is {length}; "
            f"set prompt.length={prompt_PH.shape[0]}"
        )


def _check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise ConfigError(
            f"tensor '{name}' has shape {list(tensor.shape)}; wanted {list(wanted)}; "
            "load it into a run of the same prompt length, bottleneck and backbone"
        )


def _groups(
    training: TrainingConfig, *, prompts: nn.Module | None, attention: nn.Module | None
) -> list[dict[str, Any]]:
    wanted = (
        ("prompts", prompts, training.prompt_learning_rate),
        ("attention", attention, training.attention_learning_rate),
    )
    groups = [
        _group(name, module, rate, training.weight_decay)
        for name, module, rate in wanted
        if module is not None
    ]
    return [group for group in groups if group["params"]]


def _group(name: str, module: nn.Module, learning_rate: float, weight_decay: float) -> dict[str, Any]:
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return {"name": name, "params": trainable, "lr": learning_rate, "weight_decay": weight_decay}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
