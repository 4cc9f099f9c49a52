from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch

from attempt_ray.config import METHODS as FACTS
from attempt_ray.config import TrainingConfig, parse
from attempt_ray.data.batching import Batch
from attempt_ray.errors import BackboneError, ConfigError
from attempt_ray.model.methods import (
    AttemptMixture,
    FineTuning,
    PromptTuning,
    build_method,
    initial_prompts,
    losses,
)
from attempt_ray.tasks import get_task

LENGTH, WIDTH = 6, 32
TASKS = [get_task(name) for name in ("rte", "cb", "wnli")]
SOURCES = ("mnli", "qqp", "squad")
LENGTHS = (9, 4, 1, 6, 9, 3)


def make_config(**sections):
    base = {"prompt": {"length": LENGTH}, "attention": {"sources": list(SOURCES), "bottleneck": 5}}
    return parse([base, sections])


def source_prompts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    # In an order of their own: the config's order is what counts.
    return {
        name: torch.randn(LENGTH, WIDTH, generator=generator) * 4
        for name in ("squad", "record", "qqp", "mnli")
    }


def initial(tasks: int = len(TASKS)) -> torch.Tensor:
    return torch.randn(tasks, LENGTH, WIDTH, generator=torch.Generator().manual_seed(6)) * 3


def make_method(backbone, /, *, tasks=TASKS, start=None, prior=None, center=None, **sections):
    start = initial(len(tasks)) if start is None else start
    config = make_config(**sections)
    return build_method(
        config, backbone, tasks=tasks, sources=source_prompts(), prior=prior, initial=start, center=center
    ).eval()


def make_attempt(backbone, /, **options):
    sections = {"attention": {"temperature": -1.0}} | options
    method = make_method(backbone, **sections)
    if method.attention is not None:
        # Larger than its start, so that weights differ from row to row.
        torch.nn.init.normal_(method.attention.up.weight, generator=torch.Generator().manual_seed(1))
        torch.nn.init.normal_(method.attention.down.weight, generator=torch.Generator().manual_seed(2))
    return method


