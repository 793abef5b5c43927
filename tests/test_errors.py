"""The error tree: one message a mistake, the same in every process."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from raycd import errors
from raycd.data.images import BrokenImage
from raycd.search.history import NoHistory, OtherEncoder
from raycd.search.query import NothingLeft
from raycd.search.searcher import BrokenReference, NoReference
from serve.security.fetch import FetchRefused


def test_every_error_of_the_tree_is_a_raycd_error() -> None:
    kinds = [
        errors.ConfigError,
        errors.DataError,
        errors.WeightsError,
        errors.RunError,
        errors.TrackingError,
    ]
    assert all(issubclass(kind, errors.RaycdError) for kind in kinds)


def test_a_message_says_what_got_expected_and_what_to_do() -> None:
    error = errors.DataError(
        "no such folder", got="/data", expected="captions/", do="give --data.root"
    )
    assert (
        str(error)
        == "no such folder\n  got:      /data\n  expected: captions/\n  to do:    give --data.root"
    )


def test_a_message_leaves_out_what_is_not_known() -> None:
    assert str(errors.RunError("the run is in use")) == "the run is in use"


def test_a_value_that_is_false_is_still_shown() -> None:
    assert str(errors.ConfigError("impossible", got=0)) == "impossible\n  got:      0"


@pytest.mark.parametrize("kind", [errors.RaycdError, errors.ConfigError, errors.TrackingError])
def test_pickling_keeps_kind_and_message(kind: type[errors.RaycdError]) -> None:
    error = kind("what", got=1, expected=2, do="fix it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        errors.GalleryError("the gallery is full", "full", got="a", do="b"),
        BrokenImage("an image", reason="empty", got=1),
        FetchRefused("a URL", reason="scheme"),
        NothingLeft(),
        NoHistory(),
        OtherEncoder(),
        NoReference("a.jpg"),
        BrokenReference("a.jpg", BrokenImage("an image", reason="missing")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pickling_keeps_what_an_error_knows_whatever_it_is_made_of(
    error: errors.RaycdError,
) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def _fail() -> None:
    raise errors.WeightsError("weights fail their hash", got="ab", expected="cd")


def test_an_error_crosses_a_process_border_whole() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(errors.WeightsError) as caught,
    ):
        pool.submit(_fail).result()
    assert str(caught.value) == "weights fail their hash\n  got:      ab\n  expected: cd"
