from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from attempt_ray.errors import DataError
from attempt_ray.reporting.study.report import StudyReport, write_study_report

SOURCES = {"mnli": 0.5, "qqp": 0.2, "squad": 0.1, "target": 0.2}
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Notes open tags, links and what the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.tables = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tables += tag == "table"
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            assert found["id"] not in self.ids
            self.ids.add(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        self.fetched += [value for name, value in attrs if name in ("src", "srcset", "data") and value]
        assert tag not in ("link", "script", "iframe")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def whole(study) -> None:
    """Three rows, ablations, a sweep, leave-one-out, two backbones and missing cells."""
    for seed in (1, 2):
        for task in ("rte", "boolq"):
            study.add("finetune", 0.9, tasks=(task,), seed=seed)
            study.add("prompt_tuning", 0.6, tasks=(task,), seed=seed, constant=task == "boolq")
            study.add("attempt", 0.8, tasks=(task,), seed=seed, weights=SOURCES, warmup_steps=300)
            for source in ("mnli", "qqp", "squad"):
                study.add("attempt", 0.7, tasks=(task,), seed=seed, ablation=f"without_{source}")
            for ablation in ("no_target", "temperature_-1", "temperature_auto"):
                study.add("attempt", 0.7, tasks=(task,), seed=seed, ablation=ablation, steps=200)
            study.add("attempt", 0.9, tasks=(task,), seed=seed, backbone="t5-small", weights=SOURCES)
        study.add("attempt_mt", 0.8, tasks=("rte", "boolq", "nq", "copa"), seed=seed, weights=SOURCES)
    study.add("mpt", 0.5, status="failed", error="NonFiniteError: loss_nan & 100%")
    study.add("dept", 0.5, status="waiting")
    study.add("spot", 0.7, examples=False)


@pytest.fixture(scope="module")
def found(make_study, tmp_path_factory) -> StudyReport:
    """The report of that study."""
    study = make_study(tmp_path_factory.mktemp("whole"))
    whole(study)
    return write_study_report(study.write(), runs=str(study.runs))


def test_a_whole_report_has_every_part(found) -> None:
    assert found.directory.parts[-3:] == ("studies", "tiny", "report")
    names = {str(path.relative_to(found.directory)) for path in found.files}
    pictures = (
        "means",
        "figure-4a",
        "figure-4b",
        "figure-5-attempt",
        "figure-5-attempt-mt",
        "temperature",
        "leave-one-out",
    )
    assert names == {
        *(f"report.{kind}" for kind in ("md", "tex", "html", "json")),
        *(f"figures/{name}.{kind}" for name in pictures for kind in ("png", "svg")),
    }
    for path in found.files:
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert min(struct.unpack(">II", data[16:24])) > 300
        if path.suffix == ".svg":
            assert ET.fromstring(data).tag.endswith("svg")
    text = (found.directory / "report.md").read_text()
    for heading in (
        "Ordering found",
        "Mind when reading",
        "Table 2: GLUE and SuperGLUE",
        "Table 3: MRQA (F1) and others (accuracy)",
        "Targets without a table in the paper",
        "Costs",
        "Ablations",
        "Leave one out",
        "Scaling",
        "Attention",
        "Inputs and their weights",
        "What is missing",
    ):
        assert f"\n## {heading}\n" in text
    assert "superglue-boolq sentence1: row" in text
    assert "difference to prompt tuning" in text
    assert "difference to full fine-tuning" in text
    assert all(f"(figures/{name}.png)" in text for name in pictures)
    assert found.lines[0] == "43 of 45 cells have a score, from 43 runs."
    assert any(line.startswith("ATTEMPT beats prompt tuning: +") for line in found.lines)


def test_warnings_name_what_is_wrong(found) -> None:
    told = "\n".join(found.warnings)
    assert "2 of 45 cells have no score (1 failed, 1 waiting)" in told
    assert "nano: prompt_tuning answers boolq with one and the same answer (seeds 1, 2)" in told
    assert "attempt on rte, boolq: warm-up never ended (seeds 1, 2)" in told
    assert "methods took unequal steps" in told
    assert "2 seeds only on" in told
    assert "no per-example answers" in told


def test_a_score_that_a_constant_has_too_is_told(study) -> None:
    study.add("attempt", 0.9, constant=True, constant_prediction={"rte": False})
    told = "\n".join(write_study_report(study.write(), runs=str(study.runs)).warnings)
    assert "attempt scores exactly what answering one class always does: rte (seeds 1)" in told
    assert "nano: " not in told
    study.add("attempt", 0.9, backbone="t5-small")
    told = "\n".join(write_study_report(study.write(), runs=str(study.runs)).warnings)
    assert "nano: attempt scores exactly what answering one class always does: rte (seeds 1)" in told


def test_a_difference_inside_its_interval_is_told(study) -> None:
    for seed in (1, 2, 3):
        study.add("prompt_tuning", 0.7, seed=seed)
        study.add("attempt", 0.72, seed=seed)
    told = "\n".join(write_study_report(study.write(), runs=str(study.runs)).warnings)
    assert "ATTEMPT against prompt tuning: the interval holds 0 on 1 of 1 targets (rte)" in told


def test_the_page_is_one_file_that_fetches_nothing(found) -> None:
    text = (found.directory / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    assert len(page.fetched) == 7
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.fetched)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert "url(" not in text
    assert page.tables == (found.directory / "report.tex").read_text().count(r"\begin{tabular}")


def test_the_latex_is_balanced_and_every_row_has_its_columns(found) -> None:
    text = (found.directory / "report.tex").read_text()
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    assert r"NonFiniteError: loss\_nan \& 100\%" in text


def test_every_number_is_in_the_json(found) -> None:
    content = json.loads((found.directory / "report.json").read_text())
    lines = {(line["label"], line["backbone"]): line for line in content["lines"]}
    attempt = lines["attempt", "nano"]
    assert attempt["scores"]["rte"]["by_seed"].keys() == {"1", "2"}
    assert (
        attempt["differences"]["prompt_tuning"]["mean"]["low"]
        < attempt["differences"]["prompt_tuning"]["mean"]["value"]
    )
    assert lines["attempt/no_target", "nano"]["differences"].keys() == {
        "attempt",
        "prompt_tuning",
        "finetune",
    }
    assert content["paper"]["Table 2: GLUE and SuperGLUE"]["attempt"]["averages"][0] == pytest.approx(
        72.776, abs=0.001
    )
    assert [point["temperature"] for point in content["temperature"]] == ["-1", "auto"]
    assert content["leave_one_out"]["rank_correlation_all"]["n"] == 6
    assert content["scaling"]["attempt"].keys() == {"nano", "t5-small"}
    assert content["parameters"]["backbones"]["t5-base"]["methods"]["ATTEMPT-ST"]["per_task"] == 231_936
    assert {each["key"] for each in content["missing"]} == {"mpt/rte/s1", "dept/rte/s1"}
    weights = content["examples"][0]["sharp"][0]
    assert sum(weights["weights"].values()) == pytest.approx(1, abs=1e-4)
    assert content["examples"][0]["even"][0]["entropy_nats"] > weights["entropy_nats"]


def test_the_same_runs_give_the_same_bytes(found, tmp_path) -> None:
    directory = found.directory.parent
    again = write_study_report(directory, runs=str(directory.parents[1] / "runs"), out=tmp_path)
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in found.files]


