"""The frozen language model: any T5-family encoder-decoder that reads a soft prompt before its input.

Source: Asai et al. (2022), section 3.2 (the encoder reads [P_instance ; X]); Lester et al. (2021), section 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    MT5ForConditionalGeneration,
    T5ForConditionalGeneration,
)

from attempt_ray.config import BackboneConfig
from attempt_ray.errors import BackboneError, unknown_name
from attempt_ray.model.frozen_t5 import DecoderState, FrozenT5, PassOptions, WholeT5
from attempt_ray.model.precision import choose_precision, rows_stand_alone
from attempt_ray.model.weight_cache import WeightCache

IGNORED = -100
"""Label id that stands for padding."""

MOST_TOKENS_CPU = 2048
"""Most tokens of a forward pass that trainings or tasks share on a processor: they stay in its caches."""
MOST_TOKENS_GPU = 65_536
"""The same on a GPU, which they fill."""

_KEPT_SHARE = 0.75
"""Share of a decoded batch below which the rows that have ended are taken out of it."""

PACKAGED = Path(__file__).parents[1] / "backbones"
"""Backbones that ship in the package, one directory each."""

_HUB_NAMES = {
    **{f"t5-{size}": f"google-t5/t5-{size}" for size in ("small", "base", "large", "3b", "11b")},
    **{f"t5-v1_1-{size}": f"google/t5-v1_1-{size}" for size in ("small", "base", "large", "xl", "xxl")},
    **{f"flan-t5-{size}": f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")},
    **{f"mt5-{size}": f"google/mt5-{size}" for size in ("small", "base", "large", "xl", "xxl")},
}
_MODELS: dict[str, Any] = {"t5": T5ForConditionalGeneration, "mt5": MT5ForConditionalGeneration}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BackboneIdentity:
    """What a prompt must have been made for, to be of use on a backbone."""

    name: str
    """Name it was loaded by: packaged, directory or hub id."""
    revision: str | None
    """Hub commit where known, else what was asked for."""
    weights_sha256: str
    """Hash of the float32 weights, the same whatever type they are computed in."""
    tokenizer_sha256: str
    """Hash of the tokenizer."""
    width: int
    """Model width H."""
    vocabulary: int
    """Rows V of the embedding matrix."""

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the fields by name, ready for JSON."""
        return asdict(self)


class Lesson(NamedTuple):
    """Who teaches a segment beside its labels, and how much that counts (Wang et al. 2023, section 3.2)."""

    prompts_BPH: Tensor
    """The teachers: prompts under which the same backbone reads the same input."""
    weight: float
    """Weight lambda of the distance to what the teachers make of it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Segment:
    """Rows of one padded width that share a forward pass with those of other segments."""

    prompts_BPH: Tensor | None
    """Instance prompts; None for the plain input."""
    embedded_BTH: Tensor
    """Token embeddings as `Backbone.embed` returns them."""
    mask_BT: Tensor
    """True on real tokens."""
    labels_BL: Tensor
    """Label ids, padded with -100."""
    seed: int | None = None
    """Seed of its dropout; None draws from the global generator."""
    lesson: Lesson | None = None
    """Who teaches it, while it trains."""


class Memory(NamedTuple):
    """What the decoder attends to."""

    encoded_BTH: Tensor
    """The encoder's output."""
    mask_BT: Tensor
    """True on prompt and real tokens."""


class CandidateScores(NamedTuple):
    """What the decoder makes of each row's candidate answers."""

    logprob_BC: Tensor
    """Log probability in nats of each candidate, its end token included, in float32."""
    greedy_B: Tensor
    """Index of the candidate that is the greedy answer over the whole vocabulary; -1 where it is none of them."""


