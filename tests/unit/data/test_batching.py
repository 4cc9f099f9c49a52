from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from attempt_ray.data.batching import Batch, BatchStream, evaluation_batches, padded_widths
from attempt_ray.data.encoding import EncodedSplit, encode_examples
from attempt_ray.errors import DataError
from attempt_ray.tasks.spec import Example, Task

Make = Callable[..., EncodedSplit]


@pytest.fixture
def make_split(with_rule: Callable[..., Task], tokenizer: PreTrainedTokenizerFast) -> Make:
    def make(name: str, count: int, *, words: int = 30, seed: int = 0, target: str = "1") -> EncodedSplit:
        lengths = np.random.default_rng(seed).integers(1, words + 1, size=count)
        examples = [
            Example(
                source=" ".join(f"w{(number + place) % 100}" for place in range(length)),
                target=target,
                golds=(target,),
            )
            for number, length in enumerate(lengths)
        ]
        return encode_examples(with_rule(name=name), examples, tokenizer)

    return make


def _same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(value, getattr(other, name)) for name, value in vars(one).items())


def _dealt(stream: BatchStream, epoch: int = 0) -> Counter[tuple[int, int]]:
    first = epoch * stream.steps_per_epoch
    batches = [stream.batch(first + turn) for turn in range(stream.steps_per_epoch)]
    return Counter(
        pair for batch in batches for pair in zip(batch.task_B.tolist(), batch.row_B.tolist(), strict=True)
    )


@pytest.mark.parametrize("mixing", ["concatenate", "temperature"])
@pytest.mark.parametrize("tokens", [None, 256])
def test_a_batch_depends_on_seed_and_step_alone(make_split: Make, mixing: str, tokens: int | None) -> None:
    splits = [make_split("a", 90), make_split("b", 25, words=90)]

    def fresh(seed: int = 3) -> BatchStream:
        return BatchStream(splits, seed=seed, rows=8, tokens=tokens, mixing=mixing, mixing_temperature=3.0)  # type: ignore[arg-type]

    straight = fresh()
    steps = range(3 * straight.steps_per_epoch)
    in_order = [straight.batch(step) for step in steps]
    anyhow = fresh()
    for step in np.random.default_rng(0).permutation(steps).tolist():
        assert _same(anyhow.batch(step), in_order[step])
    assert not all(_same(fresh(4).batch(step), in_order[step]) for step in range(5))


@pytest.mark.parametrize("tokens", [None, 300])
def test_every_epoch_deals_every_row_once(make_split: Make, tokens: int | None) -> None:
    splits = [make_split("a", 91), make_split("b", 40), make_split("c", 3)]
    stream = BatchStream(splits, seed=1, rows=8, tokens=tokens)
    everything = Counter((task, row) for task, split in enumerate(splits) for row in range(len(split)))
    assert stream.rows_per_epoch == 134
    for epoch in range(3):
        assert _dealt(stream, epoch) == everything


def test_epochs_differ(make_split: Make) -> None:
    stream = BatchStream([make_split("a", 200)], seed=1, rows=8)
    first = [set(stream.batch(step).row_B.tolist()) for step in range(stream.steps_per_epoch)]
    second = [set(stream.batch(stream.steps_per_epoch + step).row_B.tolist()) for step in range(len(first))]
    assert sum(rows in first for rows in second) <= 2


def test_an_epoch_has_the_steps_of_the_paper(make_split: Make) -> None:
    stream = BatchStream([make_split("cb", 250)], seed=42, rows=32)
    assert stream.steps_per_epoch == 8
    sizes = sorted(len(stream.batch(step)) for step in range(8))
    assert sizes == [26] + [32] * 7


def test_a_batch_holds_the_rows_it_names(make_split: Make) -> None:
    splits = [make_split("a", 50), make_split("b", 50, seed=5, target="w1 w2 w3")]
    batch = BatchStream(splits, seed=1, rows=16, pad_id=77).batch(0)
    assert batch.task_B.unique().tolist() == [0, 1]
    assert (batch.labels_BL[batch.task_B == 0, 2:] == -100).all()
    for place, (task, row) in enumerate(zip(batch.task_B.tolist(), batch.row_B.tolist(), strict=True)):
        length, label_length = int(splits[task].lengths[row]), int(splits[task].label_lengths[row])
        rows = np.array([row])
        ids = splits[task].inputs(rows, width=length, pad_id=0)[0].tolist()
        assert batch.input_ids_BT[place, :length].tolist() == ids
        assert (batch.input_ids_BT[place, length:] == 77).all()
        assert batch.mask_BT[place].tolist() == [
            position < length for position in range(batch.input_ids_BT.shape[1])
        ]
        label = splits[task].labels(rows, width=label_length)[0].tolist()
        assert batch.labels_BL[place].tolist() == label + [-100] * (batch.labels_BL.shape[1] - label_length)
    assert [value.dtype for value in vars(batch).values()] == [
        torch.int64,
        torch.bool,
        torch.int64,
        torch.int64,
        torch.int64,
    ]


def test_labels_are_as_wide_as_the_batch_needs(make_split: Make) -> None:
    assert BatchStream([make_split("a", 9)], seed=1, rows=4).batch(0).labels_BL.shape[1] == 2


