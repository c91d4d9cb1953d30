"""The error tree: as drawn, picklable whole, and with remedies."""

import copy
import inspect
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest

from akv import errors
from akv.errors import AKVError

PLACE = {"key": "hello", "tag": "greetings"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "MissingKeyError": PLACE,
    "StoredTypeError": {"message": "what and remedy", **PLACE},
    "CorruptValueError": {"message": "what and remedy", **PLACE},
    "StoreUnavailableError": {"message": "what and remedy", "attempts": 3, "elapsed": 1.5},
}
DRAWN = re.compile(r"^(?P<indent>[│├└─ ]*)(?P<name>\w+Error)(?: \((?P<builtins>[\w, ]+)\))?(?P<comment>.*)$")


def subclasses(cls: type[AKVError]) -> Iterator[type[AKVError]]:
    yield cls
    for subclass in cls.__subclasses__():
        if subclass.__module__ == errors.__name__:
            yield from subclasses(subclass)


ALL = list(subclasses(AKVError))


def drawn_tree() -> dict[str, tuple[list[str], str]]:
    """Name -> its bases as the docstring draws them, and what it says about it."""
    tree: dict[str, tuple[list[str], str]] = {}
    path: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        match = DRAWN.match(line.removeprefix("    "))
        if match is None:
            continue
        depth = len(match["indent"]) // 4
        path[depth:] = [match["name"]]
        builtins = match["builtins"].split(", ") if match["builtins"] else []
        tree[match["name"]] = (path[-2:-1] + builtins, match["comment"])
    return tree


def made(cls: type[AKVError]) -> AKVError:
    return cls(**ARGUMENTS[cls.__name__]) if cls.__name__ in ARGUMENTS else cls("what and remedy")


def test_the_drawn_tree_is_the_real_tree() -> None:
    real = {cls.__name__: [base.__name__ for base in cls.__bases__] for cls in ALL}
    real["AKVError"] = []

    assert {name: bases for name, (bases, _) in drawn_tree().items()} == real


def test_everything_in_the_module_is_in_the_tree() -> None:
    defined = {name for name, thing in vars(errors).items() if getattr(thing, "__module__", "") == errors.__name__}

    assert defined - {"_rebuild"} == set(drawn_tree())


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_attributes_are_those_that_are_drawn(cls: type[AKVError]) -> None:
    drawn = re.findall(r"(?<=\s)\.(\w+)", drawn_tree()[cls.__name__][1])

    assert sorted(drawn) == sorted(vars(made(cls)))


def same(error: BaseException, original: AKVError) -> bool:
    return (
        type(error) is type(original)
        and error.args == original.args
        and str(error) == str(original)
        and vars(error) == vars(original)
    )


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling(cls: type[AKVError]) -> None:
    error = made(cls)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert same(ForkingPickler.loads(ForkingPickler.dumps(error)), error)
    assert same(copy.copy(error), error)
    assert same(copy.deepcopy(error), error)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_notes_survive_pickling(cls: type[AKVError]) -> None:
    error = made(cls)
    error.add_note("seen in process 7")

    assert pickle.loads(pickle.dumps(error)).__notes__ == ["seen in process 7"]


def test_a_subclass_of_a_user_survives_pickling() -> None:
    assert same(pickle.loads(pickle.dumps(OwnError(7))), OwnError(7))


class OwnError(errors.StoreError):
    def __init__(self, number: int) -> None:
        super().__init__("what", "and", "remedy")
        self.number = number


def fail(name: str) -> None:
    raise made(getattr(errors, name))


def test_errors_cross_a_process_pool_whole() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for cls in ALL:
            error = pool.submit(fail, cls.__name__).exception(timeout=60)
            assert error is not None
            assert same(error, made(cls))


def test_a_missing_key_shows_a_sentence_and_names_the_remedy() -> None:
    error = made(errors.MissingKeyError)

    assert str(error) == "no live entry for key 'hello', tag 'greetings': pass default= to get a value instead"
    assert isinstance(error, KeyError)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_is_documented(cls: type[AKVError]) -> None:
    assert cls.__doc__
    for attribute in vars(made(cls)):
        assert f"{attribute}: " in cls.__doc__
