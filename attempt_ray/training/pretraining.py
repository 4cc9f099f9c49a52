"""Make a backbone from nothing: span corruption plus a supervised mixture, in text-to-text form.

Source: Raffel et al. (2020), https://arxiv.org/abs/1910.10683, sections 3.1.4 and 3.5.3. The result is a directory
that `load_backbone` reads, with the recipe it was made by.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from attempt_ray.bank.durable import storage_errors, write_durably
from attempt_ray.config import PretrainConfig, PretrainPhase
from attempt_ray.data.batching import Batch, BatchStream, evaluation_batches
from attempt_ray.data.encoding import EncodedSplit, encode_examples, template_options
from attempt_ray.data.microworld import skills
from attempt_ray.data.microworld.world import Speaker
from attempt_ray.data.splits import load_splits
from attempt_ray.errors import ConfigError, DataError, NonFiniteError
from attempt_ray.model.backbone import tokenizer_sha256, weights_sha256
from attempt_ray.tasks import TASKS, get_task
from attempt_ray.tasks.spec import Example, Task
from attempt_ray.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from attempt_ray.training.muon import Muon

HELD_OUT_PAIRS = 2000
"""Pairs of the micro-world that are kept from training, to measure what was learned."""
HELD_OUT_ROWS = 500
"""Dev rows of each task that measure what was learned."""

MATCH_SCORE = 6.0
"""Attention score of two equal tokens in the heads that start out matching."""
NEARBY_SLOPE = 1.0
"""Loss of attention score per token of distance in the first head that starts out looking nearby."""
VOCABULARY_PAIRS = 20_000
"""Pairs and texts of the micro-world that its words are gathered from."""

_NOT_OF_THE_RECIPE = {"output", "threads", "checkpoint_steps"}

_TASK_NAMES = tuple(sorted(TASKS))

Pair = tuple[str, str]


@dataclass(frozen=True)
class PretrainProgress:
    """What one optimizer step did."""

    step: int
    steps: int
    loss: float
    """Token-mean cross-entropy of the batch in nats."""
    tokens: int
    """Input tokens of the batch, padding not counted."""


@dataclass(frozen=True)
class Corpus:
    """The examples of every phase, encoded, and the pairs held out."""

    phases: tuple[EncodedSplit, ...]
    held_out: EncodedSplit | None


def corrupt(words: Sequence[str], rng: Random, *, rate: float, mean_span: float, sentinels: int) -> Pair:
    """Mask random spans of a text: the input keeps a sentinel for each, the target spells them out.

    Args:
        words: The text, at least two words.
        rng: Source of the draws.
        rate: Share of words masked; at least one is.
        mean_span: Mean words of a span.
        sentinels: Sentinels at hand, so the most spans.
    """
    masked = min(len(words) - 1, max(1, round(rate * len(words))))
    spans = min(sentinels, masked, len(words) - masked, max(1, round(masked / mean_span)))
    lengths = _parts(rng, masked, spans)
    gaps = _parts(rng, len(words) - masked, spans)
    lead = rng.randrange(gaps[0]) + 1 if gaps[0] > 1 else gaps[0]
    gaps = [lead, *gaps[1:]]
    source: list[str] = []
    target: list[str] = []
    place = 0
    for index, (gap, length) in enumerate(zip(gaps, lengths, strict=True)):
        source += [*words[place : place + gap], f"<extra_id_{index}>"]
        target += [f"<extra_id_{index}>", *words[place + gap : place + gap + length]]
        place += gap + length
    return " ".join([*source, *words[place:]]), " ".join(target)


def _parts(rng: Random, total: int, count: int) -> list[int]:
    """Cut `total` into `count` random parts of at least one."""
    cuts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    return [end - start for start, end in pairwise(cuts)]


def load_passages(paths: Iterable[str], *, passage_words: int) -> list[list[str]]:
    """Read texts and cut them into passages of at most `passage_words` words, shorter than eight dropped.

    Raises:
        DataError: A path does not exist, has no `text` column, or there is no passage at all.
    """
    passages: list[list[str]] = []
    for path in _text_files(paths):
        loader = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}.get(path.suffix, "text")
        rows = datasets.load_dataset(loader, data_files=str(path), split="train")
        if "text" not in rows.column_names:
            raise DataError(f"{path} has columns {', '.join(rows.column_names)}; wanted a 'text' column")
        for text in rows["text"]:
            words = text.split()
            passages += [
                words[start : start + passage_words] for start in range(0, len(words), passage_words)
            ]
    passages = [passage for passage in passages if len(passage) >= 8]
    if not passages:
        raise DataError("the texts hold no passage of eight words or more; give longer texts")
    return passages


def _text_files(paths: Iterable[str]) -> Iterator[Path]:
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            yield from sorted(
                found for found in path.iterdir() if found.suffix in (".parquet", ".jsonl", ".txt")
            )
        elif path.is_file():
            yield path
        else:
            raise DataError(f"no text file or directory '{name}'; check the path")


def task_pairs(task: Task, config: PretrainConfig) -> tuple[list[Pair], list[Pair]]:
    """Return the training rows of a task, and some of its dev rows, as (source, target) texts."""
    splits = load_splits(task, config.data)
    options = template_options(config.data)
    train, dev = (
        [(example.source, example.target) for row in rows for example in task.train_examples(row, options)]
        for rows in (splits.train, islice(splits.dev, HELD_OUT_ROWS))
    )
    return train, dev


def told_pair(task: Task, pair: Pair, labels: Sequence[str], rng: Random) -> Pair:
    """Reword a pair of a closed task so that it lists, in order of class, the words to answer with, drawn anew.

    The words stand where a soft prompt will: before the input, which may open with any task's prefix and, half of the
    time, has numbered pieces. So the backbone learns to be told what to do and how to answer, whatever the task is
    called.
    """
    source, target = pair
    words = skills.draw_labels(rng, len(labels))
    text = source.removeprefix(f"{task.prefix} ")
    if rng.random() < 0.5:
        named = [name for name in task.fields if f"{name}: " in text]
        for number, name in enumerate(named, start=1):
            text = text.replace(f"{name}: ", f"sentence{number}: ", 1)
    if rng.random() < 0.5:
        text = f"{TASKS[rng.choice(_TASK_NAMES)].prefix} {text}"
    return f"{task.prefix} {' '.join(words)} : {text}", words[labels.index(target)]


def word_tokenizer(words: Iterable[str], *, sentinels: int) -> PreTrainedTokenizerFast:
    """Return a lower-casing tokenizer with one token a word; punctuation stands apart, decimals stay whole."""
    specials = _specials(sentinels)
    vocabulary = {
        token: index for index, token in enumerate([*specials, *sorted(set(words) - set(specials))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = _word_split()
    return _finished(tokenizer, sentinels=sentinels)


def _word_split() -> pre_tokenizers.PreTokenizer:
    punctuation = Regex(r"[?!,;()\"]|\.(?!\d)")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(punctuation, behavior="isolated")]
    )


def subword_tokenizer(texts: Iterable[str], *, size: int, sentinels: int) -> PreTrainedTokenizerFast:
    """Train a SentencePiece-style unigram vocabulary, as T5's is (Raffel et al. 2020, section 2.4.1)."""
    specials = _specials(sentinels)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=specials,
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.decoder = decoders.Metaspace()
    return _finished(tokenizer, sentinels=sentinels)


