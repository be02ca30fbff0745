"""A model in a Python file that the user names on the command line (``--module my_model.py``).

Nothing else ever imports Python for a run: a run file or a run folder alone cannot.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from latency_tables.errors import SpaceError, UsageError
from pipeline.spaces.own_model.space import OwnSpace, own_space

CLASSES = ("n_classes", "num_classes")
CHANNELS = ("in_channels", "in_chans")


def space_in_file(
    path: Path, name: str, *, input_shape: tuple[int, int, int], n_classes: int
) -> OwnSpace:
    """The space of the class or function ``name`` in the file ``path``, which is run.

    Arguments called ``n_classes`` (or ``num_classes``), ``in_channels`` (or ``in_chans``) and
    ``input_shape`` are given what the data set has, if the class or function takes them.

    Raises:
        UsageError: the file cannot be run, or has no such class or function.
        SpaceError: the model does not fit the data set, or no space can be made of it.
    """
    factory = _found(_run(path), path, name)
    options = _wanted(factory, input_shape, n_classes)
    space = own_space(factory, input_shape=input_shape, name=name, options=options)
    if space.n_classes != n_classes:
        raise SpaceError(
            f"{name} of {path.name} gives {space.n_classes} class scores, the data set has "
            f"{n_classes} classes",
            hint=f"let {name} take n_classes; it is given the data set's",
        )
    return space


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint="--module FILE.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file", hint="--module FILE.py")
    module = importlib.util.module_from_spec(spec)
    with _importable(path, module):
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a user's file may raise anything
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            raise UsageError(
                f"{path} cannot be run: {type(error).__name__}: {error} (line {line})"
            ) from error
    return module


@contextmanager
def _importable(path: Path, module: ModuleType) -> Iterator[None]:
    """Files beside ``path`` can be imported by it, as if it were a script."""
    folder = str(path.resolve().parent)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module  # dataclasses and typing look classes up there
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if before is not None:
            sys.modules[module.__name__] = before


def _found(module: ModuleType, path: Path, name: str) -> Callable[..., nn.Module]:
    factory = getattr(module, name, None)
    own = [
        key
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
    ]
    if factory is None or not callable(factory):
        near = difflib.get_close_matches(name, own, n=1) or own[-1:]
        raise UsageError(
            f"{path.name} has no class or function {name!r}"
            + (f"; its models: {', '.join(own)}" if own else ""),
            hint=f'[space] name = "{near[0]}"' if near else None,
        )
    return factory  # type: ignore[no-any-return]


def _wanted(
    factory: Callable[..., Any], input_shape: tuple[int, int, int], n_classes: int
) -> dict[str, Any]:
    """What the data set decides, by the names of the arguments."""
    known: dict[str, Any] = {
        **dict.fromkeys(CLASSES, n_classes),
        **dict.fromkeys(CHANNELS, input_shape[0]),
        "input_shape": input_shape,
    }
    parameters = inspect.signature(factory).parameters
    return {name: value for name, value in known.items() if name in parameters}