class Backbone(nn.Module):
    """A T5-family encoder-decoder with its tokenizer, frozen until a method takes it over.

    `train()` and `eval()` switch its dropout, although its weights do not move.

    Attributes:
        identity: Name, hashes and sizes.
        model: The transformers model.
        tokenizer: Its tokenizer.
        width: Model width H.
        pad_id: Token id of padding, which also starts every answer.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration | MT5ForConditionalGeneration,
        tokenizer: Any,
        identity: BackboneIdentity,
        *,
        forward: Literal["own", "transformers"] = "own",
        options: PassOptions | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.identity = identity
        self.width = identity.width
        self.pad_id = _pad_id(model)
        self._eos_ids = _eos_ids(model)
        self._dropouts = _dropouts(model)
        self.model.requires_grad_(False)
        self._forward_by, self._options = forward, options or PassOptions()
        self._taken = False
        self._pass: FrozenT5 | WholeT5 | None = None
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._embedding().device

    @property
    def rows_stand_alone(self) -> bool:
        """Whether what a row comes to has the same bits whatever rows share its pass; never so on a GPU."""
        inner = int(self.model.config.d_ff)
        return self.device.type == "cpu" and rows_stand_alone(self.width, inner, self._embedding().dtype)

    @property
    def vocabulary_VH(self) -> Tensor:
        """Embeddings of the tokenizer's tokens, without the rows that only pad the matrix to a round size."""
        return self._embedding()[: len(self.tokenizer)].detach()

    @property
    def pad_embedding_H(self) -> Tensor:
        """Float32 embedding of the padding token."""
        return self._embedding()[self.pad_id].detach().float()

    def embed(self, input_ids_BT: Tensor) -> Tensor:
        """Return the raw token embeddings, unscaled and before dropout: X of the paper."""
        embedded_BTH: Tensor = self.model.shared(input_ids_BT)
        return embedded_BTH

    def loss(
        self,
        prompts_BPH: Tensor | None,
        embedded_BTH: Tensor,
        mask_BT: Tensor,
        labels_BL: Tensor,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Return loss_BL of rows that have a forward pass to themselves; see `losses` and `Segment`."""
        (loss_BL,) = self.losses(
            [
                Segment(
                    prompts_BPH=prompts_BPH,
                    embedded_BTH=embedded_BTH,
                    mask_BT=mask_BT,
                    labels_BL=labels_BL,
                    seed=seed,
                )
            ]
        )
        return loss_BL

    def losses(self, segments: Sequence[Segment]) -> list[Tensor]:
        """Return loss_BL of every segment: float32 cross-entropy of each label token in nats, 0 where it is padding.

        The encoder reads [P ; X], where T5's dropout falls on both, and the decoder attends to both (paper section
        3.2). Positions are those of one sequence: the prompt takes 0 to P - 1. One forward pass computes all segments,
        and what a segment comes to does not depend on the others.

        A segment with a lesson has on top, times its weight, the distance to its teacher: the divergence KL(teacher ||
        student) of the next token's distributions and the mean square of the difference of the decoder's outputs. The
        teacher reads without dropout.
        """
        hidden, logits = self._read(segments, [one.seed for one in segments])
        found = [
            _cross_entropy(logits_BLV, one.labels_BL)
            for logits_BLV, one in zip(logits, segments, strict=True)
        ]
        if taught := [place for place, one in enumerate(segments) if one.lesson is not None]:
            pairs = zip(taught, *self._taught([segments[place] for place in taught]), strict=True)
            for place, wanted_BLH, wanted_BLV in pairs:
                one = segments[place]
                apart_BL = _divergence(logits[place], wanted_BLV) + _mean_square(hidden[place], wanted_BLH)
                weight = 0.0 if one.lesson is None else one.lesson.weight
                found[place] = found[place] + weight * apart_BL.where(one.labels_BL != IGNORED, 0.0)
        return found

    @torch.no_grad()
    def generate(
        self,
        prompts_BPH: Tensor | None,
        embedded_BTH: Tensor,
        mask_BT: Tensor,
        *,
        max_new_tokens: int,
        candidates_CL: Tensor | None = None,
    ) -> Tensor:
        """Return ids_BL: each row's greedy answer, its end token included, then padding.

        L is the longest answer of the batch, at most `max_new_tokens`. Call in eval mode.

        Args:
            prompts_BPH: Instance prompts; None for the plain input.
            embedded_BTH: Token embeddings as `embed` returns them.
            mask_BT: True on real tokens.
            max_new_tokens: Longest answer.
            candidates_CL: Likely answers as `encode_candidates` returns them, within `max_new_tokens`. One pass of the
                decoder over all of them shows which rows answer greedily with one; only the others are decoded token
                by token. The answers are the same.
        """
        (memory,) = self.encode_inputs([(prompts_BPH, embedded_BTH, mask_BT)])
        if candidates_CL is None:
            return self._greedy(memory, max_new_tokens=max_new_tokens)
        labels_CL = candidates_CL.to(mask_BT.device)
        (scores,) = self.score_candidates([memory], [labels_CL.expand(len(mask_BT), -1, -1)])
        known_B = scores.greedy_B >= 0
        answers_BL = labels_CL.where(labels_CL != IGNORED, self.pad_id)[scores.greedy_B]
        if known_B.all():
            return answers_BL
        others = Memory(memory.encoded_BTH[~known_B], memory.mask_BT[~known_B])
        others_BL = self._greedy(others, max_new_tokens=max_new_tokens)
        width = max(answers_BL.shape[1], others_BL.shape[1])
        answers_BL, others_BL = (
            nn.functional.pad(ids_BL, (0, width - ids_BL.shape[1]), value=self.pad_id)
            for ids_BL in (answers_BL, others_BL)
        )
        answers_BL[~known_B] = others_BL
        return answers_BL

    @torch.no_grad()
    def score_labels(
        self, prompts_BPH: Tensor | None, embedded_BTH: Tensor, mask_BT: Tensor, candidates_CL: Tensor
    ) -> Tensor:
        """Return logprob_BC: log probability in nats of each candidate answer, its end token included.

        The encoder reads each row once; the decoder reads all candidates of all rows in one pass. Call in eval mode.

        Args:
            prompts_BPH: Instance prompts; None for the plain input.
            embedded_BTH: Token embeddings as `embed` returns them.
            mask_BT: True on real tokens.
            candidates_CL: Token ids of the candidates, padded with -100; see `encode_candidates`.
        """
        (memory,) = self.encode_inputs([(prompts_BPH, embedded_BTH, mask_BT)])
        candidates_BCL = candidates_CL.to(mask_BT.device).expand(len(mask_BT), -1, -1)
        (scores,) = self.score_candidates([memory], [candidates_BCL])
        return scores.logprob_BC

    @torch.no_grad()
    def encode_inputs(self, inputs: Sequence[tuple[Tensor | None, Tensor, Tensor]]) -> list[Memory]:
        """Return what the decoder attends to in rows of several padded widths, from one forward pass.

        Rows of unlike width do not pad one another, and what a row comes to does not depend on the others. Call in eval
        mode.

        Args:
            inputs: Of every width the instance prompts [B, P, H] (None for the plain input), the token embeddings
                [B, T, H] as `embed` returns them, and their mask [B, T].
        """
        rows, masks = zip(*(self._prepend(*one) for one in inputs), strict=True)
        return [Memory(*found) for found in zip(self._forward().encode(rows, masks), masks, strict=True)]

    @torch.no_grad()
    def score_candidates(
        self, memories: Sequence[Memory], candidates: Sequence[Tensor]
    ) -> list[CandidateScores]:
        """Return what the decoder makes of every row's own candidate answers, from one forward pass.

        Where each token of a candidate is the best after those before it, the candidate *is* the greedy answer. Call in
        eval mode.

        Args:
            memories: Rows as `encode_inputs` returns them.
            candidates: Of each of them the token ids [B, C, L], padded with -100; see `encode_candidates`.
        """
        ids = [self.model.prepare_decoder_input_ids_from_labels(labels_BCL) for labels_BCL in candidates]
        encoded, masks = zip(*memories, strict=True)
        found = []
        for logits_BCLV, labels_BCL in zip(
            self._forward().decode(encoded, masks, ids), candidates, strict=True
        ):
            loss_NL = _cross_entropy(logits_BCLV.flatten(0, 1), labels_BCL.flatten(0, 1))
            followed_BC = ((logits_BCLV.argmax(dim=-1) == labels_BCL) | (labels_BCL == IGNORED)).all(dim=-1)
            first_B = followed_BC.int().argmax(dim=-1)
            found.append(
                CandidateScores(
                    logprob_BC=-loss_NL.sum(dim=-1).view(labels_BCL.shape[:2]),
                    greedy_B=first_B.where(followed_BC.any(dim=-1), -1),
                )
            )
        return found

    @torch.no_grad()
    def decode_greedily(self, memory: Memory, *, max_new_tokens: Sequence[int]) -> Iterator[Tensor]:
        """Yield ids_B, the next token of every row's greedy answer, until all have ended; padding follows an end token.

        Keys and values of the tokens before are kept. Call in eval mode.

        Args:
            memory: Rows as `encode_inputs` returns them.
            max_new_tokens: Longest answer of each row.
        """
        device = memory.mask_BT.device
        eos_ids, longest_B = (torch.tensor(ids, device=device) for ids in (self._eos_ids, max_new_tokens))
        last_B = torch.full_like(longest_B, self._start_id())
        open_B = torch.ones_like(last_B, dtype=torch.bool)
        row_B = torch.arange(len(last_B), device=device)
        rows, state = len(last_B), DecoderState()
        for count in range(1, max(max_new_tokens) + 1):
            logits_BV = self._forward().step(*memory, last_B, state)
            last_B = logits_BV.argmax(dim=-1).where(open_B, self.pad_id)
            yield last_B.new_full((rows,), self.pad_id).index_copy(0, row_B, last_B)
            open_B = open_B & ~torch.isin(last_B, eos_ids) & (longest_B > count)
            left = int(open_B.sum())
            if not left:
                break
            if left <= _KEPT_SHARE * len(open_B):
                (kept_B,) = open_B.nonzero(as_tuple=True)
                last_B, longest_B, open_B, row_B = (
                    each[kept_B] for each in (last_B, longest_B, open_B, row_B)
                )
                memory = Memory(memory.encoded_BTH[kept_B], memory.mask_BT[kept_B])
                state.keep(kept_B)

    def encode_candidates(self, answers: Sequence[str]) -> Tensor:
        """Return candidates_CL: the answers' token ids with their end token, padded with -100."""
        rows = [self.encode(answer) for answer in answers]
        candidates_CL = torch.full((len(rows), max(map(len, rows))), IGNORED)
        for index, ids in enumerate(rows):
            candidates_CL[index, : len(ids)] = torch.tensor(ids)
        return candidates_CL.to(self.device)

    def encode(self, text: str) -> list[int]:
        """Return a text's token ids, the end token last."""
        ids = list(self.tokenizer(text).input_ids)
        return ids if ids and ids[-1] in self._eos_ids else [*ids, self._eos_ids[0]]

    def ends(self, token_id: int) -> bool:
        """Whether a token ends an answer."""
        return token_id in self._eos_ids

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids [B, L], without special tokens or outer blanks."""
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def set_dropout(self, probability: float | None) -> None:
        """Set every dropout of the model, those inside attention included; None restores the model's own."""
        for module, own in self._dropouts:
            p = own if probability is None else probability
            if isinstance(module, nn.Dropout):
                module.p = p
            else:
                module.dropout = p

    def take_over(self) -> None:
        """Make the backbone one method's alone, which may change its modules; `identity` keeps naming it as loaded.

        transformers computes it from then on, since our pass knows the modules of a plain, frozen T5 alone.

        Raises:
            BackboneError: That has been done before, so it is no longer what its identity says.
        """
        if self._taken:
            raise BackboneError(
                f"backbone '{self.identity.name}' has been changed by another method; load it anew for this one"
            )
        self._taken, self._forward_by, self._pass = True, "transformers", None

    def unfreeze(self) -> None:
        """Take the backbone over and let all of its weights train, for full fine-tuning.

        Raises:
            BackboneError: It has been taken over before.
        """
        self.take_over()
        self.model.requires_grad_(True)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights as they are now; equal before and after a run that left them alone.

        With float32 weights it equals `identity.weights_sha256`.
        """
        return weights_sha256(self.model)

    def _read(
        self, segments: Sequence[Segment], seeds: Sequence[int | None]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the decoder's output hidden_BLH and logits_BLV of every segment, given its labels."""
        inputs, masks = zip(
            *(self._prepend(one.prompts_BPH, one.embedded_BTH, one.mask_BT) for one in segments), strict=True
        )
        encoded = self._forward().encode(inputs, masks, seeds)
        ids = [self.model.prepare_decoder_input_ids_from_labels(one.labels_BL)[:, None] for one in segments]
        hidden = self._forward().hidden(encoded, masks, ids, seeds)
        logits = self._forward().logits(hidden)
        return [hidden_BCLH[:, 0] for hidden_BCLH in hidden], [logits_BCLV[:, 0] for logits_BCLV in logits]

    @torch.no_grad()
    def _taught(self, segments: Sequence[Segment]) -> tuple[list[Tensor], list[Tensor]]:
        """Return what `_read` does of the segments' teachers, dropout off."""
        by_teachers = [
            replace(one, prompts_BPH=one.lesson.prompts_BPH) for one in segments if one.lesson is not None
        ]
        training = self.training
        self.eval()
        try:
            return self._read(by_teachers, [None] * len(by_teachers))
        finally:
            self.train(training)

    def _embedding(self) -> Tensor:
        weight: Tensor = self.model.shared.weight
        return weight

    def _start_id(self) -> int:
        start = self.model.config.decoder_start_token_id
        return self.pad_id if start is None else int(start)

    def _prepend(
        self, prompts_BPH: Tensor | None, embedded_BTH: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        if prompts_BPH is None:
            return embedded_BTH, mask_BT
        inputs_BTH = torch.cat([prompts_BPH.to(embedded_BTH.dtype), embedded_BTH], dim=1)
        return inputs_BTH, torch.cat([mask_BT.new_ones(prompts_BPH.shape[:2]), mask_BT], dim=1)

    def _greedy(self, memory: Memory, *, max_new_tokens: int) -> Tensor:
        """Return ids_BL as `generate` does, token by token."""
        limits = [max_new_tokens] * len(memory.mask_BT)
        return torch.stack(list(self.decode_greedily(memory, max_new_tokens=limits)), dim=1)

    def _forward(self) -> FrozenT5 | WholeT5:
        if self._pass is None:
            if self._forward_by == "own":
                self._pass = FrozenT5(self.model, self._options)
            else:
                self._pass = WholeT5(self.model, recompute=self._options.recompute)
        return self._pass

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._pass = None  # it holds weights that are about to be replaced
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def load_backbone(
    config: BackboneConfig, device: str | torch.device = "cpu", *, cache: Path | None = None
) -> Backbone:
    """Load a backbone: one that ships in the package, a local directory in transformers layout, or a hub id.

    Weights are read from safetensors alone, hashed in float32, and only then cast as `config.dtype` says.

    Args:
        config: Which, and how it computes.
        device: Where.
        cache: Directory of weights as they are computed with, which processes of this machine share; None reads the
            checkpoint itself.

    Raises:
        BackboneError: The name is not known, the directory or hub repository cannot be read, or it does not hold a
            whole T5-family model with its tokenizer.
    """
    name, place = _resolve(config.name)
    dtype = _DTYPES[choose_precision(config.dtype, device).dtype]
    try:
        described = AutoConfig.from_pretrained(place, revision=config.revision)
        if described.model_type not in _MODELS:
            raise BackboneError(
                f"backbone '{name}' is a '{described.model_type}' model; wanted one of the T5 family "
                f"({', '.join(_MODELS)}), such as google-t5/t5-base or google/flan-t5-base"
            )
        tokenizer = AutoTokenizer.from_pretrained(place, revision=config.revision)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, BackboneError):
            raise
        raise BackboneError(_unreadable(name, place, error)) from error
    revision = getattr(described, "_commit_hash", None) or config.revision
    kept = None if cache is None else WeightCache(cache, place=place, revision=revision, dtype=dtype)
    model, digest = (None, "") if kept is None or not kept.usable else _mapped(kept, described)
    if model is None:
        model = _read_model(name, place, described, config.revision)
        digest = weights_sha256(model)
        model = model.to(dtype=dtype)
        if kept is not None and kept.usable:
            kept.keep(model, weights_sha256=digest)
            # What was read gives way to what is shared.
            model = _mapped(kept, described)[0] or model
    _check_tokens(name, model, tokenizer)
    identity = BackboneIdentity(
        name=name,
        revision=revision,
        weights_sha256=digest,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        width=model.config.d_model,
        vocabulary=model.shared.weight.shape[0],
    )
    options = PassOptions(recompute=config.recompute, attention=config.attention, compile=config.compile)
    return Backbone(model.to(device), tokenizer, identity, forward=config.forward, options=options)


