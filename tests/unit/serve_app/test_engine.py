from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5ForConditionalGeneration

from attempt_ray.bank.manifest import Facts, Manifest, MixtureRecord, TensorRecord
from attempt_ray.bank.names import Kind, Reference, Version
from attempt_ray.bank.store import Bank
from attempt_ray.bank.versions import Loaded, encode_manifest, encode_tensors, sha256
from attempt_ray.config import Config, ServingConfig, parse
from attempt_ray.data.batching import evaluation_batches
from attempt_ray.data.encoding import encode_examples
from attempt_ray.errors import AttemptError, BackboneError, BankError, ConfigError, DataError, IntegrityError
from attempt_ray.model.answering import Answerer, Question, Reply
from attempt_ray.model.backbone import Backbone, load_backbone
from attempt_ray.model.published import backbone_record, load_published
from attempt_ray.tasks import TASKS, Example
from jobs.predict import predict
from serve_app.batcher import Batcher
from serve_app.engine import Answer, Engine, Row

MakeEngine = Callable[..., Engine]
BATCHES = int(os.environ.get("ATTEMPT_BATCHES", "320"))
"""Random batches that are compared with their rows alone, over all ways of answering."""
BATCHES_SEED = int(os.environ.get("ATTEMPT_BATCHES_SEED", "0"))
PROMPTS = {"rte": 2, "mrpc": 2, "cb": 2, "squad": 2}
FIELDS = {
    "rte": ("sentence1", "sentence2"),
    "mrpc": ("sentence1", "sentence2"),
    "cb": ("premise", "hypothesis"),
    "squad": ("question", "context"),
}


WIDTH = 16
Arrays = dict[str, np.ndarray[Any, Any]]


def prompt_of(seed: int, length: int = 3) -> Arrays:
    return {"prompt": np.random.default_rng(seed).normal(size=(length, WIDTH)).astype(np.float32)}


def attention_of(seed: int, bottleneck: int = 4, *, centred: bool = False) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"down.weight": (bottleneck, WIDTH), "up.weight": (WIDTH, bottleneck), "norm.bias": (WIDTH,)}
    shapes |= {"norm.weight": (WIDTH,)} | ({"center_H": (WIDTH,)} if centred else {})
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def mixed(sources: list[str], attention: str | None, **facts: Any) -> MixtureRecord:
    base: dict[str, Any] = {"divisor": 16.0, "pooling": "masked", "authors_width": 8, "weights": "learned"}
    base |= {"target": "trained", "sources": tuple(sources), "attention": attention}
    return MixtureRecord(**{**base, **facts})


class MemoryBank:
    """What a table reads, without files; it counts what was read."""

    def __init__(self, backbone: Backbone) -> None:
        self._record = backbone_record(backbone)
        self._versions: dict[str, tuple[Arrays, MixtureRecord | None]] = {}
        self.reads: list[str] = []

    def add(self, reference: str, tensors: Arrays, mixture: MixtureRecord | None = None) -> str:
        self._versions[reference] = (tensors, mixture)
        return reference

    def load(self, reference: str) -> Loaded:
        self.reads.append(reference)
        tensors, mixture = self._versions[reference]
        parsed = Reference.parse(reference)
        version = Version(parsed.kind, parsed.name, parsed.number or 1)
        manifest = Manifest(
            backbone=self._record,
            tasks=("rte",),
            config_digest="0" * 12,
            mixture=mixture,
            kind=version.kind,
            name=version.name,
            number=version.number,
            created="2026-01-01T00:00:00Z",
            tensors={
                name: TensorRecord(shape=array.shape, dtype="float32") for name, array in tensors.items()
            },
            files={},
        )
        return Loaded(version=version, manifest=manifest, tensors=tensors)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory, save_tiny_backbone: Callable[[Path], None]) -> Path:
    """The tiny backbone with weights so large that its answers depend on what it reads."""
    place = tmp_path_factory.mktemp("serving") / "backbone"
    save_tiny_backbone(place)
    model = T5ForConditionalGeneration.from_pretrained(place)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "relative" not in name:
            torch.nn.init.normal_(weight, std=0.5, generator=generator)
    with torch.no_grad():
        model.shared.weight[1] *= 3  # so that answers end
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def backbone(directory: Path) -> Backbone:
    return load_backbone(page(directory).backbone)


