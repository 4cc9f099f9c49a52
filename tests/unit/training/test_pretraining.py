from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attempt_ray.config import BackboneConfig, PretrainConfig
from attempt_ray.errors import ConfigError, DataError
from attempt_ray.model.backbone import load_backbone
from attempt_ray.tasks import TASKS
from attempt_ray.training import pretraining
from attempt_ray.training.pretraining import (
    Mixture,
    PretrainProgress,
    corrupt,
    pretrain,
    told_pair,
    word_tokenizer,
)

SHAPE = {
    "width": 16,
    "head_width": 8,
    "heads": 2,
    "feed_forward": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
}


@pytest.fixture
def recipe_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PretrainConfig]:
    monkeypatch.setattr(pretraining, "HELD_OUT_PAIRS", 40)
    monkeypatch.setattr(pretraining, "VOCABULARY_PAIRS", 200)

    def make(output: str = "made", **changes: object) -> PretrainConfig:
        phases = [
            {"steps": 3, "pairs": 60, "texts": 10, "told": 0.0, "variety": 0.0},
            {"steps": 3, "pairs": 60, "texts": 10, "told": 0.5},
        ]
        facts = {"shape": SHAPE, "phases": phases, "batch_tokens": 256, "checkpoint_steps": 2, "threads": 1}
        return PretrainConfig.model_validate({**facts, "output": str(tmp_path / output), **changes})

    return make


@given(st.integers(2, 60), st.integers(0, 10_000), st.floats(0.05, 0.6), st.floats(1.0, 4.0))
def test_corruption_loses_no_word(length: int, seed: int, rate: float, mean_span: float) -> None:
    words = [f"w{index}" for index in range(length)]
    source, target = corrupt(words, Random(seed), rate=rate, mean_span=mean_span, sentinels=5)
    spans: dict[str, list[str]] = {}
    for word in target.split():
        if word.startswith("<extra_id_"):
            current = spans.setdefault(word, [])
        else:
            current.append(word)
    repaired = [found for word in source.split() for found in spans.get(word, [word])]
    assert repaired == words
    assert all(spans.values())