def _mapped(kept: WeightCache, described: Any) -> tuple[Any, str]:
    """Return a model of kept weights and their digest; None where there are none."""
    with torch.device("meta"):
        model = _MODELS[described.model_type](described)
    found = kept.fill(model)
    return (None, "") if found is None else (model.eval(), found.weights_sha256)


def _read_model(name: str, place: str, described: Any, revision: str | None) -> Any:
    """Return the model of a checkpoint in float32.

    Raises:
        BackboneError: It cannot be read, or is not whole.
    """
    try:
        model, report = _MODELS[described.model_type].from_pretrained(
            place,
            config=described,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BackboneError(_unreadable(name, place, error)) from error
    missing = sorted(str(key) for key in [*report["missing_keys"], *report["mismatched_keys"]])
    if missing:
        raise BackboneError(
            f"backbone '{name}' lacks {len(missing)} of its weights, '{missing[0]}' first; "
            "wanted a whole checkpoint; download or save it again"
        )
    return model


def check_prompt(
    name: str, *, shape: Sequence[int], made_for: Mapping[str, Any], backbone: BackboneIdentity
) -> None:
    """Refuse a prompt that was made for another backbone.

    Args:
        name: What to call the prompt in the message, such as its bank reference.
        shape: The prompt's shape, wanted as [P, H].
        made_for: Backbone facts of its manifest: `name`, `width`, `weights_sha256` and `tokenizer_sha256`; a fact
            that is missing is not checked.
        backbone: The backbone it is to be used on.

    Raises:
        BackboneError: Width, weights or tokenizer differ.
    """
    theirs = f"backbone '{made_for.get('name', 'unknown')}'"
    if len(shape) != 2 or shape[1] != backbone.width:
        raise BackboneError(
            f"prompt {name} has shape {list(shape)} (made for {theirs}); backbone '{backbone.name}' wants width "
            f"{backbone.width}; load the backbone it was made for or train it anew"
        )
    for fact, word in (("weights_sha256", "weights"), ("tokenizer_sha256", "tokenizer")):
        got, wanted = made_for.get(fact), getattr(backbone, fact)
        if got is not None and got != wanted:
            raise BackboneError(
                f"prompt {name} was made for {theirs} with {word} {got[:12]}; backbone '{backbone.name}' has {word} "
                f"{wanted[:12]}; load the backbone it was made for or train it anew"
            )


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over name, type, shape and bytes of every weight in order of name, tied weights once."""
    digest = hashlib.sha256()
    for name, weight in sorted(
        [*model.named_parameters(), *_persistent_buffers(model)], key=lambda pair: pair[0]
    ):
        stored = weight.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(stored.dtype), list(stored.shape)]).encode())
        digest.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Return the SHA-256 of what decides a tokenizer's output: its pipeline, or its vocabulary where it has none."""
    pipeline = getattr(tokenizer, "backend_tokenizer", None)
    facts: dict[str, Any] = {"special": sorted(map(str, tokenizer.all_special_tokens))}
    if pipeline is not None:
        facts["pipeline"] = json.loads(pipeline.to_str())
        for per_call in ("truncation", "padding"):
            facts["pipeline"].pop(per_call, None)
    else:
        facts["vocabulary"] = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _resolve(name: str) -> tuple[str, str]:
    """Return the name to remember and the place to load from."""
    packaged = sorted(path.name for path in PACKAGED.glob("*") if (path / "config.json").is_file())
    if name in packaged:
        return name, str(PACKAGED / name)
    directory = Path(name).expanduser()
    if directory.is_dir():
        return name, str(directory)
    if name in _HUB_NAMES:
        return _HUB_NAMES[name], _HUB_NAMES[name]
    if directory.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BackboneError(
            f"no directory '{name}' to load a backbone from; give a directory, a hub id or 'nano'"
        )
    if "/" not in name:
        raise BackboneError(unknown_name("backbone", name, {"nano", *packaged, *_HUB_NAMES}))
    return name, name


def _unreadable(name: str, place: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if Path(place).is_dir():
        return (
            f"backbone directory '{name}' cannot be read: {reason}; wanted config.json, model.safetensors and the "
            "tokenizer's files, as save_pretrained writes them"
        )
    return (
        f"backbone '{name}' cannot be loaded from the hub: {reason}; check the name, revision and connection, or give "
        "a local directory with config.json, model.safetensors and the tokenizer, or use backbone.name=nano"
    )


def _check_tokens(name: str, model: nn.Module, tokenizer: Any) -> None:
    rows = model.get_parameter("shared.weight").shape[0]
    if len(tokenizer) > rows:
        raise BackboneError(
            f"backbone '{name}' embeds {rows} tokens but its tokenizer has {len(tokenizer)}; "
            "save model and tokenizer from the same checkpoint"
        )


def _persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    kept = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in kept]


def _dropouts(model: nn.Module) -> list[tuple[Any, float]]:
    """Return module and probability of all dropouts: modules, and T5's attention, which keeps a bare number."""
    found: list[tuple[Any, float]] = []
    for module in model.modules():
        probability = getattr(module, "dropout", None)
        if isinstance(module, nn.Dropout):
            found.append((module, module.p))
        elif isinstance(probability, float | int):
            found.append((module, float(probability)))
    return found


def _cross_entropy(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(
        logits_BLV.flatten(0, 1).float(), labels_BL.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return loss.view(labels_BL.shape)


def _divergence(logits_BLV: Tensor, wanted_BLV: Tensor) -> Tensor:
    """Return KL(wanted || own) in nats at every position, in float32."""
    own_BLV, wanted_BLV = (each.float().log_softmax(dim=-1) for each in (logits_BLV, wanted_BLV))
    return (wanted_BLV.exp() * (wanted_BLV - own_BLV)).sum(dim=-1)


def _mean_square(hidden_BLH: Tensor, wanted_BLH: Tensor) -> Tensor:
    """Return the mean over the width of the squared difference at every position, in float32."""
    return (hidden_BLH.float() - wanted_BLH.float()).square().mean(dim=-1)


def _pad_id(model: T5ForConditionalGeneration | MT5ForConditionalGeneration) -> int:
    pad = model.config.pad_token_id
    return 0 if pad is None else int(pad)


def _eos_ids(model: T5ForConditionalGeneration | MT5ForConditionalGeneration) -> tuple[int, ...]:
    eos = model.config.eos_token_id
    return tuple(eos) if isinstance(eos, list) else (1 if eos is None else int(eos),)