def page(directory: Path, **changes: Any) -> Config:
    return parse([{"backbone": {"name": str(directory)}}, changes])


@pytest.fixture
def make_engine(backbone: Backbone, directory: Path) -> Callable[..., Engine]:
    """Return a function from a bank and what differs in the config to an engine on the tiny backbone."""

    def make(bank: Any, **changes: Any) -> Engine:
        config = page(directory, **changes)
        own = config.backbone.forward == "own"
        return Engine(backbone if own else load_backbone(config.backbone), bank, config)

    return make


@pytest.fixture
def memory_bank(backbone: Backbone) -> MemoryBank:
    """A plain prompt and a mixture of every kind, some with a G of their own."""
    bank = MemoryBank(backbone)
    for number, name in enumerate(("mnli", "sst2", "qnli")):
        bank.add(f"source/{name}@v1", prompt_of(number))
        bank.add(f"source/{name}@v2", prompt_of(10 + number, 5))
    bank.add("attention/one@v1", attention_of(1))
    bank.add("attention/two@v1", attention_of(2, 6, centred=True))
    bank.add("attention/three@v1", attention_of(3))
    two, three = (
        ["source/mnli@v1", "source/sst2@v1"],
        [f"source/{name}@v2" for name in ("mnli", "sst2", "qnli")],
    )
    bank.add("target/rte@v1", prompt_of(20, 4))
    bank.add("target/rte@v2", prompt_of(21), mixed(two, "attention/one@v1"))
    bank.add("target/mrpc@v1", prompt_of(22, 5), mixed(three, "attention/two@v1", divisor=3.0))
    bank.add("target/mrpc@v2", prompt_of(23), mixed(two, "attention/three@v1", pooling="authors"))
    bank.add("target/cb@v1", prompt_of(24), mixed(two, None, weights="uniform"))
    bank.add("target/cb@v2", prompt_of(25), mixed(two, None, weights="uniform_sources"))
    bank.add("target/squad@v1", prompt_of(26, 5), mixed(three, "attention/two@v1", target="none"))
    bank.add("target/squad@v2", prompt_of(27, 7))
    return bank


@pytest.fixture
def publish(backbone: Backbone) -> Callable[..., str]:
    """Return a function that adds a version to a bank on disk and returns its reference."""

    def add(bank: Bank, kind: Kind, name: str, tensors: Arrays, mixture: MixtureRecord | None = None) -> str:
        facts = Facts(
            backbone=backbone_record(backbone), tasks=(name,), config_digest="0" * 12, mixture=mixture
        )
        return bank.publish(kind, name, tensors, facts).reference

    return add


def random_row(rng: random.Random) -> Row:
    task = rng.choice(sorted(PROMPTS))
    words = [" ".join(rng.choices([f"w{n}" for n in range(30)], k=rng.randint(1, 14))) for _ in range(2)]
    return Row(
        task=task,
        prompt=f"target/{task}@v{rng.randint(1, PROMPTS[task])}",
        fields=dict(zip(FIELDS[task], words, strict=True)),
        attention=True,
        max_new_tokens=rng.choice([None, 1, 5]) if task == "squad" else None,
    )


def answered(outcome: Answer | AttemptError) -> Answer:
    assert isinstance(outcome, Answer), outcome
    return outcome


def assert_alike(one: Answer, other: Answer) -> None:
    for name in (
        "task",
        "prompt",
        "answer",
        "meaning",
        "truncated",
        "input_tokens",
        "output_tokens",
        "finished",
    ):
        assert getattr(one, name) == getattr(other, name)
    for name in ("logprobs", "probabilities", "attention"):
        left, right = getattr(one, name), getattr(other, name)
        if left is None:
            assert right is None
        else:
            assert left == pytest.approx(right, abs=1e-5, rel=1e-6)


def gap(one: Answer, other: Answer) -> float:
    """Return the largest difference between log probabilities of two answers to one row."""
    pairs = zip((one.logprobs or {}).values(), (other.logprobs or {}).values(), strict=True)
    return max((abs(left - right) for left, right in pairs), default=0.0)


