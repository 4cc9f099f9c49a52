"""What every method has in common: how it reads a batch, what of it trains, and what the bank gets of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attempt_ray.config import TrainingConfig
from attempt_ray.data.batching import Batch
from attempt_ray.errors import ConfigError
from attempt_ray.model.attention import PromptAttention
from attempt_ray.model.backbone import IGNORED, Backbone, Lesson, Segment
from attempt_ray.model.mixture import Mixed


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
        attention: G, or None where there is none.
        candidates: Names of the K columns of the mixing weights; empty where nothing is mixed.
        prompt_length: Positions that inputs open with; 0 where there is no prompt.
    """

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[str],
        *,
        attention: PromptAttention | None = None,
        candidates: tuple[str, ...] = (),
        prompt_length: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tasks = tuple(tasks)
        self.attention = attention
        self.candidates = candidates
        self.prompt_length = prompt_length

    def embed(self, batch: Batch) -> Tensor:
        """Return embedded_BTH: the input's token embeddings as the encoder is to read them."""
        return self.backbone.embed(batch.input_ids_BT)

    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:  # noqa: ARG002 - the interface
        """Return what each row's encoder input opens with: here nothing.

        Args:
            embedded_BTH: Token embeddings as `embed` returns them.
            mask_BT: True on real tokens; every row has at least one.
            task_B: Index of each row's task in `tasks`.
        """
        return Mixed(None, None)

    def lesson(self, batch: Batch) -> Lesson | None:  # noqa: ARG002 - the interface
        """Return who teaches the batch beside its labels: here nobody."""
        return None

    @abstractmethod
    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the optimizer's groups, such as `prompts` and `attention`, under `name`, each with its own `lr`.

        A group without a trainable tensor is left out. The authors' code selects G by names that match nothing, so
        there all tensors train at the prompts' rate; here the paper's two rates (section 3.3) are real.
        """

    def segment(self, batch: Batch, *, seed: int | None = None) -> Segment:
        """Return the batch with each row's prompt, for the backbone to compute, alone or beside other segments."""
        embedded_BTH = self.embed(batch)
        prompts_BPH, _ = self.instance_prompts(embedded_BTH, batch.mask_BT, batch.task_B)
        return Segment(
            prompts_BPH=prompts_BPH,
            embedded_BTH=embedded_BTH,
            mask_BT=batch.mask_BT,
            labels_BL=batch.labels_BL,
            seed=seed,
            lesson=self.lesson(batch),
        )

    def loss(self, batch: Batch, *, seed: int | None = None) -> Tensor:
        """Return what training lowers: the mean cross-entropy in nats over all label tokens, whatever task they belong to.

        What a teacher asks for comes on top; see `lesson`.

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
        embedded_BTH = self.embed(batch)
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
        embedded_BTH = self.embed(batch)
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
            check_shape(name, state[name], tuple(parameter.shape))
        for name, parameter in own.items():
            parameter.copy_(state[name])

    @property
    def per_task(self) -> tuple[nn.Parameter, ...]:
        """What trains for each task apart: its first axis is the task."""
        return ()

    def prompt_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the prompts [P, H] by task, as the bank stores them; empty where it gets none."""
        return {}

    def source_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of what a source run leaves to others, named as in the bank; empty for most methods."""
        return {}

    def attention_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of G's tensors under the names of the bank; empty where there is no G."""
        if self.attention is None:
            return {}
        return {name: tensor.to("cpu", copy=True) for name, tensor in self.attention.state_dict().items()}

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]


def losses(backbone: Backbone, segments: Sequence[Segment]) -> list[Tensor]:
    """Return each segment's mean loss over all of its label tokens, in nats, from one forward pass.

    Segments of several methods on one backbone do not see each other: the gradient of the sum is, for each method's own
    parameters, that of its own loss.
    """
    found = backbone.losses(segments)
    return [
        loss_BL.sum() / (segment.labels_BL != IGNORED).sum()
        for loss_BL, segment in zip(found, segments, strict=True)
    ]


def group(
    name: str, parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return one optimizer group of what trains, in a list; an empty list where nothing does."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        return []
    return [{"name": name, "params": trainable, "lr": learning_rate, "weight_decay": weight_decay}]


def check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape.

    Raises:
        ConfigError: It has one.
    """
    if tuple(tensor.shape) != wanted:
        raise ConfigError(
            f"tensor '{name}' has shape {list(tensor.shape)}; wanted {list(wanted)}; "
            "load it into a run of the same prompt length, bottleneck and backbone"
        )
