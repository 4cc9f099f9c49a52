"""The paper's "Others": WinoGrande, Yelp-2, SciTail and PAWS-Wiki."""

from __future__ import annotations

from attempt_ray.tasks.spec import Row, Task, TemplateOptions, classification, text


def _winogrande_source(row: Row, options: TemplateOptions) -> str:
    second = "option1" if options.legacy_winogrande else "option2"
    return f"sentence: {text(row, 'sentence')} option0: {text(row, 'option1')} option1: {text(row, second)}"


PAIR_TASKS: tuple[Task, ...] = (
    classification(
        "winogrande",
        ("sentence", "option1", "option2"),
        words=("option0", "option1"),
        label="answer",
        class_ids={"1": 0, "2": 1},
        source=_winogrande_source,
        prefix="winogrande",
        hub_id="allenai/winogrande",
        hub_config="winogrande_xl",
        group="Others",
        metrics=("accuracy",),
        split_rule="large",
    ),
    classification(
        "yelp",
        {"sentence": "text"},
        words=("negative", "positive"),
        prefix="yelp_polarity",
        hub_id="fancyzhx/yelp_polarity",
        hub_config="plain_text",
        group="Others",
        metrics=("accuracy",),
        split_rule="large",
        dev_split="test",
        test_split="test",
        max_train_rows=100_000,
    ),
    classification(
        "scitail",
        {"premise": "sentence1", "hypothesis": "sentence2"},
        words=("entailment", "neutral"),
        label="gold_label",
        class_ids={"entailment": 0, "entails": 0, "neutral": 1},
        aliases={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
        prefix="scitail",
        hub_id="allenai/scitail",
        hub_config="snli_format",
        group="Others",
        metrics=("accuracy",),
        split_rule="small",
        test_split="test",
    ),
    classification(
        "paws",
        ("sentence1", "sentence2"),
        words=("not_paraphrase", "paraphrase"),
        prefix="paws",
        hub_id="google-research-datasets/paws",
        hub_config="labeled_final",
        group="Others",
        metrics=("accuracy",),
        split_rule="native",
        test_split="test",
    ),
)