@pytest.mark.parametrize("decode", ["greedy", "labels"])
@pytest.mark.parametrize("forward", ["own", "transformers"])
def test_mixed_batches_equal_one_by_one(
    make_engine: MakeEngine, memory_bank: MemoryBank, decode: str, forward: str
) -> None:
    changes = {"evaluation": {"decode": decode, "max_new_tokens": 8}, "backbone": {"forward": forward}}
    alone = make_engine(memory_bank, **changes)
    rng = random.Random(BATCHES_SEED)
    batches = BATCHES // 8
    rows = [random_row(rng) for _ in range(max(60, batches // 2))]
    wanted = [answered(alone.answer([row])[0]) for row in rows]
    assert len({one.answer for one in wanted}) > 8
    compared, largest = 0, 0.0
    for pass_tokens in (None, 64):
        together = make_engine(memory_bank, serving={"pass_tokens": pass_tokens}, **changes)
        for _ in range(batches):
            places = rng.choices(range(len(rows)), k=rng.randint(2, 24))
            for place, found in zip(places, together.answer([rows[place] for place in places]), strict=True):
                assert_alike(wanted[place], answered(found))
                largest = max(largest, gap(wanted[place], answered(found)))
            compared += len(places)
    told = f"{2 * batches} batches, {compared} rows, log probabilities differ by at most {largest:.1e}"
    sys.stdout.write(told + "\n")


def test_a_label_is_the_answer_exactly_where_it_is_greedys(
    make_engine: MakeEngine, memory_bank: MemoryBank, backbone: Backbone
) -> None:
    answerer = Answerer(backbone, memory_bank, prompt_bytes=2**20)  # type: ignore[arg-type]
    rng = random.Random(3)
    questions = [
        Question(
            prompt=rng.choice(["target/rte@v1", "target/mrpc@v1", "target/squad@v2"]),
            ids=backbone.encode(" ".join(f"w{rng.randrange(30)}" for _ in range(rng.randint(1, 12)))),
            max_new_tokens=6,
        )
        for _ in range(60)
    ]
    free = [reply for reply in answerer.answer(questions) if isinstance(reply, Reply)]
    ended = [place for place, reply in enumerate(free) if 1 < reply.tokens < 6]
    assert len(ended) > 10
    closed = [
        replace(questions[place], labels=("w1 w2 w3 w4 w5", *["w7"] * (place % 3), free[place].text))
        for place in ended
    ]
    others = [replace(questions[place], labels=("w1 w2 w3 w4 w5", "w7 w9")) for place in ended]
    found = answerer.answer([*closed, *others])
    for place, question, yes, no in zip(ended, closed, found, found[len(closed) :], strict=False):
        assert isinstance(yes, Reply)
        assert isinstance(no, Reply)
        assert (yes.text, yes.label, yes.tokens) == (
            free[place].text,
            len(question.labels) - 1,
            free[place].tokens,
        )
        assert (no.text, no.label, no.tokens) == (free[place].text, None, free[place].tokens)
        assert len(no.logprobs) == 2


def test_an_answer_that_its_limit_cut_off_says_so(make_engine: MakeEngine, memory_bank: MemoryBank) -> None:
    engine = make_engine(memory_bank, evaluation={"max_new_tokens": 12})
    rows = [
        Row(task="squad", prompt=f"target/squad@v{n % 2 + 1}", text=f"w{n % 30} w{n // 30}")
        for n in range(90)
    ]
    whole = [answered(one) for one in engine.answer(rows)]
    ended = [place for place, one in enumerate(whole) if 2 < one.output_tokens < 12]
    assert len(ended) > 3
    for place in ended:
        assert whole[place].finished
        tokens = whole[place].output_tokens
        just, short = engine.answer(
            [replace(rows[place], max_new_tokens=most) for most in (tokens, tokens - 1)]
        )
        assert answered(just) == whole[place]
        assert (answered(short).finished, answered(short).output_tokens) == (False, tokens - 1)


def test_answers_are_those_of_the_published_method(
    make_engine: MakeEngine, memory_bank: MemoryBank, backbone: Backbone
) -> None:
    engine = make_engine(memory_bank, evaluation={"max_new_tokens": 6})
    rng = random.Random(1)
    memory_bank.show = lambda reference: memory_bank.load(reference).manifest  # type: ignore[attr-defined]
    for task_name, versions in PROMPTS.items():
        task = TASKS[task_name]
        for number in range(1, versions + 1):
            reference = f"target/{task_name}@v{number}"
            texts = [f"{task.prefix} w{rng.randrange(30)} w{rng.randrange(30)}" for _ in range(5)]
            found = [
                answered(one)
                for one in engine.answer(
                    [Row(task=task_name, prompt=reference, text=text, attention=True) for text in texts]
                )
            ]
            method, _ = load_published(memory_bank, reference, backbone=backbone, task=task_name)  # type: ignore[arg-type]
            split = encode_examples(
                task, [Example(source=text, target="") for text in texts], backbone.tokenizer
            )
            (batch,) = evaluation_batches(split, rows=5, task_index=0)
            labels = task.labels.get("digits", ())
            candidates_CL = backbone.encode_candidates(labels) if labels else None
            longest = candidates_CL.shape[1] if candidates_CL is not None else 6
            ids_BL, weights_BK = method.generate(batch, max_new_tokens=longest, candidates_CL=candidates_CL)
            rows = batch.row_B.tolist()
            assert [found[row].answer for row in rows] == backbone.decode(ids_BL)
            if candidates_CL is not None:
                logprob_BC = method.score_labels(batch, candidates_CL).logprob_BC
                ours = torch.tensor([list((found[row].logprobs or {}).values()) for row in rows])
                torch.testing.assert_close(ours, logprob_BC, atol=1e-5, rtol=1e-6)
            if weights_BK is None:
                assert all(one.attention is None for one in found)
            else:
                ours = torch.tensor([list((found[row].attention or {}).values()) for row in rows])
                torch.testing.assert_close(ours, weights_BK, atol=1e-6, rtol=1e-6)
                assert tuple(found[0].attention or {}) == method.candidates


@pytest.mark.parametrize("decode", ["greedy", "labels"])
def test_answers_are_those_of_the_predict_job(
    make_study: Callable[..., Config],
    make_engine: MakeEngine,
    publish: Callable[..., str],
    directory: Path,
    decode: str,
) -> None:
    config = make_study(evaluation={"decode": decode}, backbone={"name": str(directory)})
    bank = Bank(config.bank)
    sources = [
        publish(bank, "source", name, prompt_of(number)) for number, name in enumerate(("mnli", "sst2"))
    ]
    attention = publish(bank, "attention", "rte", attention_of(3))
    publish(bank, "target", "rte", prompt_of(4), mixed(sources, attention))
    rows = [{"sentence1": f"w{n} w{n + 1}", "sentence2": f"w{n + 2}"} for n in range(12)]
    told = predict(config, "rte", rows)
    engine = make_engine(bank, evaluation={"decode": decode})
    found = engine.answer(
        [Row(task="rte", prompt=told["prompt"], fields=row, attention=True) for row in rows]
    )
    for theirs, ours in zip(told["answers"], map(answered, found), strict=True):
        assert (theirs["answer"], theirs["meaning"]) == (ours.answer, ours.meaning)
        assert theirs["probabilities"] == pytest.approx(ours.probabilities, abs=1e-5)
        assert theirs["attention"] == pytest.approx(ours.attention, abs=1e-5)
        assert sum(theirs["probabilities"].values()) == pytest.approx(1)


def test_prompts_not_used_for_longest_give_way_and_come_back_the_same(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    rows = [
        Row(task="rte", prompt=memory_bank.add(f"target/t@v{n}", prompt_of(n)), text="w1 w2")
        for n in range(1, 7)
    ]
    wanted = make_engine(memory_bank).answer(rows)
    row_bytes = 4 * 16
    engine = make_engine(
        memory_bank, serving={"prompt_bytes": 3 * 4 * row_bytes}
    )  # three prompts of 3 + 1 rows
    memory_bank.reads.clear()
    engine.answer(rows[:3])
    assert (engine.loaded_prompts, engine.loaded_bytes) == (3, 3 * 4 * row_bytes)
    engine.answer([rows[0], rows[3]])
    engine.answer([rows[0], rows[2]])
    assert memory_bank.reads == [f"target/t@v{n}" for n in (1, 2, 3, 4)]
    # More prompts than there is room for are answered in several passes.
    for mine, theirs in zip(engine.answer(rows * 3), wanted * 3, strict=True):
        assert_alike(answered(theirs), answered(mine))
    assert engine.loaded_bytes <= 3 * 4 * row_bytes


def test_mixtures_are_right_while_their_sources_come_and_go(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    rng = random.Random(2)
    rows = [random_row(rng) for _ in range(40)]
    wanted = make_engine(memory_bank).answer(rows)
    small = make_engine(memory_bank, serving={"prompt_bytes": 45 * 64})
    for _ in range(4):
        places = rng.sample(range(len(rows)), 25)
        for place, found in zip(places, small.answer([rows[place] for place in places]), strict=True):
            assert_alike(answered(wanted[place]), answered(found))
        assert small.loaded_bytes <= 45 * 64


def test_a_prompt_beyond_the_whole_table_is_refused_and_the_others_are_served(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    memory_bank.add("target/long@v1", prompt_of(1, 30))
    engine = make_engine(memory_bank, serving={"prompt_bytes": 25 * 64})
    found = engine.answer(
        [Row(task="rte", prompt=f"target/{name}@v1", text="w1") for name in ("rte", "long", "rte")]
    )
    assert isinstance(found[1], ConfigError)
    assert "raise serving.prompt_bytes" in str(found[1])
    assert answered(found[0]) == answered(found[2])


def test_a_thousand_prompts_answer_in_one_batch_as_they_do_alone(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    rows = []
    for number in range(1, 1001):
        attention = memory_bank.add(f"attention/g@v{number}", attention_of(number)) if number % 2 else None
        mixture = mixed(["source/mnli@v1", "source/sst2@v1"], attention) if attention else None
        prompt = memory_bank.add(f"target/many@v{number}", prompt_of(number), mixture)
        rows.append(Row(task="rte", prompt=prompt, text=f"w{number % 30} w{number // 100}"))
    engine = make_engine(memory_bank)
    found = [answered(one) for one in engine.answer(rows)]
    assert engine.loaded_prompts == 1000 + 500 + 2
    assert len({tuple((one.logprobs or {}).values()) for one in found}) > 900
    for place in range(0, 1000, 97):
        assert_alike(found[place], answered(engine.answer([rows[place]])[0]))


def test_bad_versions_are_refused_and_the_others_served(
    make_engine: MakeEngine, publish: Callable[..., str], tmp_path: Path
) -> None:
    root = tmp_path / "bank"
    bank = Bank(str(root))
    good = publish(bank, "target", "good", prompt_of(1))
    damaged = publish(bank, "target", "damaged", prompt_of(2))
    tensors = root / "target" / "damaged" / "v000001" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x7f")
    other = publish(bank, "target", "other", prompt_of(3))
    manifest = bank.show(other)
    foreign = manifest.backbone.model_copy(update={"weights_sha256": "f" * 64})
    rewrite(root, other, manifest.model_copy(update={"backbone": foreign}))
    infinite = publish(bank, "target", "infinite", prompt_of(4))
    data, _ = encode_tensors({"prompt": np.full((3, 16), np.nan, dtype=np.float32)})
    manifest = bank.show(infinite)
    (root / "target" / "infinite" / "v000001" / "tensors.safetensors").write_bytes(data)
    rewrite(root, infinite, manifest.model_copy(update={"files": {"tensors.safetensors": sha256(data)}}))
    attention = publish(bank, "attention", "g", attention_of(5))
    long_source = publish(bank, "source", "long", prompt_of(6, 9))
    unlike = publish(bank, "target", "unlike", prompt_of(7), mixed([long_source], attention))
    engine = make_engine(bank)
    wanted = {
        good: Answer,
        damaged: IntegrityError,
        other: BackboneError,
        infinite: IntegrityError,
        attention: BankError,
        unlike: BankError,
        "target/absent@v1": BankError,
        "target/good": BankError,
        "nonsense": BankError,
    }
    found = engine.answer([Row(task="rte", prompt=prompt, text="w1 w2") for prompt in wanted])
    assert {prompt: type(one) for prompt, one in zip(wanted, found, strict=True)} == wanted
    assert engine.loaded_prompts == 1
    for prompt, kind in wanted.items():
        if kind is not Answer:
            with pytest.raises(kind):
                engine.load(prompt)


def rewrite(root: Path, reference: str, manifest: object) -> None:
    """Write a manifest with the digest that goes with it, as only a faulty publisher would."""
    directory = root / reference.partition("@")[0] / "v000001"
    content = encode_manifest(manifest)  # type: ignore[arg-type]
    (directory / "manifest.json").write_bytes(content)
    (directory / "manifest.sha256").write_text(f"{sha256(content)}  manifest.json\n")


def test_a_prompt_that_makes_the_backbone_overflow_is_the_error_of_its_rows_alone(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    huge = {"prompt": np.full((3, WIDTH), 3e38, dtype=np.float32)}
    memory_bank.add("target/huge@v1", huge, mixed(["source/mnli@v1"], None, weights="uniform"))
    engine = make_engine(memory_bank)
    for task in ("rte", "squad"):
        fine, bad, again = engine.answer(
            [Row(task=task, prompt=f"target/{name}@v1", text="w1 w2") for name in ("rte", "huge", "rte")]
        )
        assert isinstance(bad, BankError)
        assert "NaN or infinity" in str(bad)
        assert answered(fine) == answered(again)


def test_the_errors_of_rows_are_their_own(make_engine: MakeEngine, memory_bank: MemoryBank) -> None:
    engine = make_engine(memory_bank)
    prompt = "target/rte@v1"
    rows = {
        "no task 'rt'; did you mean 'rte'": Row(task="rt", prompt=prompt, text="w1"),
        "no row field 'sentence2'": Row(task="rte", prompt=prompt, fields={"sentence1": "w1"}),
        "field 'sentence1' holds None": Row(
            task="rte", prompt=prompt, fields={"sentence1": None, "sentence2": "w1"}
        ),
        "got neither": Row(task="rte", prompt=prompt),
        "got both": Row(task="rte", prompt=prompt, text="w1", fields={}),
        "max_new_tokens: got 0": Row(task="rte", prompt=prompt, text="w1", max_new_tokens=0),
    }
    good = Row(task="rte", prompt=prompt, text="w1 w2")
    found = engine.answer([good, *rows.values(), good])
    assert answered(found[0]) == answered(found[-1]) == answered(engine.answer([good])[0])
    for message, error in zip(rows, found[1:-1], strict=True):
        assert isinstance(error, DataError)
        assert message in str(error)


def test_rows_beyond_the_limit_are_cut_as_in_training_and_say_so(
    make_engine: MakeEngine, memory_bank: MemoryBank, backbone: Backbone
) -> None:
    engine = make_engine(memory_bank, data={"max_source_tokens": 6})
    for words in (5, 6, 40):
        text = " ".join(f"w{n % 30}" for n in range(words))
        prepared = engine.prepare(Row(task="rte", prompt="target/rte@v1", text=text))
        split = encode_examples(
            TASKS["rte"], [Example(source=text, target="")], backbone.tokenizer, max_source_tokens=6
        )
        wanted = split.inputs(np.array([0]), width=int(split.lengths[0]), pad_id=0)[0].tolist()
        assert list(prepared.question.ids) == wanted
        (found,) = engine.answer([prepared.row])
        assert answered(found).truncated == (words > 5)
        assert answered(found).input_tokens == min(words + 1, 6)


def test_streamed_pieces_joined_are_the_answer(make_engine: MakeEngine, memory_bank: MemoryBank) -> None:
    engine = make_engine(memory_bank, evaluation={"max_new_tokens": 12})
    several = 0
    for number in range(20):
        text = f"w{number} w{number + 3}"
        row = Row(task="squad", prompt="target/squad@v2", text=text, stream=True)
        (whole,) = engine.answer([row])
        pieces = list(engine.stream(row))
        assert "".join(pieces) == answered(whole).answer
        several += len(pieces) > 1
    assert several
    closed = Row(task="rte", prompt="target/rte@v1", text="w1", stream=True)
    assert "".join(engine.stream(closed)) == answered(engine.answer([closed])[0]).answer
    with pytest.raises(BankError):
        list(engine.stream(Row(task="rte", prompt="target/none", text="w1")))


def test_closed_rows_are_answered_before_open_ones_are_generated(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    engine = make_engine(memory_bank, evaluation={"decode": "labels", "max_new_tokens": 12})
    rows = [
        engine.prepare(Row(task=task, prompt=f"target/{task}@v2", text="w1 w2", stream=True))
        for task in ("squad", "rte", "squad", "mrpc")
    ]
    order = [index for index, found in engine.run(rows) if isinstance(found, Answer)]
    assert sorted(order) == [0, 1, 2, 3]
    assert set(order[:2]) == {1, 3}


def test_mixing_weights_are_told_only_where_asked_for(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    engine = make_engine(memory_bank)
    asked, unasked = engine.answer(
        [Row(task="rte", prompt="target/rte@v2", text="w1", attention=flag) for flag in (True, False)]
    )
    weights = answered(asked).attention
    assert weights is not None
    assert list(weights) == ["mnli", "sst2", "target"]
    assert sum(weights.values()) == pytest.approx(1)
    assert answered(unasked).attention is None


def test_a_loaded_prompt_counts_in_what_a_row_takes(make_engine: MakeEngine, memory_bank: MemoryBank) -> None:
    engine = make_engine(memory_bank)
    row = Row(task="squad", prompt="target/squad@v2", text="w1", max_new_tokens=9)
    before = engine.prepare(row).tokens
    engine.load("target/squad@v2")
    assert (before, engine.prepare(row).tokens) == (8 + 9, 7 + 8 + 9)


def test_a_mixture_without_a_g_or_sources_is_refused(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    def refusal(mixture: MixtureRecord) -> str:
        memory_bank.add("target/odd@v1", prompt_of(1), mixture)
        (found,) = make_engine(memory_bank).answer([Row(task="rte", prompt="target/odd@v1", text="w1")])
        assert isinstance(found, BankError)
        return str(found)

    assert "0 sources" in refusal(mixed([], "attention/one@v1"))
    assert "a G where weights are learned" in refusal(mixed(["source/mnli@v1"], None))
    assert "as a source, which is a G" in refusal(mixed(["attention/one@v1"], "attention/one@v1"))
    assert "as its G, which is a prompt" in refusal(mixed(["source/mnli@v1"], "source/sst2@v1"))


def test_rows_of_many_callers_get_through_the_batcher_what_they_get_alone(
    make_engine: MakeEngine, memory_bank: MemoryBank
) -> None:
    rng = random.Random(4)
    rows = [random_row(rng) for _ in range(40)]
    alone = make_engine(memory_bank)
    wanted = [answered(alone.answer([row])[0]) for row in rows]
    engine = make_engine(memory_bank)

    async def scenario() -> list[list[Answer | Exception]]:
        async with Batcher(engine, ServingConfig(batch_rows=16, batch_tokens=400)) as batcher:

            async def ask(place: int) -> list[Answer | Exception]:
                await asyncio.sleep(0.001 * (place % 7))
                prepared = engine.prepare(rows[place])
                answered = await batcher.answer([(prepared, prepared.tokens)], key=str(place % 3))
                return list(answered.found)

            found = await asyncio.gather(*map(ask, range(len(rows))))
            counts = batcher.snapshot()
            assert (counts.answered, counts.queued_rows) == (len(rows), 0)
            assert counts.batches < len(rows)
            streamed = engine.prepare(Row(task="squad", prompt="target/squad@v2", text="w1 w5", stream=True))
            *pieces, whole = [event async for event in batcher.stream(streamed, tokens=streamed.tokens)]
            assert isinstance(whole, Answer)
            assert "".join(map(str, pieces)) == whole.answer
            return found

    for one, (mine,) in zip(wanted, asyncio.run(asyncio.wait_for(scenario(), 30)), strict=True):
        assert isinstance(mine, Answer)
        assert_alike(one, mine)
