"""From the bank back to a method that answers: a prompt as its version says it is to be used."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attempt_ray.bank.manifest import BackboneRecord, MixtureRecord
from attempt_ray.bank.names import Reference
from attempt_ray.bank.store import Bank
from attempt_ray.bank.versions import Loaded
from attempt_ray.errors import BankError
from attempt_ray.model.attention import PromptAttention
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.methods import AttemptMixture, Method, PromptTuning
from attempt_ray.model.mixture import PromptMixture
from attempt_ray.model.soft_prompt import SoftPrompts


class Published(NamedTuple):
    """A method for one task, and the version of the bank it was made from."""

    method: Method
    loaded: Loaded


def load_published(bank: Bank, reference: str, *, backbone: Backbone, task: str) -> Published:
    """Return a prompt of the bank as a method in eval mode: alone, or in the mixture it was trained in.

    Args:
        bank: Where the prompt, its sources and its G are.
        reference: A source or target prompt.
        backbone: The language model it was made for.
        task: Name of the task it shall answer.

    Raises:
        BankError: It is not in the bank, not whole, or a G.
        BackboneError: It was made for another backbone.
    """
    loaded = bank.load(reference)
    if loaded.version.kind == "attention":
        raise BankError(
            f"{loaded.version} is a G, which answers nothing alone; name a prompt, such as target/{task}"
        )
    loaded.manifest.check_backbone(backbone_record(backbone))
    prompts = SoftPrompts(_tensors(loaded)["prompt"][None])
    mixture = loaded.manifest.mixture
    method: Method
    if mixture is None:
        method = PromptTuning(backbone, [task], prompts)
    else:
        method = AttemptMixture(backbone, [task], _mixture(bank, mixture, prompts=prompts, backbone=backbone))
    return Published(method.to(backbone.device).eval(), loaded)


def backbone_record(backbone: Backbone) -> BackboneRecord:
    """Return what the bank remembers of a backbone."""
    identity = backbone.identity
    return BackboneRecord(
        name=identity.name,
        revision=identity.revision,
        weights_sha256=identity.weights_sha256,
        tokenizer_sha256=identity.tokenizer_sha256,
        width=identity.width,
    )


def _mixture(bank: Bank, record: MixtureRecord, *, prompts: SoftPrompts, backbone: Backbone) -> PromptMixture:
    sources = {Reference.parse(text).name: _tensors(bank.load(text))["prompt"] for text in record.sources}
    attention = None
    if record.attention is not None:
        tensors = _tensors(bank.load(record.attention))
        attention = PromptAttention(
            backbone.width,
            bottleneck=tensors["down.weight"].shape[0],
            divisor=record.divisor,
            pooling=record.pooling,
            pad_embedding_H=backbone.pad_embedding_H.cpu(),
            authors_width=record.authors_width,
            center_H=tensors.get("center_H"),
        )
        attention.load_state_dict(tensors)
    return PromptMixture(
        sources,
        targets=prompts if record.target == "trained" else None,
        attention=attention,
        weights=record.weights,
    )


def _tensors(loaded: Loaded) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in loaded.tensors.items()}