def _specials(sentinels: int) -> list[str]:
    return ["<pad>", "</s>", "<unk>", *(f"<extra_id_{index}>" for index in range(sentinels))]


def _finished(tokenizer: Tokenizer, *, sentinels: int) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=_specials(sentinels)[3:],
        clean_up_tokenization_spaces=False,
    )


class Mixture:
    """The texts of a pre-training run, before they are encoded."""

    def __init__(self, config: PretrainConfig) -> None:
        """Read whatever the config points at; fails before any training.

        Raises:
            DataError: Texts or rows cannot be read.
            ConfigError: A task is not known.
        """
        self._config = config
        self._passages: list[list[str]] = []
        self._tasks: list[Task] = []
        self._pairs: dict[str, list[Pair]] = {}
        self._held_out: dict[str, list[Pair]] = {}
        if config.corpus == "files":
            if config.texts:
                self._passages = load_passages(config.texts, passage_words=config.passage_words)
            self._tasks = [get_task(name, config.data.user_tasks) for name in config.tasks]
            for task in self._tasks:
                self._pairs[task.name], self._held_out[task.name] = task_pairs(task, config)

    def phase(self, number: int) -> list[Pair]:
        """Return a phase's examples; equal numbers give equal examples."""
        phase = self._config.phases[number]
        rng = Speaker(f"{self._config.seed}/phase/{number}")
        rng.variety = phase.variety
        return self._supervised(phase, rng) + [
            self._corrupted(words, rng) for words in self._texts(phase, rng)
        ]

    def held_out(self) -> dict[str, list[Pair]]:
        """Return pairs by skill or task: those of the micro-world that no phase has drawn on purpose, or dev rows."""
        if self._config.corpus == "files":
            return self._held_out
        rng = Speaker(f"{self._config.seed}/held-out")
        return skills.by_skill(islice(skills.pairs(rng, told=0.3), HELD_OUT_PAIRS))

    def tokenizer(self) -> Any:
        """Return the tokenizer that the config names, or one trained on the mixture."""
        config = self._config
        if config.tokenizer == "words":
            return word_tokenizer(self._words(), sentinels=config.sentinels)
        if config.tokenizer == "unigram":
            return subword_tokenizer(
                self._own_texts(), size=config.vocabulary_size, sentinels=config.sentinels
            )
        try:
            return AutoTokenizer.from_pretrained(config.tokenizer)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"tokenizer: got '{config.tokenizer}', which cannot be loaded: {reason}"
            ) from None

    def _supervised(self, phase: PretrainPhase, rng: Speaker) -> list[Pair]:
        if self._config.corpus == "microworld":
            return list(islice(skills.pairs(rng, told=phase.told), phase.pairs_of("microworld")))
        drawn: list[Pair] = []
        for task in self._tasks:
            pairs = self._pairs[task.name]
            labels = task.labels.get(self._config.data.label_words, ())
            drawn += [
                told_pair(task, pair, labels, rng) if labels and rng.random() < phase.told else pair
                for pair in rng.sample(pairs, min(phase.pairs_of(task.name), len(pairs)))
            ]
        return drawn

    def _texts(self, phase: PretrainPhase, rng: Speaker) -> list[list[str]]:
        if self._config.corpus == "microworld":
            return [text.split() for text in islice(skills.texts(rng), phase.texts)]
        return rng.sample(self._passages, min(phase.texts, len(self._passages)))

    def _corrupted(self, words: Sequence[str], rng: Random) -> Pair:
        config = self._config
        return corrupt(
            words, rng, rate=config.corruption_rate, mean_span=config.mean_span, sentinels=config.sentinels
        )

    def _own_texts(self) -> list[str]:
        """Return all texts that were read: passages, then sources and targets of the tasks' rows."""
        passages = [" ".join(words) for words in self._passages]
        return passages + [text for pairs in self._pairs.values() for pair in pairs for text in pair]

    def _words(self) -> set[str]:
        """Return every word of the mixture; a sample of the micro-world this large holds all of its words."""
        split = _word_split()
        if self._config.corpus == "microworld":
            rng = Speaker(f"{self._config.seed}/vocabulary")
            drawn = islice(skills.pairs(rng, told=0.5), VOCABULARY_PAIRS)
            texts = [text for pair in (*drawn, *skills.template_pairs(rng)) for text in pair]
            texts += islice(skills.texts(rng), VOCABULARY_PAIRS)
        else:
            texts = self._own_texts()
        return {word for text in set(texts) for word, _ in split.pre_tokenize_str(text.lower())}


