from __future__ import annotations

from pathlib import Path

import pytest

from attempt_ray.errors import ConfigError, DataError
from attempt_ray.tasks import Example, TemplateOptions, all_tasks, get_task, load_user_task, score

DIGITS = TemplateOptions()
WORDS = TemplateOptions(label_words="words")
TICKETS = """
name: ticket-topic
fields: [subject, body]
template: "subject: {subject} {{body}}: {body}"
answer: topic
labels:
  yes: billing
  bug: fault
  2: other
"""


def written(directory: Path, content: str) -> str:
    path = directory / "task.yaml"
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_classification_task(tmp_path: Path) -> None:
    task = load_user_task(written(tmp_path, TICKETS))
    row = {"subject": "Invoice {x}", "body": " too high ", "topic": "yes"}
    source = "ticket-topic subject: Invoice {x} {body}: too high"
    assert task.eval_example(row, DIGITS) == Example(source=source, target="0", golds=("0",))
    assert task.eval_example(row, WORDS) == Example(source=source, target="billing", golds=("billing",))
    assert task.eval_example(row | {"topic": 2}, WORDS).target == "other"
    assert (task.kind, task.group, task.metrics) == ("classification", "user", ("accuracy",))
    assert task.fields == ("subject", "body", "topic")
    assert task.labels == {"digits": ("0", "1", "2"), "words": ("billing", "fault", "other")}
    assert (task.split_rule, task.dev_split, task.test_split) == ("native", "validation", "test")
    assert (task.max_source_tokens, task.max_target_tokens, task.max_train_rows) == (256, 16, None)
    assert (task.hub_id, task.hub_config, task.revision) == ("", None, None)


def test_a_raw_label_outside_the_mapping_is_refused(tmp_path: Path) -> None:
    task = load_user_task(written(tmp_path, TICKETS))
    with pytest.raises(
        DataError, match=r"task 'ticket-topic': label 'spam' in field 'topic' .* \(yes, bug, 2\)"
    ):
        task.eval_example({"subject": "a", "body": "b", "topic": "spam"}, DIGITS)


def test_every_key_is_taken_over(tmp_path: Path) -> None:
    content = TICKETS + (
        "kind: classification\nmetrics: [macro_f1, accuracy]\nhub_id: me/tickets\nhub_config: v1\nrevision: abc\n"
        "split_rule: small\ndev_split: dev\ntest_split: held_out\nmax_source_tokens: 64\nmax_target_tokens: 8\n"
        "max_train_rows: 100\n"
    )
    task = load_user_task(written(tmp_path, content))
    assert (task.metrics, task.hub_id, task.hub_config, task.revision) == (
        ("macro_f1", "accuracy"),
        "me/tickets",
        "v1",
        "abc",
    )
    assert (task.split_rule, task.dev_split, task.test_split) == ("small", "dev", "held_out")
    assert (task.max_source_tokens, task.max_target_tokens, task.max_train_rows) == (64, 8, 100)


def test_a_question_answering_task(tmp_path: Path) -> None:
    task = load_user_task(
        written(tmp_path, "name: faq\nfields: [q, page]\ntemplate: 'q: {q} page: {page}'\n")
    )
    example = task.eval_example({"q": "When?", "page": "At 5 p.m.", "answers": ["5 p.m.", "17:00"]}, DIGITS)
    assert example == Example(
        source="faq q: When? page: At 5 p.m.", target="5 p.m.", golds=("5 p.m.", "17:00")
    )
    assert (task.kind, task.metrics, task.max_source_tokens, task.max_target_tokens) == (
        "qa",
        ("squad_f1", "squad_em"),
        512,
        128,
    )
    assert score(task, ["5 pm"], [example], DIGITS) == {"squad_f1": 100.0, "squad_em": 100.0}


def test_a_regression_task(tmp_path: Path) -> None:
    content = (
        "name: stars\nkind: regression\nfields: text\ntemplate: '{text}'\nanswer: stars\nmetrics: spearman\n"
    )
    task = load_user_task(written(tmp_path, content))
    assert task.eval_example({"text": "fine", "stars": 4}, DIGITS) == Example(
        source="stars fine", target="4.0", golds=("4.0",)
    )
    assert task.metrics == ("spearman",)
    with pytest.raises(DataError, match="task 'stars': field 'stars' holds 'many'; wanted a finite number"):
        task.eval_example({"text": "fine", "stars": "many"}, DIGITS)


def test_an_edited_file_is_another_template_version(tmp_path: Path) -> None:
    first = load_user_task(written(tmp_path, TICKETS)).template_version
    assert load_user_task(written(tmp_path, TICKETS)).template_version == first
    assert load_user_task(written(tmp_path, TICKETS.replace("subject: {", "s: {"))).template_version != first


