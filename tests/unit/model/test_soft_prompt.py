from __future__ import annotations

import pytest
import torch

from attempt_ray.errors import BackboneError, ConfigError
from attempt_ray.model.soft_prompt import (
    SoftPrompts,
    from_average,
    from_labels,
    from_normal,
    from_prompt,
    from_text,
    from_vocabulary,
)

WIDTH = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embedding(rows: int = 6000) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=generator(1))


def rows_of(prompt: torch.Tensor, matrix: torch.Tensor) -> list[int]:
    matches = (prompt[:, None] == matrix[None]).all(dim=-1)
    assert (matches.sum(dim=1) == 1).all()
    return matches.int().argmax(dim=1).tolist()


def test_vocabulary_rows_are_distinct_rows_of_the_pretrained_matrix_below_the_top():
    matrix = embedding()
    ids = rows_of(from_vocabulary(matrix, 100, top=5000, generator=generator()), matrix)
    assert len(set(ids)) == 100
    assert max(ids) < 5000


def test_vocabulary_draw_follows_its_seed():
    matrix = embedding()
    first, again, other = (
        from_vocabulary(matrix, 5, top=5000, generator=generator(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_vocabulary_smaller_than_the_prompt_is_refused():
    with pytest.raises(ConfigError, match="more than the 4 vocabulary rows"):
        from_vocabulary(embedding(4), 5, top=5000, generator=generator())


@pytest.mark.parametrize(("length", "ids"), [(2, [7, 8]), (3, [7, 8, 9]), (5, [7, 8, 9, 7, 8])])
def test_text_is_repeated_or_cut(length, ids):
    matrix = embedding()
    assert torch.equal(from_text(matrix, length, ids=[7, 8, 9]), matrix[ids])


def test_text_without_tokens_is_refused():
    with pytest.raises(ConfigError, match="no tokens"):
        from_text(embedding(), 3, ids=[])


def test_labels_open_the_prompt_with_the_mean_of_each_label():
    matrix = embedding()
    prompt = from_labels(matrix, 5, labels=[[3], [4, 5]], top=5000, generator=generator())
    assert prompt.shape == (5, WIDTH)
    assert torch.equal(prompt[0], matrix[3])
    torch.testing.assert_close(prompt[1], (matrix[4] + matrix[5]) / 2)
    assert len(rows_of(prompt[2:], matrix)) == 3


def test_labels_beyond_the_length_are_left_out():
    matrix = embedding()
    prompt = from_labels(matrix, 2, labels=[[3], [4], [5]], top=5000, generator=generator())
    assert torch.equal(prompt, matrix[3:5])


def test_another_prompt_is_copied():
    prompt = torch.randn(3, WIDTH)
    copy = from_prompt(prompt, 3, width=WIDTH)
    assert torch.equal(copy, prompt)
    assert copy.data_ptr() != prompt.data_ptr()


@pytest.mark.parametrize(
    ("shape", "error", "says"),
    [((4, WIDTH), ConfigError, "prompt.length=4"), ((3, 9), BackboneError, r"\(3, 9\).*\[3, 8\]")],
)
def test_a_prompt_that_does_not_fit_is_refused(shape, error, says):
    with pytest.raises(error, match=says):
        from_prompt(torch.zeros(shape), 3, width=WIDTH)


def test_average_is_weighted_and_scaled_to_one():
    prompts = [torch.full((2, WIDTH), value) for value in (1.0, 5.0)]
    assert torch.equal(from_average(prompts, 2, width=WIDTH), torch.full((2, WIDTH), 3.0))
    torch.testing.assert_close(
        from_average(prompts, 2, width=WIDTH, weights=(3, 1)), torch.full((2, WIDTH), 2.0)
    )


@pytest.mark.parametrize(
    ("count", "weights", "says"),
    [(0, (), "no prompt"), (2, (1.0,), "1 values for 2"), (2, (1.0, -1.0), "sum to 0")],
)
def test_average_refuses_weights_that_mean_nothing(count, weights, says):
    with pytest.raises(ConfigError, match=says):
        from_average([torch.zeros(2, WIDTH)] * count, 2, width=WIDTH, weights=weights)


def test_normal_has_the_asked_spread():
    prompt = from_normal(200, 64, std=2.0, generator=generator())
    assert prompt.std().item() == pytest.approx(2.0, rel=0.05)


def test_prompts_are_picked_row_by_row_in_float32():
    prompts = SoftPrompts(torch.randn(3, 2, WIDTH, dtype=torch.bfloat16))
    picked = prompts(torch.tensor([2, 0, 2]))
    assert picked.dtype == torch.float32
    assert torch.equal(picked, prompts.prompts_NPH[[2, 0, 2]])
    assert torch.equal(prompts.keys(torch.tensor([1])), prompts.prompts_NPH[1:2].amax(dim=1))


def test_a_prompt_of_100_positions_on_t5_base_is_76800_numbers():
    prompts = SoftPrompts(torch.empty(1, 100, 768, device="meta"))
    assert sum(parameter.numel() for parameter in prompts.parameters()) == 76_800