def test_widths_are_few(make_split: Make) -> None:
    assert padded_widths(np.array([1, 8, 9, 63, 64, 65, 96, 97, 348])).tolist() == [
        8, 8, 16, 64, 64, 96, 96, 128, 352,
    ]  # fmt: skip
    stream = BatchStream([make_split("a", 400, words=120)], seed=1, rows=8)
    widths = {stream.batch(step).input_ids_BT.shape[1] for step in range(2 * stream.steps_per_epoch)}
    assert widths <= {8, 16, 24, 32, 40, 48, 56, 64, 96, 128}


def test_rows_of_like_length_share_a_batch(make_split: Make) -> None:
    split = make_split("a", 400, words=120)
    stream = BatchStream([split], seed=1, rows=8)
    padded = sum(stream.batch(step).input_ids_BT.numel() for step in range(stream.steps_per_epoch))
    assert padded <= 1.05 * padded_widths(split.lengths).sum()


def test_a_token_budget_is_kept(make_split: Make) -> None:
    splits = [make_split("a", 150, words=90), make_split("b", 150, words=20)]
    stream = BatchStream(splits, seed=1, rows=8, tokens=512)
    cells = [stream.batch(step).input_ids_BT.numel() for step in range(stream.steps_per_epoch)]
    assert max(cells) <= 512
    assert np.mean(cells) > 400


def test_a_row_beyond_the_token_budget_stands_alone(make_split: Make) -> None:
    stream = BatchStream([make_split("a", 60, words=120)], seed=1, rows=8, tokens=64)
    batches = [stream.batch(step) for step in range(stream.steps_per_epoch)]
    assert {len(batch) for batch in batches if batch.input_ids_BT.numel() > 64} == {1}
    assert sum(len(batch) for batch in batches) == 60


def test_concatenated_tasks_appear_in_every_batch_in_their_share(make_split: Make) -> None:
    stream = BatchStream([make_split("a", 300), make_split("b", 100, words=100)], seed=1, rows=32)
    shares = [stream.batch(step).task_B.double().mean().item() for step in range(stream.steps_per_epoch - 1)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.03)
    assert min(shares) > 0.15


def test_temperature_deals_tasks_by_the_root_of_their_size(make_split: Make) -> None:
    splits = [make_split("a", 900), make_split("b", 100)]
    stream = BatchStream(splits, seed=1, rows=20, mixing="temperature", mixing_temperature=2.0)
    dealt = sum((_dealt(stream, epoch) for epoch in range(4)), Counter())
    by_task = Counter[int]()
    for (task, _), times in dealt.items():
        by_task[task] += times
    assert by_task[0] / by_task[1] == pytest.approx(3.0, rel=0.05)
    small = [dealt[1, row] for row in range(100)]
    assert min(small) >= 9
    assert max(small) <= 11


def test_temperature_one_is_proportional_to_size(make_split: Make) -> None:
    splits = [make_split("a", 90), make_split("b", 30)]
    plain = BatchStream(splits, seed=1, rows=8)
    heated = BatchStream(splits, seed=1, rows=8, mixing="temperature", mixing_temperature=1.0)
    assert _same(plain.batch(4), heated.batch(4))


def test_the_digest_tells_streams_apart(make_split: Make) -> None:
    split, other = make_split("a", 30), make_split("a", 30, seed=9)
    digest = BatchStream([split], seed=1, rows=8).digest
    assert digest == BatchStream([split], seed=1, rows=8).digest
    changed = [
        BatchStream([other], seed=1, rows=8),
        BatchStream([split], seed=2, rows=8),
        BatchStream([split], seed=1, rows=9),
        BatchStream([split], seed=1, rows=8, tokens=100),
        BatchStream([split, split], seed=1, rows=8),
    ]
    assert len({digest, *(stream.digest for stream in changed)}) == 6


def test_a_stream_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="at least one task"):
        BatchStream([], seed=1, rows=8)


def test_evaluation_sees_every_row_once_longest_first(make_split: Make) -> None:
    split = make_split("a", 45, words=70)
    batches = list(evaluation_batches(split, rows=10, task_index=3))
    assert sorted(row for batch in batches for row in batch.row_B.tolist()) == list(range(45))
    assert all((batch.task_B == 3).all() for batch in batches)
    widths = [batch.input_ids_BT.shape[1] for batch in batches]
    assert all(wide >= narrow for wide, narrow in pairwise(widths))


@pytest.mark.parametrize("tokens", [1, 64, 10_000])
def test_evaluation_batches_stay_within_their_tokens(make_split: Make, tokens: int) -> None:
    batches = list(evaluation_batches(make_split("a", 45), rows=10, task_index=0, tokens=tokens))
    assert sorted(row for batch in batches for row in batch.row_B.tolist()) == list(range(45))
    assert all(len(batch) == 1 or batch.input_ids_BT.numel() <= tokens for batch in batches)
    assert len(batches) == {1: 45, 10_000: 1}.get(tokens, len(batches))


def test_a_batch_moves_whole(make_split: Make) -> None:
    batch = BatchStream([make_split("a", 9)], seed=1, rows=4).batch(0)
    assert _same(batch.to("cpu"), batch)