_TEXT = Task(
    **{
        **{name: getattr(TASKS["squad"], name) for name in TASKS["squad"].__dataclass_fields__},
        "name": "pretraining",
        "max_source_tokens": 512,
        "max_target_tokens": 128,
    }
)


def encode_pairs(pairs: Iterable[Pair], tokenizer: Any) -> EncodedSplit:
    """Tokenise (source, target) texts."""
    examples = (Example(source=source, target=target) for source, target in pairs)
    return encode_examples(_TEXT, examples, tokenizer)


def new_model(config: PretrainConfig, tokenizer: Any) -> T5ForConditionalGeneration:
    """Return a T5 of the config's shape with fresh weights, drawn from its seed."""
    shape = config.shape
    torch.manual_seed(config.seed)
    facts: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": shape.width,
        "d_kv": shape.head_width,
        "num_heads": shape.heads,
        "d_ff": shape.feed_forward,
        "num_layers": shape.encoder_layers,
        "num_decoder_layers": shape.decoder_layers,
        "feed_forward_proj": shape.activation,
        "dropout_rate": shape.dropout,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    model = T5ForConditionalGeneration(T5Config(**facts))
    _start_matching(model, head_width=shape.head_width, heads=shape.heads)
    # The relative position bias needs a gradient, which sends scaled_dot_product_attention down its slow path.
    model.set_attn_implementation("eager")
    return model