def test_a_user_task_stands_beside_the_others(tmp_path: Path) -> None:
    path = written(tmp_path, TICKETS)
    assert get_task("ticket-topic", (path,)).name == "ticket-topic"
    assert list(all_tasks((path,)))[-1] == "ticket-topic"
    with pytest.raises(ConfigError, match=r"no task 'ticket-topics'; did you mean 'ticket-topic'\?"):
        get_task("ticket-topics", (path,))


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, TICKETS)
    with pytest.raises(
        ConfigError, match="name 'ticket-topic' is taken by another task; choose another name"
    ):
        all_tasks((path, path))
    with pytest.raises(ConfigError, match="name 'rte' is taken"):
        get_task("rte", (written(tmp_path, TICKETS.replace("ticket-topic", "rte")),))


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("fields:", "feilds:", "no key 'feilds'; did you mean 'fields'?"),
        ("name: ticket-topic", "", "key 'name' is missing; add it"),
        ("name: ticket-topic", "name: ../up", "name: got '../up'; wanted 1 to 64 lower-case letters"),
        ("name: ticket-topic", "name: Topic", "name: got 'Topic'; wanted 1 to 64 lower-case letters"),
        ("name: ticket-topic", 'name: "topic\\n"', "name: got 'topic\\n'; wanted 1 to 64"),
        ("name: ticket-topic", f"name: {'a' * 65}", "; wanted 1 to 64 lower-case letters"),
        ("{subject}", "{subjects}", "template: no field 'subjects'; did you mean 'subject'?"),
        (
            "{subject}",
            "{topic}",
            "template: {topic} is the answer's column, which would give the answer away",
        ),
        (
            "{subject}",
            "{subject!r}",
            "template: field 'subject' has a format or conversion; write {subject} alone",
        ),
        ("{subject}", "{subject:>9}", "template: field 'subject' has a format or conversion"),
        ("{subject}", "{subject.__class__}", "template: no field 'subject.__class__'"),
        ("{subject}", "{}", "template: no field ''"),
        ("{subject}", "{subject", "write {field} for a field"),
        ("{subject}", "", "fields: 'subject' is not in the template; use {subject} there or leave it out"),
        ("[subject, body]", "[topic]", "template: no field 'subject'"),
        ("[subject, body]", "[]", "fields: got []"),
        (
            "yes: billing",
            "yes: fault",
            "labels: 'yes' and 'bug' are both 'fault'; give each label its own word",
        ),
        ("yes: billing", "yes: ''", "labels.yes: got ''"),
        ("yes: billing", "bug: billing", "key 'bug' appears twice; keep one"),
        ("yes: billing", "'2.0': billing", "labels: two of 2.0, bug, 2 are the same raw label; keep one"),
        ("  yes: billing\n  bug: fault\n", "", "labels: got 1; a classification task needs at least 2"),
        ("answer: topic", "answer: topic\nkind: qa", "labels: a qa task has none; remove them or set kind"),
        ("answer: topic", "answer: topic\nkind: ranking", "kind: got 'ranking'"),
        (
            "answer: topic",
            "answer: topic\nmetrics: acuracy",
            "no classification metric 'acuracy'; did you mean 'accuracy'?",
        ),
        ("answer: topic", "answer: topic\nmetrics: pearson", "no classification metric 'pearson'"),
        ("answer: topic", "answer: topic\nmetrics: group_em", "no classification metric 'group_em'"),
        (
            "answer: topic",
            "answer: topic\nmetrics: f1",
            "metrics: f1 is for 2 classes, this task has 3; use macro_f1",
        ),
        (
            "answer: topic",
            "answer: topic\nmetrics: [accuracy, accuracy]",
            "metrics: got accuracy, accuracy; name each",
        ),
        ("answer: topic", "answer: topic\nhub_id: ../../etc", "hub_id: got '../../etc'; wanted 'owner/name'"),
        (
            "answer: topic",
            "answer: topic\nhub_config: ../x",
            "hub_config: got '../x'; wanted a configuration name",
        ),
        ("answer: topic", "answer: topic\ndev_split: /x", "dev_split: got '/x'; wanted a split name"),
        ("answer: topic", "answer: topic\nsplit_rule: tiny", "split_rule: got 'tiny'"),
        ("answer: topic", "answer: topic\nmax_source_tokens: many", "max_source_tokens: got 'many'"),
        ("answer: topic", "answer: topic\nmax_train_rows: 0", "max_train_rows: got '0'"),
    ],
)
def test_a_mistake_gets_one_line_with_the_fix(tmp_path: Path, before: str, after: str, problem: str) -> None:
    assert before in TICKETS
    path = written(tmp_path, TICKETS.replace(before, after))
    with pytest.raises(ConfigError) as caught:
        load_user_task(path)
    message = str(caught.value)
    assert message.startswith(f"task file {path}")
    assert problem in message
    assert "\n" not in message


def test_a_template_that_names_no_field_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "name: faq\nfields: [answers]\ntemplate: same\n")
    with pytest.raises(ConfigError, match=r"template: no \{field\} in it"):
        load_user_task(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"- a", "holds no mapping"),
        (b"", "holds no mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        load_user_task(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read task file .*absent.yaml: No such file"):
        load_user_task(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match=r"cannot read task file .*: Is a directory"):
        load_user_task(tmp_path)


def test_yaml_tags_build_no_objects(tmp_path: Path) -> None:
    path = written(tmp_path, TICKETS.replace("topic\nlabels", "!!python/object/apply:os.getcwd []\nlabels"))
    with pytest.raises(ConfigError, match="answer: got"):
        load_user_task(path)