def mixed_batch(width: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(0)
    mask_BT = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    ids_BT = torch.zeros(len(LENGTHS), width, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        ids_BT[row, :length] = torch.randint(3, 47, (length,), generator=generator)
    return Batch(
        input_ids_BT=ids_BT,
        mask_BT=mask_BT,
        labels_BL=torch.tensor(
            [[3, 1, -100], [8, 9, 1], [4, 1, -100], [3, 1, -100], [20, 21, 1], [4, 1, -100]]
        ),
        task_B=torch.tensor([2, 0, 1, 0, 2, 1]),
        row_B=torch.arange(len(LENGTHS)),
    )


def rows_of(batch: Batch, rows: list[int]) -> Batch:
    """The rows alone, without the padding that their neighbours cost them."""
    inputs = int(batch.mask_BT[rows].sum(dim=1).max())
    labels = int((batch.labels_BL[rows] != -100).sum(dim=1).max())
    return Batch(
        input_ids_BT=batch.input_ids_BT[rows, :inputs],
        mask_BT=batch.mask_BT[rows, :inputs],
        labels_BL=batch.labels_BL[rows, :labels],
        task_B=batch.task_B[rows],
        row_B=batch.row_B[rows],
    )


METHODS = {
    "attempt": {"method": "attempt", "attention": {"temperature": -1.0}},
    "auto": {"method": "attempt", "attention": {"temperature": "auto"}},
    "uniform": {"method": "attempt", "attention": {"weights": "uniform"}},
    "no target": {"method": "attempt", "attention": {"target": "none"}},
    "single source": {"method": "attempt", "attention": {"sources": ["qqp"]}},
    "prompt tuning": {"method": "prompt_tuning"},
    "shared prompt": {"method": "prompt_tuning", "prompt": {"shared": True}},
    "fine-tuning": {"method": "finetune"},
    "adapter": {"method": "adapter", "adapter": {"reduction": 4}},
    "bitfit": {"method": "bitfit"},
    "lora": {"method": "lora", "lora": {"rank": 2}},
    "mpt": {"method": "mpt"},
    "dept": {"method": "dept", "dept": {"length": LENGTH, "rank": 3, "positions": 5}},
}


def moved(method):
    """The method away from its start, at which some change nothing and all tasks are alike."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in method._trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return method


@pytest.mark.parametrize("name", FACTS)
def test_every_method_of_the_config_is_a_file_that_builds(name):
    assert callable(import_module(f"attempt_ray.model.methods.{name}").build)


def test_a_method_is_one_file_and_one_line(backbone, monkeypatch):
    file = ModuleType("attempt_ray.model.methods.echo")
    file.build = import_module("attempt_ray.model.methods.prompt_tuning").build
    monkeypatch.setitem(sys.modules, file.__name__, file)
    monkeypatch.setitem(FACTS, "echo", FACTS["prompt_tuning"])
    assert isinstance(make_method(backbone, method="echo"), PromptTuning)


@pytest.mark.parametrize("family", ["t5", "t5-v1_1", "mt5"])
@pytest.mark.parametrize("name", ["attempt", "prompt tuning", "adapter", "bitfit", "lora", "mpt", "dept"])
def test_a_mixed_batch_equals_its_rows_one_by_one(make_backbone, family, name):
    method = moved(make_attempt(make_backbone(family), **METHODS[name]))
    batch = mixed_batch()
    alone = [method.loss(rows_of(batch, [row])).item() for row in range(len(batch))]
    tokens_B = (batch.labels_BL != -100).sum(dim=1)
    expected = (torch.tensor(alone) * tokens_B).sum() / tokens_B.sum()
    torch.testing.assert_close(method.loss(batch), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_scores_a_mixed_batch_like_its_rows(backbone, name):
    method = moved(make_attempt(backbone, **METHODS[name]))
    batch, candidates_CL = mixed_batch(), backbone.encode_candidates(["0", "1", "w1 w2"])
    together = method.score_labels(batch, candidates_CL)
    for row in range(len(batch)):
        alone = method.score_labels(rows_of(batch, [row]), candidates_CL)
        torch.testing.assert_close(together.logprob_BC[row], alone.logprob_BC[0], atol=1e-5, rtol=0)
        if together.weights_BK is not None:
            torch.testing.assert_close(together.weights_BK[row], alone.weights_BK[0], atol=1e-5, rtol=0)
    assert (together.weights_BK is not None) == bool(method.candidates)


def test_padding_moves_neither_prompt_nor_loss(backbone):
    method = make_attempt(backbone)
    batch, wide = mixed_batch(), mixed_batch(width=24)
    narrow_mixed, wide_mixed = (
        method.instance_prompts(backbone.embed(each.input_ids_BT), each.mask_BT, each.task_B)
        for each in (batch, wide)
    )
    assert torch.equal(narrow_mixed.prompts_BPH, wide_mixed.prompts_BPH)
    torch.testing.assert_close(method.loss(batch), method.loss(wide), atol=1e-5, rtol=0)


def test_authors_pooling_reads_padding_as_one_fixed_width_whatever_the_batch(backbone):
    method = make_attempt(
        backbone, attention={"temperature": -1.0, "pooling": "authors", "authors_width": 24}
    )
    masked = make_attempt(backbone)
    prompts = [
        each.instance_prompts(backbone.embed(batch.input_ids_BT), batch.mask_BT, batch.task_B).prompts_BPH
        for each, batch in ((method, mixed_batch()), (method, mixed_batch(width=24)), (masked, mixed_batch()))
    ]
    assert torch.equal(prompts[0], prompts[1])
    assert not torch.allclose(prompts[0], prompts[2], atol=1e-3)


@pytest.mark.parametrize("name", ["attempt", "prompt tuning", "mpt", "dept"])
def test_mixed_generation_equals_each_task_alone(backbone, name):
    method = moved(make_attempt(backbone, **METHODS[name]))
    batch = mixed_batch()
    together = method.generate(batch, max_new_tokens=6).ids_BL
    for task in range(len(TASKS)):
        rows = (batch.task_B == task).nonzero().flatten().tolist()
        alone = method.generate(rows_of(batch, rows), max_new_tokens=6).ids_BL
        assert torch.equal(together[rows, : alone.shape[1]], alone)
        assert (together[rows, alone.shape[1] :] == backbone.pad_id).all()


def test_unlike_methods_share_a_forward_pass(backbone):
    batch = mixed_batch()
    methods = [
        moved(make_attempt(backbone, **METHODS[name])) for name in ("attempt", "mpt", "dept", "shared prompt")
    ]
    together = losses(backbone, [method.segment(batch) for method in methods])
    alone = [method.loss(batch) for method in methods]
    torch.testing.assert_close(torch.stack(together), torch.stack(alone), atol=1e-5, rtol=0)


def test_one_prompt_serves_all_tasks(backbone):
    method = make_attempt(backbone, **METHODS["shared prompt"])
    batch = mixed_batch()
    moved_tasks = Batch(**{**vars(batch), "task_B": (batch.task_B + 1) % len(TASKS)})
    assert method.trainable_parameters == LENGTH * WIDTH
    assert torch.equal(method.loss(batch), method.loss(moved_tasks))
    prompts = method.prompt_tensors()
    assert list(prompts) == ["rte", "cb", "wnli"]
    assert all(torch.equal(prompt_PH, initial()[0]) for prompt_PH in prompts.values())
    assert torch.equal(method.source_tensors()["prompt"], initial()[0])
    assert method.per_task == ()


@pytest.mark.parametrize("name", ["fine-tuning", "adapter", "bitfit", "lora"])
def test_a_backbone_that_was_taken_over_is_taken_by_no_other(backbone, name):
    make_method(backbone, **METHODS[name])
    with pytest.raises(BackboneError, match="has been changed by another method; load it anew"):
        make_method(backbone, **METHODS["adapter"])


def test_the_task_index_decides_the_answer(backbone):
    method = make_attempt(backbone)
    batch = mixed_batch()
    moved = Batch(**{**vars(batch), "task_B": (batch.task_B + 1) % len(TASKS)})
    candidates_CL = backbone.encode_candidates(["0", "1"])
    here, there = (method.score_labels(each, candidates_CL).logprob_BC for each in (batch, moved))
    assert ((here - there).abs() > 1e-4).all()


def test_gradient_reaches_prompts_of_the_batch_and_g_alone(backbone):
    method = make_attempt(backbone)
    batch = rows_of(mixed_batch(), [0, 1])  # tasks 2 and 0
    method.loss(batch).backward()
    assert (method.prompts.prompts_NPH.grad.abs().sum(dim=(1, 2)) > 0).tolist() == [True, False, True]
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.attention.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert method.mixture.sources_SPH.grad is None


def groups_of(method, **training):
    return {group["name"]: group for group in method.parameter_groups(TrainingConfig(**training))}


def test_two_groups_hold_the_right_tensors_and_rates(backbone):
    method = make_attempt(backbone)
    groups = groups_of(method, prompt_learning_rate=0.3, attention_learning_rate=0.1, weight_decay=1e-5)
    attention = method.attention
    assert list(groups) == ["prompts", "attention"]
    assert [id(p) for p in groups["prompts"]["params"]] == [id(method.prompts.prompts_NPH)]
    assert {id(p) for p in groups["attention"]["params"]} == {
        id(p)
        for p in (attention.down.weight, attention.up.weight, attention.norm.weight, attention.norm.bias)
    }
    assert (groups["prompts"]["lr"], groups["attention"]["lr"]) == (0.3, 0.1)
    assert {group["weight_decay"] for group in groups.values()} == {1e-5}


def test_an_optimizer_moves_each_group_at_its_own_rate(backbone):
    method = make_attempt(backbone)
    training = TrainingConfig(prompt_learning_rate=0.3, attention_learning_rate=0.01, weight_decay=0)
    optimizer = torch.optim.AdamW(method.parameter_groups(training))
    before = method.trainable_state()
    method.loss(mixed_batch()).backward()
    optimizer.step()
    moved = {
        name: (tensor - before[name]).abs().max().item() for name, tensor in method.trainable_state().items()
    }
    # Adam's first step has the size of the learning rate.
    assert moved["prompts.prompts_NPH"] == pytest.approx(0.3, rel=1e-2)
    assert moved["attention.down.weight"] == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(
    ("attention", "names", "numbers"),
    [
        ({}, ["prompts", "attention"], 3 * LENGTH * WIDTH + 2 * WIDTH * 5 + 2 * WIDTH),
        ({"train_norm": False}, ["prompts", "attention"], 3 * LENGTH * WIDTH + 2 * WIDTH * 5),
        ({"frozen": True}, ["prompts"], 3 * LENGTH * WIDTH),
        ({"weights": "uniform"}, ["prompts"], 3 * LENGTH * WIDTH),
        ({"weights": "uniform_sources"}, ["prompts"], 3 * LENGTH * WIDTH),
        ({"target": "none"}, ["attention"], 2 * WIDTH * 5 + 2 * WIDTH),
    ],
)
def test_variants_train_what_they_say(backbone, attention, names, numbers):
    method = make_method(backbone, attention=attention)
    assert list(groups_of(method)) == names
    assert method.trainable_parameters == numbers


def test_candidates_follow_the_configs_order(backbone):
    method = make_method(backbone)
    assert method.candidates == (*SOURCES, "target")
    assert torch.equal(method.mixture.sources_SPH[2], source_prompts()["squad"])
    assert make_method(backbone, attention={"target": "none"}).candidates == SOURCES


def test_auto_temperature_aims_at_its_logit(backbone):
    method = make_method(backbone, attention={"temperature": "auto", "auto_logit": 1.5})
    spreads = [value for name, value in method.mixture.spreads().items() if name != "target"]
    assert method.attention.divisor == pytest.approx(WIDTH * sum(spreads) / len(spreads) / 1.5, rel=1e-5)


def test_prompts_and_g_stay_float32_on_a_bfloat16_backbone(make_backbone):
    method = make_attempt(make_backbone(dtype=torch.bfloat16), backbone={"dtype": "bfloat16"})
    batch = mixed_batch()
    loss = method.loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert {tensor.dtype for tensor in method.trainable_state().values()} == {torch.float32}
    assert {p.grad.dtype for p in method.parameters() if p.requires_grad} == {torch.float32}
    assert method.generate(batch, max_new_tokens=2).weights_BK.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in METHODS if FACTS[METHODS[name]["method"]].prompted])
def test_a_training_step_leaves_the_backbone_alone(backbone, name):
    before = backbone.fingerprint()
    method = make_attempt(backbone, **METHODS[name]).train()
    optimizer = torch.optim.AdamW(method.parameter_groups(TrainingConfig()))
    method.loss(mixed_batch()).backward()
    optimizer.step()
    assert backbone.fingerprint() == before == backbone.identity.weights_sha256


def test_fine_tuning_moves_the_backbone(backbone):
    method = make_method(backbone, method="finetune").train()
    assert isinstance(method, FineTuning)
    groups = groups_of(method, backbone_learning_rate=1e-3)
    assert list(groups) == ["backbone"]
    assert groups["backbone"]["lr"] == 1e-3
    assert method.trainable_parameters == sum(p.numel() for p in backbone.model.parameters())
    optimizer = torch.optim.AdamW(method.parameter_groups(TrainingConfig()))
    method.loss(mixed_batch()).backward()
    optimizer.step()
    assert backbone.fingerprint() != backbone.identity.weights_sha256


@pytest.mark.parametrize("name", METHODS)
def test_trainable_state_comes_back_exactly(make_backbone, name):
    method, fresh = (
        make_attempt(make_backbone(), **METHODS[name]),
        make_method(make_backbone(), **METHODS[name]),
    )
    with torch.no_grad():
        for _, parameter in method._trainable():
            parameter.add_(0.5)
    state = method.trainable_state()
    fresh.load_trainable_state(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in fresh.trainable_state().items())
    torch.testing.assert_close(fresh.loss(mixed_batch()), method.loss(mixed_batch()), atol=0, rtol=0)


def test_trainable_state_is_a_copy(backbone):
    method = make_method(backbone)
    state = method.trainable_state()
    with torch.no_grad():
        method.prompts.prompts_NPH.zero_()
    assert state["prompts.prompts_NPH"].abs().sum() > 0
    assert set(state) == {
        "prompts.prompts_NPH",
        "attention.down.weight",
        "attention.up.weight",
        "attention.norm.weight",
        "attention.norm.bias",
    }


def test_a_state_of_another_run_is_refused_and_nothing_is_set(backbone):
    method = make_method(backbone)
    before = method.trainable_state()
    with pytest.raises(ConfigError, match="this run trains"):
        method.load_trainable_state({"prompts.prompts_NPH": initial()})
    with pytest.raises(ConfigError, match=r"shape \[3, 2, 32\]; wanted \[3, 6, 32\]"):
        method.load_trainable_state(before | {"prompts.prompts_NPH": torch.zeros(3, 2, WIDTH)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.trainable_state().items())


def test_tensors_for_the_bank_are_named_as_it_names_them(backbone):
    method = make_method(backbone)
    prompts = method.prompt_tensors()
    assert list(prompts) == ["rte", "cb", "wnli"]
    assert torch.equal(prompts["cb"], initial()[1])
    assert sorted(method.attention_tensors()) == ["down.weight", "norm.bias", "norm.weight", "up.weight"]
    assert make_method(backbone, method="finetune").prompt_tensors() == {}
    assert make_method(backbone, method="prompt_tuning").attention_tensors() == {}


def test_a_prior_starts_g(make_backbone):
    prior = {name: tensor + 1 for name, tensor in make_method(make_backbone()).attention_tensors().items()}
    method = make_method(make_backbone(), prior=prior, attention={"frozen": True})
    assert all(torch.equal(tensor, prior[name]) for name, tensor in method.attention_tensors().items())


def test_a_prior_of_another_shape_is_refused(backbone):
    prior = make_method(backbone).attention_tensors()
    with pytest.raises(ConfigError, match=r"'down.weight' has shape \[5, 32\]; wanted \[7, 32\]"):
        make_method(backbone, prior=prior, attention={"bottleneck": 7})
    with pytest.raises(ConfigError, match=r"the prior holds prompt; wanted down\.weight"):
        make_method(backbone, prior={"prompt": initial()[0]})


def test_a_prior_brings_its_own_centre(make_backbone):
    centred = {"attention": {"center": True}}
    first = make_attempt(make_backbone("v1.0"), **centred, center=torch.ones(WIDTH))
    second = make_attempt(make_backbone("v1.0"), **centred, prior=first.attention_tensors(), seed=9)
    assert torch.equal(second.attention.center_H, torch.ones(WIDTH))
    plain = make_attempt(make_backbone("v1.0"))
    with pytest.raises(ConfigError, match=r"trained with a centre; set attention\.center=true"):
        make_attempt(make_backbone("v1.0"), prior=first.attention_tensors())
    with pytest.raises(ConfigError, match=r"trained without a centre; set attention\.center=false"):
        make_attempt(make_backbone("v1.0"), **centred, prior=plain.attention_tensors())
    with pytest.raises(ConfigError, match="got no rows to take the mean of"):
        make_attempt(make_backbone("v1.0"), **centred)


def test_equal_seeds_start_alike_and_others_do_not(make_backbone):
    def start(seed):
        config = make_config(seed=seed, method="attempt")
        return build_method(config, make_backbone(), tasks=TASKS, sources=source_prompts()).trainable_state()

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["prompts.prompts_NPH"], other["prompts.prompts_NPH"])
    assert not torch.equal(first["attention.down.weight"], other["attention.down.weight"])


def test_vocabulary_start_draws_pretrained_rows_for_all_tasks_alike(backbone):
    prompts_NPH = initial_prompts(make_config(), backbone, tasks=TASKS)
    rows = {tuple(row.tolist()) for row in backbone.vocabulary_VH}
    assert all(tuple(row.tolist()) in rows for row in prompts_NPH[0])
    assert torch.equal(prompts_NPH[0], prompts_NPH[2])
    method = build_method(make_config(method="prompt_tuning"), backbone, tasks=TASKS)
    assert isinstance(method, PromptTuning)
    assert torch.equal(method.prompts.prompts_NPH, prompts_NPH)


def test_text_start_embeds_the_text_without_its_end(backbone):
    config = make_config(prompt={"init": "text", "init_text": "w1 w2 w3 w4"})
    prompt_PH = initial_prompts(config, backbone, tasks=TASKS[:1])[0]
    ids = backbone.tokenizer.convert_tokens_to_ids(["w1", "w2", "w3", "w4", "w1", "w2"])
    assert torch.equal(prompt_PH, backbone.vocabulary_VH[ids])


def test_label_start_opens_with_the_tasks_own_labels(backbone):
    config = make_config(prompt={"init": "labels"})
    prompts_NPH = initial_prompts(config, backbone, tasks=TASKS)
    assert torch.equal(prompts_NPH[0, :2], backbone.vocabulary_VH[[3, 4]])
    with pytest.raises(ConfigError, match="'squad', which has no label words"):
        initial_prompts(config, backbone, tasks=[get_task("squad")])


def test_one_prompt_starts_all_tasks(backbone):
    method = make_method(backbone, start=initial()[0])
    assert torch.equal(method.prompts.prompts_NPH, initial()[:1].expand(3, -1, -1))
    assert isinstance(method, AttemptMixture)


def test_dropout_of_the_config_is_set(backbone):
    make_method(backbone, training={"dropout": 0.0})
    assert {m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


@pytest.mark.parametrize(
    ("sections", "error", "says"),
    [
        (
            {"attention": {"sources": ["mnli", "quad"]}},
            ConfigError,
            "no source prompt 'quad'; did you mean 'squad'",
        ),
        ({"attention": {"sources": ["mnli", "mnli"]}}, ConfigError, "names a task twice"),
        ({"attention": {"sources": []}}, ConfigError, "no source prompt"),
        ({"prompt": {"length": 7}}, ConfigError, "source prompt 'mnli' has 6 positions.*prompt.length=6"),
        ({"attention": {"target": "none", "frozen": True}}, ConfigError, "nothing trains"),
        ({"attention": {"target": "none", "weights": "uniform_sources"}}, ConfigError, "nothing trains"),
        *(
            ({"method": name, "backbone": {"dtype": "bfloat16"}}, ConfigError, "backbone.dtype=float32")
            for name, facts in FACTS.items()
            if not facts.prompted
        ),
        ({"method": "dept", "dept": {"length": 7}}, ConfigError, "has 6 positions; dept.length is 7"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(backbone, sections, error, says):
    with pytest.raises(error, match=says):
        make_method(backbone, **sections)


@pytest.mark.parametrize(
    ("start", "error", "says"),
    [
        (torch.zeros(LENGTH, 64), BackboneError, r"has shape \[6, 64\]; backbone 'tiny-t5' wants \[6, 32\]"),
        (torch.zeros(4, WIDTH), ConfigError, "prompt.length=4"),
        (torch.zeros(2, LENGTH, WIDTH), ConfigError, "got 2 prompts to start from for 3 tasks"),
    ],
)
def test_prompts_to_start_from_must_fit(backbone, start, error, says):
    with pytest.raises(error, match=says):
        make_method(backbone, start=start, method="prompt_tuning")


@pytest.mark.parametrize("init", ["prompt", "average"])
def test_starts_from_the_bank_need_its_prompts(backbone, init):
    with pytest.raises(ConfigError, match=r"prompt\.init_from"):
        build_method(make_config(method="prompt_tuning", prompt={"init": init}), backbone, tasks=TASKS)
