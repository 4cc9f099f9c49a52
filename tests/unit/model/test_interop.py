from __future__ import annotations

import pytest
import torch

from attempt_ray.errors import DataError, StorageError
from attempt_ray.model.attention import PromptAttention
from attempt_ray.model.interop import export_authors, import_authors, read_prompt


@pytest.fixture
def attention():
    module = PromptAttention(8, bottleneck=3, divisor=1.0)
    torch.nn.init.normal_(module.norm.bias)
    return dict(module.state_dict())


def test_one_task_with_attention_comes_back_exactly(tmp_path, attention):
    prompt = torch.randn(4, 8)
    files = export_authors(tmp_path / "new", prompts={"rte": prompt}, attention=attention)
    assert sorted(path.name for path in files) == [
        "attn_W_down.pt",
        "attn_W_up.pt",
        "layer_norm_bias.pt",
        "layer_norm_weight.pt",
        "prefix_embeddings.pt",
    ]
    found = import_authors(tmp_path / "new", tasks=["rte"])
    assert torch.equal(found.prompts["rte"], prompt)
    assert found.attention.keys() == attention.keys()
    assert all(torch.equal(found.attention[name], tensor) for name, tensor in attention.items())


def test_several_tasks_without_attention_come_back_exactly(tmp_path):
    prompts = {"rte": torch.randn(4, 8), "wnli": torch.randn(4, 8)}
    export_authors(tmp_path, prompts=prompts)
    found = import_authors(tmp_path, tasks=["wnli", "rte"])
    assert found.attention is None
    assert all(torch.equal(found.prompts[task], prompt) for task, prompt in prompts.items())
    assert torch.equal(import_authors(tmp_path, tasks=["rte"]).prompts["rte"], prompts["rte"])


def test_a_pickled_parameter_on_disk_is_read_as_the_authors_wrote_it(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(4, 8))
    torch.save(parameter, tmp_path / "mnli_prompt.pt")
    prompt = read_prompt(tmp_path / "mnli_prompt.pt")
    assert torch.equal(prompt, parameter.detach())
    assert not prompt.requires_grad


def test_missing_norm_is_the_identity_the_authors_keep(tmp_path, attention):
    export_authors(tmp_path, prompts={"rte": torch.zeros(4, 8)}, attention=attention)
    for name in ("layer_norm_weight.pt", "layer_norm_bias.pt"):
        (tmp_path / name).unlink()
    found = import_authors(tmp_path, tasks=["rte"]).attention
    assert torch.equal(found["norm.weight"], torch.ones(8))
    assert torch.equal(found["norm.bias"], torch.zeros(8))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save(Harmful(), tmp_path / "prefix_embeddings.pt")
    with pytest.raises(DataError, match="cannot be read as one tensor"):
        import_authors(tmp_path, tasks=["rte"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"prompt": torch.zeros(4, 8)}, "holds dict"),
        (torch.zeros(8), r"holds shape \[8\]"),
        (torch.zeros(4, 8, dtype=torch.long), "float tensor"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, says):
    torch.save(content, tmp_path / "prefix_embeddings.pt")
    with pytest.raises(DataError, match=says):
        import_authors(tmp_path, tasks=["rte"])


def test_a_cut_file_is_refused(tmp_path):
    path = tmp_path / "prefix_embeddings.pt"
    torch.save(torch.zeros(4, 8), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        import_authors(tmp_path, tasks=["rte"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*prefix_embeddings_rte\.pt"):
        import_authors(tmp_path, tasks=["rte", "wnli"])


def test_attention_of_two_runs_is_refused(tmp_path, attention):
    export_authors(tmp_path, prompts={"rte": torch.zeros(4, 8)}, attention=attention)
    torch.save(torch.zeros(8, 5), tmp_path / "attn_W_up.pt")
    with pytest.raises(DataError, match=r"attn_W_up\.pt has shape \[8, 5\]; wanted \[8, 3\]"):
        import_authors(tmp_path, tasks=["rte"])


def test_prompts_of_two_backbones_are_refused(tmp_path):
    export_authors(tmp_path, prompts={"rte": torch.zeros(4, 8), "wnli": torch.zeros(4, 9)})
    with pytest.raises(DataError, match="differ in width"):
        import_authors(tmp_path, tasks=["rte", "wnli"])


def test_names_that_leave_the_directory_are_refused(tmp_path):
    prompts = {"../rte": torch.zeros(4, 8), "wnli": torch.zeros(4, 8)}
    with pytest.raises(DataError, match="cannot be part of a file name"):
        export_authors(tmp_path, prompts=prompts)


def test_exports_of_nothing_or_half_a_g_are_refused(tmp_path, attention):
    with pytest.raises(DataError, match="no prompt"):
        export_authors(tmp_path, prompts={})
    del attention["up.weight"]
    with pytest.raises(DataError, match=r"without up\.weight"):
        export_authors(tmp_path, prompts={"rte": torch.zeros(4, 8)}, attention=attention)


def test_a_g_with_a_centre_has_no_place_in_the_layout(tmp_path, attention):
    with pytest.raises(DataError, match=r"no file for; train it with attention\.center=false"):
        export_authors(
            tmp_path / "new",
            prompts={"rte": torch.ones(4, 8)},
            attention=attention | {"center_H": torch.ones(8)},
        )
    assert not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        export_authors(tmp_path / "file", prompts={"rte": torch.zeros(4, 8)})
