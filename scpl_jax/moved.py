"""Modules and commands under the names that they had before: found for one release, with one line of warning."""

import importlib
import importlib.abc
import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

_LOG = logging.getLogger(__name__)
# Room before, room now, and the modules that went; OLD=NEW where the name has changed, too.
_MOVES = """
models kernels conv dropout kernel_gradients norm onednn pooling products recurrence winograd
models models registry=named initial=layers
pipeline pipeline groups=placement skips=whole_steps
losses losses classification=softmax information=similarity supcon=contrastive_loss supcon_blocks=contrastive_loss
analysis simulation machine=devices simulate=simulator
analysis analysis exits=report_figures shapes=runs timeline=timeline_figure
training training checksums=writing errors=run_error files=writing
data data files=reading labels=class_names
data data.text packed=readers.raw
data data.images augment colour registry=image_sets
data data.text buckets ragged=buckets text_dataset text_registry=text_sets vectors words
experiments benchmarks contrastive convolutions flops=single input_path measure memory overhead simulate single
experiments benchmarks speed_report=throughput throughput throughput_options torch_networks torch_steps
experiments benchmarks workloads=throughput_options
experiments cli building command_line library=building methods options=task_options
experiments cli machine=environment run_options tasks=building text_options=task_options
experiments experiments reuse=cells
"""
MOVED: dict[str, str] = {}
for _line in _MOVES.strip().splitlines():
    _before, _now, *_modules = _line.split()
    for _old, _, _new in (name.partition("=") for name in _modules):
        MOVED[f"scpl_jax.{_before}.{_old}"] = f"scpl_jax.{_now}.{_new or _old}"


class _Loader(importlib.abc.InspectLoader):
    """Gives the module that is there now in place of one of the old name."""

    def __init__(self, now: str):
        self._now = now

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._now)
        self._spec: Any = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import of the old name has put its own there

    def get_source(self, fullname: str) -> str | None:
        return None

    def get_code(self, fullname: str) -> CodeType | None:
        """For ``python -m``."""
        loader: Any = getattr(importlib.util.find_spec(self._now), "loader", None)
        code: CodeType | None = loader.get_code(self._now)
        return code


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if (now := MOVED.get(fullname)) is None:
            return None
        _LOG.warning("warning: %s is now %s; the old name goes with the next release", fullname, now)
        return ModuleSpec(fullname, _Loader(now), origin=now)


def find_moved() -> None:
    """Let the import system find what has moved, where nothing else of that name is there."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