@torch.no_grad()
def _start_matching(model: T5ForConditionalGeneration, *, head_width: int, heads: int) -> None:
    """Let the encoder's heads start by finding equal tokens, or by looking nearby, and by copying what they find.

    Query-key and value-output products that begin close to multiples of the identity are those of Trockman and Kolter
    (2023), https://arxiv.org/abs/2305.09828; position biases that begin as minus a slope times the distance those of
    Press et al. (2022), https://arxiv.org/abs/2108.12409. Half of the heads match, turned away from their own place;
    the others look nearby. On the micro-world this ends an early plateau that outlasts 2,000 steps without it.
    """
    config = model.config
    half = max(1, heads // 2)
    width = config.d_model
    matching = head_width * half
    # Two equal tokens of root-mean-square 1 then score MATCH_SCORE, unequal ones about a sixth of it.
    std = (MATCH_SCORE / (head_width * width)) ** 0.5
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            layers: Any = block.layer
            for layer in layers[:-1]:
                attention: Any = (
                    layer.SelfAttention if hasattr(layer, "SelfAttention") else layer.EncDecAttention
                )
                nn.init.orthogonal_(attention.v.weight)
                attention.o.weight.copy_(attention.v.weight.mT)
                if stack is model.encoder:
                    keys = torch.randn(matching, width) * std
                    attention.q.weight[:matching] = keys
                    attention.k.weight[:matching] = keys
    first: Any = model.encoder.block[0]
    bias_UA = first.layer[0].SelfAttention.relative_attention_bias.weight  # U buckets, A heads
    bias_UA.zero_()
    bias_UA[0, :half] = -MATCH_SCORE * 2 / 3
    distance_U = _bucket_distances(
        config.relative_attention_num_buckets, config.relative_attention_max_distance
    )
    for head in range(half, heads):
        bias_UA[:, head] = -NEARBY_SLOPE * 0.3 ** (head - half) * distance_U


def _bucket_distances(buckets: int, longest: int) -> Tensor:
    """Return the distance in tokens that each of T5's relative position buckets stands for, at most 30."""
    side = buckets // 2
    exact = side // 2
    near = torch.arange(exact, dtype=torch.float)
    far = exact * (longest / exact) ** (torch.arange(side - exact) / (side - exact))
    return torch.cat([near, far]).clamp(max=30).repeat(2)


@dataclass
class Pretraining:
    """A pre-training run in memory: model, optimizers and the step it has reached.

    Muon moves the matrices inside the blocks, AdamW the embeddings, biases and gains.
    """

    config: PretrainConfig
    model: T5ForConditionalGeneration
    optimizers: tuple[Muon, torch.optim.AdamW]
    step: int = 0

    @classmethod
    def start(cls, config: PretrainConfig, tokenizer: Any) -> Pretraining:
        """Begin a run."""
        model = new_model(config, tokenizer)
        matrices = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.ndim == 2 and ".layer." in name and "relative_attention_bias" not in name
        ]
        moved = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in model.parameters() if id(parameter) not in moved]
        return cls(
            config,
            model,
            (
                Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay),
                torch.optim.AdamW(
                    others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
                ),
            ),
        )

    def advance(self, stream_of: Callable[[int], BatchStream]) -> Iterator[PretrainProgress]:
        """Take the remaining steps, yielding after each; `stream_of` makes the stream of a phase.

        Raises:
            NonFiniteError: Loss or gradient is NaN or infinite; the step was not taken.
        """
        self.model.train()
        end = 0
        for number, phase in enumerate(self.config.phases):
            end += phase.steps
            if self.step < end:
                yield from self._advance_to(end, stream_of(number))

    def _advance_to(self, end: int, stream: BatchStream) -> Iterator[PretrainProgress]:
        while self.step < end:
            batch = stream.batch(self.step)
            torch.manual_seed(self.config.seed * 1_000_003 + self.step)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.config.learning_rate * _schedule(self.step, self.config)
            loss = _loss(self.model, batch)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            if not torch.isfinite(loss) or not torch.isfinite(norm):
                raise NonFiniteError(
                    f"loss {loss.item()} and gradient norm {norm.item()} at step {self.step + 1}; the last checkpoint "
                    "was kept; lower learning_rate"
                )
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            yield PretrainProgress(
                step=self.step, steps=self.config.steps, loss=loss.item(), tokens=int(batch.mask_BT.sum())
            )

    def checkpoint(self, facts: Mapping[str, Any]) -> Checkpoint:
        """Return the state of the run, to go on from later."""
        weights = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        moments = {
            f"{number}/{name}": tensor
            for number, optimizer in enumerate(self.optimizers)
            for name, tensor in optimizer_tensors(optimizer).items()
        }
        return Checkpoint(step=self.step, trainable=weights, optimizer=moments, best={}, facts=facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a state that `checkpoint` returned."""
        self.step = checkpoint.step
        self.model.load_state_dict(dict(checkpoint.trainable), strict=False)
        for number, optimizer in enumerate(self.optimizers):
            mine = f"{number}/"
            tensors = {
                name.removeprefix(mine): tensor
                for name, tensor in checkpoint.optimizer.items()
                if name.startswith(mine)
            }
            restore_optimizer(optimizer, tensors)


def _schedule(step: int, config: PretrainConfig) -> float:
    warmup = min(config.warmup_steps, config.steps // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.01, (config.steps - step) / max(1, config.steps - warmup))


def _loss(model: T5ForConditionalGeneration, batch: Batch) -> Tensor:
    output = model(
        input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BL, use_cache=False
    )
    loss: Tensor = output.loss
    return loss


@torch.no_grad()
def exact_match(
    model: T5ForConditionalGeneration, pairs: Mapping[str, Sequence[Pair]], tokenizer: Any, *, rows: int = 128
) -> dict[str, float]:
    """Return the share in percent of targets that a model predicts whole, by skill or task and as their `mean`.

    Teacher-forced: for answers of one token that is the greedy answer.
    """
    model.eval()
    scores: dict[str, float] = {}
    for name, mine in sorted(pairs.items()):
        hits = 0
        for batch in evaluation_batches(encode_pairs(mine, tokenizer), rows=rows, task_index=0):
            logits = model(
                input_ids=batch.input_ids_BT,
                attention_mask=batch.mask_BT,
                labels=batch.labels_BL,
                use_cache=False,
            ).logits
            right = ((logits.argmax(dim=-1) == batch.labels_BL) | (batch.labels_BL < 0)).all(dim=1)
            hits += int(right.sum())
        scores[name] = 100 * hits / len(mine)
    return {"mean": sum(scores.values()) / len(scores), **scores}


def recipe(
    config: PretrainConfig, model: nn.Module, tokenizer: Any, scores: dict[str, float]
) -> dict[str, Any]:
    """Return what a backbone was made by and what it reached, ready for JSON."""
    return {
        "schema": 1,
        "config": config.model_dump(mode="json", exclude=_NOT_OF_THE_RECIPE),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": weights_sha256(model),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "held_out_exact_match_percent": {name: round(score, 2) for name, score in scores.items()},
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _kept_tokenizer(output: Path, *, expected: str) -> Any:
    """Return the tokenizer that lies beside a run's checkpoints.

    Raises:
        ConfigError: It is missing or not the one that the run began with.
    """
    with suppress(OSError, ValueError):
        tokenizer = AutoTokenizer.from_pretrained(output)
        if tokenizer_sha256(tokenizer) == expected:
            return tokenizer
    raise ConfigError(
        f"{output} holds checkpoints but not the tokenizer that they were made with; put its files back or set output "
        "to a new directory"
    )


def pretrain(config: PretrainConfig, *, on_progress: Callable[[PretrainProgress], None]) -> dict[str, Any]:
    """Pre-train a backbone, save it under `config.output`, and return its recipe.

    A run that was cut short goes on from its newest checkpoint, and one that is complete is not done again.

    Raises:
        ConfigError, DataError: Something that the config points at cannot be used; nothing was trained.
        NonFiniteError: Training diverged; the last checkpoint is kept.
        StorageError: The disk refused.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    output = Path(config.output).expanduser()
    asked = config.model_dump(mode="json", exclude=_NOT_OF_THE_RECIPE)
    finished = output / "recipe.json"
    if finished.is_file():
        found: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        if found["config"] == asked:
            return found
        raise ConfigError(f"{output} holds a backbone made by another recipe; set output to a new directory")
    mixture = Mixture(config)
    checkpoints = output / "checkpoints"
    saved = load_checkpoint(checkpoints)
    if saved is not None and saved.facts["config"] != asked:
        raise ConfigError(f"{output} holds checkpoints of another recipe; set output to a new directory")
    if saved is None:
        tokenizer = mixture.tokenizer()
        # A unigram vocabulary comes out a little different each time, so a run must find its own again.
        with storage_errors(f"write {output}", where=output):
            tokenizer.save_pretrained(output)
    else:
        tokenizer = _kept_tokenizer(output, expected=saved.facts["tokenizer"])

    def stream_of(number: int) -> BatchStream:
        return BatchStream(
            [encode_pairs(mixture.phase(number), tokenizer)],
            seed=config.seed,
            rows=1,
            tokens=config.batch_tokens,
            pad_id=tokenizer.pad_token_id,
        )

    run = Pretraining.start(config, tokenizer)
    facts = {"config": asked, "tokenizer": tokenizer_sha256(tokenizer)}
    if saved is not None:
        run.restore(saved)
    for progress in run.advance(stream_of):
        on_progress(progress)
        if progress.step % config.checkpoint_steps == 0 and progress.step < progress.steps:
            save_checkpoint(checkpoints, run.checkpoint(facts))
    held_out = mixture.held_out()
    scores = exact_match(run.model, held_out, tokenizer) if held_out else {}
    made = recipe(config, run.model, tokenizer, scores)
    with storage_errors(f"write {output}", where=output):
        output.mkdir(parents=True, exist_ok=True)
        run.model.save_pretrained(output)
        write_durably(finished, json.dumps(made, indent=1).encode())
        shutil.rmtree(checkpoints, ignore_errors=True)
    return made
