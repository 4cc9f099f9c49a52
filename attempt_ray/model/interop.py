"""Prompts and G in the file layout of the authors' code, in and out, only when asked for by name.

Layout (https://github.com/AkariAsai/ATTEMPT): `prefix_embeddings.pt`, or `prefix_embeddings_{task}.pt` for several
tasks, and `attn_W_down.pt`, `attn_W_up.pt`, `layer_norm_weight.pt`, `layer_norm_bias.pt` beside them. A file holds one
tensor. They are read with torch's restricted loader, which builds tensors and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor

from attempt_ray.errors import DataError, StorageError

_SINGLE = "prefix_embeddings.pt"
_ATTENTION_FILES = {
    "down.weight": "attn_W_down.pt",
    "up.weight": "attn_W_up.pt",
    "norm.weight": "layer_norm_weight.pt",
    "norm.bias": "layer_norm_bias.pt",
}


class AuthorsFiles(NamedTuple):
    """What a directory of the authors' layout holds."""

    prompts: dict[str, Tensor]
    """Prompts [P, H] by task."""
    attention: dict[str, Tensor] | None
    """G's tensors under the names of the bank; None where the directory has no G."""


def export_authors(
    directory: Path, *, prompts: Mapping[str, Tensor], attention: Mapping[str, Tensor] | None = None
) -> list[Path]:
    """Write prompts, and G if given, in the authors' layout; return the files written.

    Args:
        directory: Made if it is not there.
        prompts: Prompts [P, H] by task, at least one; a single one takes the single-task file name.
        attention: G's tensors under the names of the bank.

    Raises:
        DataError: No prompt is given, a tensor of G is missing, or G has a centre.
        StorageError: A file cannot be written.
    """
    if not prompts:
        raise DataError("export got no prompt; give at least one")
    lacking = [] if attention is None else [name for name in _ATTENTION_FILES if name not in attention]
    if lacking:
        raise DataError(f"export got a G without {', '.join(lacking)}; give {', '.join(_ATTENTION_FILES)}")
    tensors = {(_SINGLE if len(prompts) == 1 else _file_of(task)): prompt for task, prompt in prompts.items()}
    tensors |= {file: attention[name] for name, file in _ATTENTION_FILES.items()} if attention else {}
    if attention is not None and "center_H" in attention:
        raise DataError(
            "export got a G with a centre, which the layout has no file for; train it with attention.center=false"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, tensor in tensors.items():
            torch.save(tensor.detach().to("cpu", torch.float32).clone(), directory / file)
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"cannot write {directory}: {error}; free space or choose another directory"
        ) from error
    return [directory / file for file in tensors]


def import_authors(directory: Path, *, tasks: Sequence[str]) -> AuthorsFiles:
    """Read the tasks' prompts, and G where there is one, from the authors' layout.

    LayerNorm files may be missing, since the authors leave it at the identity: gain 1 and bias 0 are filled in.

    Args:
        directory: Directory of the files.
        tasks: Tasks whose prompts to read; a single one may be under the single-task file name.

    Raises:
        DataError: A file is missing, is not one float tensor, or has a shape that does not fit the others.
    """
    prompts = {}
    for task in tasks:
        path = directory / _file_of(task)
        alone = len(tasks) == 1 and not path.is_file()
        prompts[task] = read_prompt(directory / _SINGLE if alone else path)
    widths = {task: prompt.shape[1] for task, prompt in prompts.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"prompts in {directory} differ in width: {widths}; wanted those of one backbone")
    if not any((directory / file).exists() for file in _ATTENTION_FILES.values()):
        return AuthorsFiles(prompts, None)
    return AuthorsFiles(prompts, _read_attention(directory))


def read_prompt(path: Path) -> Tensor:
    """Return the prompt [P, H] of one of the authors' files, such as `mnli_prompt.pt`.

    Raises:
        DataError: The file is missing or is not one float tensor of two dimensions.
    """
    return _read(path, ndim=2)


def _file_of(task: str) -> str:
    if not task or Path(task).name != task:
        raise DataError(f"task name '{task}' cannot be part of a file name; use a plain name such as rte")
    return f"prefix_embeddings_{task}.pt"


def _read_attention(directory: Path) -> dict[str, Tensor]:
    down_RH = _read(directory / _ATTENTION_FILES["down.weight"], ndim=2)
    bottleneck, width = down_RH.shape
    found = {"down.weight": down_RH, "up.weight": _read(directory / _ATTENTION_FILES["up.weight"], ndim=2)}
    for name, identity_H in (("norm.weight", torch.ones(width)), ("norm.bias", torch.zeros(width))):
        path = directory / _ATTENTION_FILES[name]
        found[name] = _read(path, ndim=1) if path.exists() else identity_H
    shapes = {"up.weight": (width, bottleneck), "norm.weight": (width,), "norm.bias": (width,)}
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            raise DataError(
                f"{directory / _ATTENTION_FILES[name]} has shape {list(found[name].shape)}; wanted {list(shape)} "
                f"beside {_ATTENTION_FILES['down.weight']} of shape {list(down_RH.shape)}; take both from one run"
            )
    return found


def _read(path: Path, *, ndim: int) -> Tensor:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(
            f"no file {path}; wanted the authors' layout, see attempt_ray/model/interop.py"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as one tensor: {reason}; copy or export it again") from error
    if not isinstance(loaded, Tensor) or not loaded.is_floating_point() or loaded.ndim != ndim:
        got = f"shape {list(loaded.shape)}" if isinstance(loaded, Tensor) else type(loaded).__name__
        raise DataError(f"{path} holds {got}; wanted one float tensor of {ndim} dimensions")
    return loaded.detach().to(torch.float32).clone()