def test_words_are_one_token_each_and_punctuation_stands_apart() -> None:
    tokenizer = word_tokenizer(["tom", "5.0", ".", "?", "premise:"], sentinels=2)
    ids = tokenizer("Premise: tom 5.0. <extra_id_1> tom? sue")["input_ids"]
    tokens = ["premise:", "tom", "5.0", ".", "<extra_id_1>", "tom", "?", "<unk>", "</s>"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_a_made_backbone_loads_and_its_recipe_says_how(recipe_of: Callable[..., PretrainConfig]) -> None:
    config = recipe_of()
    seen: list[PretrainProgress] = []
    made = pretrain(config, on_progress=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    backbone = load_backbone(BackboneConfig(name=config.output))
    assert backbone.identity.weights_sha256 == made["weights_sha256"]
    assert backbone.identity.tokenizer_sha256 == made["tokenizer_sha256"]
    assert json.loads((Path(config.output) / "recipe.json").read_text()) == made
    assert PretrainConfig.model_validate(made["config"]).phases == config.phases
    assert not (Path(config.output) / "checkpoints").exists()


def test_a_complete_run_is_not_done_again(recipe_of: Callable[..., PretrainConfig]) -> None:
    config = recipe_of()
    first = pretrain(config, on_progress=lambda _: None)
    seen: list[PretrainProgress] = []
    assert pretrain(config, on_progress=seen.append) == first
    assert not seen


@pytest.mark.parametrize("stop", [3, 4])
def test_an_interrupted_run_ends_as_if_never_stopped(
    recipe_of: Callable[..., PretrainConfig], stop: int
) -> None:
    def interrupt(progress: PretrainProgress) -> None:
        if progress.step == stop:
            raise KeyboardInterrupt

    whole = pretrain(recipe_of("whole"), on_progress=lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe_of("cut"), on_progress=interrupt)
    seen: list[PretrainProgress] = []
    assert pretrain(recipe_of("cut"), on_progress=seen.append)["weights_sha256"] == whole["weights_sha256"]
    assert seen[0].step == 3


def _interrupted(config: PretrainConfig) -> Path:
    def interrupt(progress: PretrainProgress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, on_progress=interrupt)
    return Path(config.output)


def test_an_interrupted_run_goes_on_with_its_own_vocabulary(
    recipe_of: Callable[..., PretrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupted(recipe_of())
    monkeypatch.setattr(Mixture, "tokenizer", lambda _: pytest.fail("a new vocabulary was made"))
    pretrain(recipe_of(), on_progress=lambda _: None)


def test_an_interrupted_run_without_its_vocabulary_is_told(
    recipe_of: Callable[..., PretrainConfig],
) -> None:
    output = _interrupted(recipe_of())
    for kept in output.glob("tokenizer*"):
        kept.unlink()
    with pytest.raises(ConfigError, match="not the tokenizer that they were made with"):
        pretrain(recipe_of(), on_progress=lambda _: None)


def test_another_recipe_is_not_mixed_in(recipe_of: Callable[..., PretrainConfig]) -> None:
    _interrupted(recipe_of())
    with pytest.raises(ConfigError, match="checkpoints of another recipe; set output"):
        pretrain(recipe_of(seed=5), on_progress=lambda _: None)
    pretrain(recipe_of(), on_progress=lambda _: None)
    with pytest.raises(ConfigError, match="backbone made by another recipe; set output"):
        pretrain(recipe_of(seed=5), on_progress=lambda _: None)


def test_texts_and_tasks_of_ones_own_make_a_subword_backbone(
    recipe_of: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    text = "the old mill stands by the river and its wheel turns all day in the cold water"
    lines = [json.dumps({"text": f"{text} {number} " * 3}) for number in range(40)]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "mill.jsonl").write_text("\n".join(lines))
    config = recipe_of(
        corpus="files",
        texts=[str(tmp_path / "texts")],
        tasks=["sst2"],
        data={"origin": "embedded", "label_words": "words", "max_train_rows": 50},
        tokenizer="unigram",
        vocabulary_size=200,
        phases=[{"steps": 2, "pairs": 20, "texts": 30}],
    )
    made = pretrain(config, on_progress=lambda _: None)
    assert set(made["held_out_exact_match_percent"]) == {"mean", "sst2"}
    backbone = load_backbone(BackboneConfig(name=config.output))
    ids = backbone.tokenizer("the old mill <extra_id_0>")["input_ids"]
    assert backbone.tokenizer.decode(ids, skip_special_tokens=True).strip() == "the old mill"
    assert backbone.tokenizer.convert_tokens_to_ids("<extra_id_0>") in ids


def test_a_told_pair_lists_the_words_to_answer_with_in_order_of_class() -> None:
    rng = Random(0)
    pair = ("mnli premise: it rains hypothesis: it is wet", "neutral")
    forms = set()
    for _ in range(200):
        source, target = told_pair(TASKS["mnli"], pair, ("entailment", "neutral", "contradiction"), rng)
        told, text = source.split(" : ")
        task, *words = told.split()
        assert (task, len(set(words)), words[1]) == ("mnli", 3, target)
        forms.add(
            text.removeprefix(f"{text.split()[0]} ") if not text.startswith(("premise", "sent")) else text
        )
    assert forms == {"premise: it rains hypothesis: it is wet", "sentence1: it rains sentence2: it is wet"}


def test_pairs_can_be_capped_task_by_task(recipe_of: Callable[..., PretrainConfig]) -> None:
    config = recipe_of(
        corpus="files",
        tasks=["sst2", "mnli"],
        data={"origin": "embedded", "label_words": "words", "max_train_rows": 50},
        phases=[{"steps": 1, "pairs": {"sst2": 7, "mnli": 90}, "texts": 0, "told": 0.0}],
    )
    counts = Counter(source.split()[0] for source, _ in Mixture(config).phase(0))
    assert counts == {"sst2": 7, "mnli": 50}
    with pytest.raises(ValueError, match="names qqp, which the mixture does not have"):
        recipe_of(corpus="files", tasks=["sst2"], phases=[{"steps": 1, "pairs": {"qqp": 7}, "texts": 0}])


def test_texts_that_are_not_there_are_told(recipe_of: Callable[..., PretrainConfig], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text file or directory"):
        pretrain(
            recipe_of(corpus="files", texts=[str(tmp_path / "nowhere")], tokenizer="unigram"),
            on_progress=lambda _: None,
        )
