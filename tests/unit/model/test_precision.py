import pytest
import torch

from attempt_ray.model import precision
from attempt_ray.model.precision import choose_precision, native_bfloat16, rows_stand_alone


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"architecture": "arm64", "bf16": True}, True),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
    ],
)
def test_a_processor_that_multiplies_bfloat16_gets_it(monkeypatch, flags, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert native_bfloat16(torch.device("cpu")) is native
    assert choose_precision("auto", "cpu").dtype == ("bfloat16" if native else "float32")


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_that_multiplies_bfloat16_gets_it(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert native_bfloat16(torch.device("cuda")) is native


def test_what_is_configured_stands_and_weights_that_train_stay_whole(monkeypatch):
    monkeypatch.setattr(precision, "native_bfloat16", lambda _: True)
    assert choose_precision("float32", "cpu") == ("float32", "as configured")
    assert choose_precision("bfloat16", "cpu", weights_train=True).dtype == "bfloat16"
    assert choose_precision("auto", "cpu").dtype == "bfloat16"
    assert choose_precision("auto", "cpu", weights_train=True).dtype == "float32"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    precision._tried_to_stand_alone.cache_clear()
    yield
    torch.set_num_threads(before)
    precision._tried_to_stand_alone.cache_clear()


def test_rows_do_not_stand_alone_where_the_rest_of_a_product_shows(one_thread, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    assert rows_stand_alone(16, 32, torch.float32)
    monkeypatch.undo()
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: product(a, b) + len(a) * 1e-7)
    assert not rows_stand_alone(8, 24, torch.float32)


def test_rows_of_several_threads_do_not_stand_alone(one_thread):
    torch.set_num_threads(2)
    assert not rows_stand_alone(16, 32, torch.float32)
