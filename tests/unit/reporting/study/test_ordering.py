from __future__ import annotations

from attempt_ray.reporting.study.bootstrap import Bootstrap
from attempt_ray.reporting.study.cells import join, read_study_file, scored
from attempt_ray.reporting.study.ordering import grid, ordering


def found(study):
    joined = join(read_study_file(study.write()), study.runs)
    return ordering(joined, Bootstrap(scored(joined)[0]))


def fill(study, *rows, tasks=("rte", "cb"), seeds=(1, 2, 3)):
    for row, skill, *ablation in rows:
        for task in tasks:
            for seed in seeds:
                study.add(row, skill, tasks=(task,), seed=seed, ablation=ablation[0] if ablation else None)


def test_rows_stand_by_their_mean_and_a_win_is_said_plainly(study) -> None:
    fill(study, ("prompt_tuning", 0.55), ("attempt", 0.95), ("finetune", 0.75))
    order = found(study)
    assert [line.row for line, _, _ in order.means] == ["attempt", "finetune", "prompt_tuning"]
    assert order.tasks == ("rte", "cb")
    assert all(mean.low < mean.value < mean.high for _, mean, _ in order.means)
    assert order.means[0][2] is None
    assert order.means[2][2].high < 0
    assert order.sentences[0].startswith("ATTEMPT beats prompt tuning: +")
    assert order.sentences[0].endswith("points over 2 targets and 3 seeds.")
    assert len(order.sentences) == 2
    table = grid(order, level=0.95)
    assert [line.entries[1].text for line in table.rows] == ["ATTEMPT", "full fine-tuning", "prompt tuning"]


def test_a_loss_names_what_closes_it(study) -> None:
    fill(
        study,
        ("prompt_tuning", 0.8),
        ("attempt", 0.5),
        ("attempt", 0.97, "temperature_auto"),
        ("attempt", 0.4, "no_target"),
        ("attempt", 0.99, "without_qqp"),
        ("lora", 0.99),
        ("mpt", 0.9),
    )
    sentences = found(study).sentences
    assert sentences[0].startswith("ATTEMPT does not beat prompt tuning: \u2212")
    assert sentences[1].startswith(
        "What reaches prompt tuning on these targets: ATTEMPT: temperature auto (+"
    )
    assert "MPT (+" in sentences[1]
    assert "without qqp" not in sentences[1]
    assert "LoRA" not in sentences[1]


def test_a_loss_that_nothing_closes_names_the_nearest(study) -> None:
    fill(study, ("prompt_tuning", 0.95), ("attempt", 0.5), ("attempt", 0.7, "no_prior"), ("dept", 0.4))
    assert (
        found(study)
        .sentences[1]
        .startswith(
            "Nothing in this study reaches prompt tuning on these targets; the nearest is ATTEMPT: no prior transfer (\u2212"
        )
    )


def test_a_difference_inside_its_interval_is_no_win(study) -> None:
    fill(study, ("prompt_tuning", 0.7), ("attempt", 0.72), seeds=(1, 2))
    sentence = found(study).sentences[0]
    assert "does not beat prompt tuning beyond doubt" in sentence
    assert "the interval holds 0" in sentence


def test_without_answers_the_sentence_says_that_there_is_no_interval(study) -> None:
    study.add("prompt_tuning", 0.5, examples=False)
    study.add("attempt", 0.9, examples=False)
    assert found(study).sentences == (
        next(each for each in found(study).sentences if "without answers row by row" in each),
    )


def test_a_row_with_few_targets_does_not_shrink_the_ground(study) -> None:
    fill(study, ("prompt_tuning", 0.7), ("attempt", 0.7), tasks=("rte", "cb", "wic"))
    fill(study, ("mpt", 0.9), tasks=("rte",))
    order = found(study)
    assert order.tasks == ("rte", "wic", "cb")
    assert [line.row for line in order.left_out] == ["mpt"]


def test_nothing_finished_is_no_ordering(study) -> None:
    study.add("attempt", 0.9, status="waiting")
    order = found(study)
    assert order.means == ()
    assert order.sentences == ()
    assert grid(order, level=0.95) is None
