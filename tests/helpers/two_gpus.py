"""Pretends that there are two GPUs: tensors with real numbers on the CPU that refuse to be mixed, as CUDA's do."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FIRST, SECOND = "two:0", "two:1"
_MAY_MIX = {"aten._to_copy.default", "aten.copy_.default"}
_INDEXING = {"aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default"}  # by CPU tensors, too


class MixedDevices(RuntimeError):
    """What CUDA says of an operation on tensors of several devices."""


class Placed(torch.Tensor):
    """A tensor that says it lies on a GPU, and computes on the CPU."""

    @staticmethod
    def __new__(cls, real: torch.Tensor, device: torch.device):
        return torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), dtype=real.dtype, device=device, requires_grad=False
        )

    def __init__(self, real: torch.Tensor, device: torch.device):
        self.inside = real

    def tolist(self):
        return self.inside.tolist()

    def __getitem__(self, index):
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, Placed) and part.device != self.device:
                raise MixedDevices(f"an index on {part.device} into a tensor on {self.device}")
        return Placed(self.inside[tree_map(lambda x: x.inside if isinstance(x, Placed) else x, index)], self.device)

    def __deepcopy__(self, memo):
        return Placed(self.inside.clone(), self.device)

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        raise AssertionError("a tensor of the two GPUs is used outside of `two_gpus`")


class _TwoGpus(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, asked = str(op), kwargs.get("device")
        seen = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        placed = [x for x in seen if isinstance(x, Placed)]
        if asked is not None and torch.device(asked).type == "two":
            device, kwargs["device"] = torch.device(asked), torch.device("cpu")
        elif asked is not None or not placed:
            device = None
        else:
            device = placed[0].device
        if placed and name not in _MAY_MIX:
            others = seen[:1] if name in _INDEXING else seen  # CPU indices are taken; those of another GPU are not
            mixed = {str(x.device) for x in placed} | {str(x.device) for x in others if x.ndim}
            if len(mixed) > 1:
                raise MixedDevices(f"{name}: expected all tensors on one device, but found {sorted(mixed)}")
        real_args, real_kwargs = tree_map(lambda x: x.inside if isinstance(x, Placed) else x, (args, kwargs))
        made = op(*real_args, **real_kwargs)
        if torch.Tag.inplace_view in op.tags:  # such as `squeeze_`
            with no_dispatch():
                op(*args, **kwargs)
        known = {id(x.inside): x for x in placed}  # what was changed in place stays the same tensor
        if device is None and name not in _MAY_MIX:
            return made

        def place(x):
            if not isinstance(x, torch.Tensor):
                return x
            if id(x) in known:
                return known[id(x)]
            return x if device is None else Placed(x, device)

        return tree_map(place, made)


@cache
def _backend() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("two")


@contextmanager
def two_gpus():
    """Let the devices `two:0` and `two:1` be there while the context lasts; without inference mode, which they lack."""
    _backend()
    made = torch.tensor

    def tensor(data, device=None, **options):  # which asks no mode
        return made(data, **options) if device is None else made(data, **options).to(device)

    no_inference, from_data = (
        patch.object(torch, "inference_mode", torch.no_grad),
        patch.object(torch, "tensor", tensor),
    )
    with no_inference, from_data, _TwoGpus():
        yield


def spread(model, places: dict[str, str]) -> None:
    """Put modules on devices, with the hooks that accelerate gives a model that is loaded with `device_map`."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    def put(tensor: torch.Tensor, device: str):
        return Placed(tensor.detach().clone(), torch.device(device))

    for name, device in places.items():
        for module in model.get_submodule(name).modules():
            for key, value in list(module._parameters.items()):
                if value is not None and not isinstance(value.data, Placed):
                    module._parameters[key] = torch.nn.Parameter(put(value, device), requires_grad=False)
            for key, value in list(module._buffers.items()):
                if value is not None and not isinstance(value, Placed):
                    module._buffers[key] = put(value, device)
            whole = module is model.get_submodule(name)
            if whole or any(True for _ in module.parameters(recurse=False)):
                hook = AlignDevicesHook(execution_device=device, io_same_device=False)
                add_hook_to_module(module, hook, append=True)
    add_hook_to_module(model, AlignDevicesHook(execution_device=FIRST, io_same_device=True), append=True)
