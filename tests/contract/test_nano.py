from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from attempt_ray.config import PRESETS, BackboneConfig, PretrainConfig, load_pretrain
from attempt_ray.data.microworld import MINIATURES, rows, skills
from attempt_ray.data.microworld.world import Speaker
from attempt_ray.model.backbone import PACKAGED, Backbone, load_backbone
from attempt_ray.tasks import TASKS
from attempt_ray.tasks.spec import TemplateOptions
from attempt_ray.training.pretraining import exact_match


@pytest.fixture(scope="module", params=["nano-small", "nano", "nano-large"])
def nano(request: pytest.FixtureRequest) -> Backbone:
    return load_backbone(BackboneConfig(name=request.param))


@pytest.fixture(scope="module")
def recipe(nano: Backbone) -> dict[str, object]:
    content: dict[str, object] = json.loads((PACKAGED / nano.identity.name / "recipe.json").read_text())
    return content


def test_the_shipped_nano_is_the_one_its_recipe_made(nano: Backbone, recipe: dict[str, object]) -> None:
    assert nano.identity.weights_sha256 == recipe["weights_sha256"]
    assert nano.identity.tokenizer_sha256 == recipe["tokenizer_sha256"]


def test_its_recipe_is_the_preset(nano: Backbone, recipe: dict[str, object]) -> None:
    made = PretrainConfig.model_validate(recipe["config"])
    preset = load_pretrain([Path(PRESETS) / "pretrain" / f"{nano.identity.name}.yaml"])
    places = {"output", "threads", "checkpoint_steps"}
    assert made.model_dump(exclude=places) == preset.model_dump(exclude=places)


def test_it_is_at_most_eight_megabytes(nano: Backbone) -> None:
    assert sum(path.stat().st_size for path in (PACKAGED / nano.identity.name).iterdir()) <= 8e6


def test_it_does_what_its_recipe_says(nano: Backbone, recipe: dict[str, object]) -> None:
    pairs = skills.by_skill(islice(skills.pairs(Speaker("fresh"), told=0.3), 300))
    reached = recipe["held_out_exact_match_percent"]
    assert isinstance(reached, dict)
    assert exact_match(nano.model, pairs, nano.tokenizer)["mean"] > reached["mean"] - 10


@pytest.mark.parametrize("task", sorted(MINIATURES))
def test_it_has_a_token_for_every_word_of_the_miniatures(nano: Backbone, task: str) -> None:
    for row in rows(task, "validation", seed=7, count=20):
        for words in skills.LABEL_WORDS:
            example = TASKS[task].eval_example(row, TemplateOptions(label_words=words))
            for text in (example.source, example.target):
                assert nano.tokenizer.unk_token_id not in nano.encode(text)