def test_a_page_alone_has_its_pictures_beside_it(found, tmp_path) -> None:
    directory = found.directory.parent
    runs = str(directory.parents[1] / "runs")
    alone = write_study_report(directory, runs=runs, out=tmp_path / "results.md")
    assert {path.suffix for path in alone.files} == {".png", ".md"}
    page = (tmp_path / "results.md").read_text()
    assert page == (found.directory / "report.md").read_text().replace("](figures/", "](results/")
    shown = set(re.findall(r"\]\((results/[^)]+)\)", page))
    assert shown == {str(path.relative_to(tmp_path)) for path in alone.files if path.suffix == ".png"}


def test_test_rows_are_withheld_where_asked(found, tmp_path) -> None:
    directory = found.directory.parent
    runs = str(directory.parents[1] / "runs")
    assert "sentence1: row" in (found.directory / "report.md").read_text()
    without = write_study_report(directory, runs=runs, out=tmp_path, inputs="withheld")
    for path in without.files:
        assert b"sentence1: row" not in path.read_bytes()
    assert "Inputs and their weights" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_study_that_has_just_begun_says_what_is_missing(study, finished) -> None:
    rows = ("attempt", "prompt_tuning", "adapter")
    for number, row in enumerate(rows):
        study.add(row, 0.8, status="finished" if number < finished else "waiting")
    study.runs.mkdir(exist_ok=True)
    found = write_study_report(study.write(), runs=str(study.runs))
    text = (found.directory / "report.md").read_text()
    assert f"{finished} of 3 cells have a score" in text
    assert "## What is missing" in text
    assert Page((found.directory / "report.html").read_text()).open == []


def test_a_study_without_cells_is_reported_too(study) -> None:
    study.runs.mkdir()
    found = write_study_report(study.write(), runs=str(study.runs))
    assert "0 of 0 cells" in (found.directory / "report.md").read_text()


def test_pictures_of_an_earlier_report_go(study) -> None:
    study.add("attempt", 0.8)
    directory = study.write()
    (directory / "report" / "figures").mkdir(parents=True)
    (directory / "report" / "figures" / "old.png").touch()
    found = write_study_report(directory, runs=str(study.runs))
    assert not (found.directory / "figures" / "old.png").exists()
    assert (found.directory / "figures" / "figure-4a.png").exists()


def test_no_study_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"study\.json"):
        write_study_report(tmp_path, runs=str(tmp_path))


def test_runs_on_a_store_are_reported_alike(study, s3, tmp_path) -> None:
    from attempt_ray.bank.places import open_storage

    for seed in (1, 2):
        study.add("attempt", 0.8, seed=seed, weights=SOURCES)
        study.add("prompt_tuning", 0.6, seed=seed)
    storage = open_storage(s3)
    for path in study.runs.glob("*/*"):
        storage.replace(f"{path.parent.name}/{path.name}", path.read_bytes())
    directory = study.write()
    here = write_study_report(directory, runs=str(study.runs), out=tmp_path / "here")
    there = write_study_report(directory, runs=s3, out=tmp_path / "there")
    assert (here.directory / "report.json").read_bytes() == (there.directory / "report.json").read_bytes()
