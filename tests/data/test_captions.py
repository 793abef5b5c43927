import pytest

from raycd.data.captions import Wording, example_texts, training_texts


@pytest.mark.parametrize(
    ("captions", "text"),
    [
        (["is solid black", "has long sleeves"], "Is solid black and has long sleeves"),
        (
            [" yello and more flowing.", "?short, and black,"],
            "Yello and more flowing and short, and black",
        ),
        (["", "is blue"], "Is blue"),
        (["is blue", " . "], "Is blue"),
        (["", ""], ""),
        ([], ""),
        (["Has a V-neck", "ABC print"], "Has a V-neck and ABC print"),
        (["a", "b", "c"], "A and b and c"),
    ],
)
def test_evaluation_joins_the_captions_in_their_annotated_order(
    captions: list[str], text: str
) -> None:
    assert Wording().evaluation(captions) == text


@pytest.mark.parametrize(
    ("captions", "texts"),
    [
        (
            ["is red", "has dots."],
            ("Is red and has dots", "Has dots and is red", "Is red", "Has dots"),
        ),
        (["is red"], ("Is red", "Is red", "Is red", "Is red")),
        (["", "is red"], ("Is red", "Is red", "Is red", "Is red")),
        (["a", "b", "c"], ("A and b and c", "C and b and a", "A", "C")),
        (["", " "], ("", "", "", "")),
    ],
)
def test_training_has_four_texts(captions: list[str], texts: tuple[str, ...]) -> None:
    assert training_texts(captions) == texts


def test_the_first_training_text_is_the_evaluation_text() -> None:
    captions = ["is longer?", "and lighter"]
    assert training_texts(captions)[0] == Wording().evaluation(captions)


ANNOTATED = [[f"is number {i}.", "is drawn"] for i in range(40)] + [
    ["", " . "],
    ["is long " * 10, "is short"],
]


def test_example_texts_are_short_distinct_captions_as_training_shows_them() -> None:
    texts = example_texts(ANNOTATED * 2, 0)
    assert len(texts) == len(set(texts)) == 12
    assert set(texts) <= {f"Is number {i}" for i in range(40)}
    assert max(len(text) for text in example_texts([["x" * 60, ""], ["y" * 61, ""]], 0)) == 60


def test_the_seed_draws_the_example_texts() -> None:
    assert example_texts(ANNOTATED, 3) == example_texts(ANNOTATED, 3) != example_texts(ANNOTATED, 4)


def test_few_captions_give_few_example_texts() -> None:
    assert example_texts([["is red", "x"], ["is red", "y"], ["", ""]], 0) == ["Is red"]
    assert example_texts([], 0) == []


def test_a_kept_empty_caption_leaves_its_and_as_clip4cir_asks_it() -> None:
    kept = Wording(keep_empty=True)
    assert kept.evaluation(["", "is red."]) == " and is red"
    assert kept.evaluation(["is red", ". "]) == "Is red and "
    assert kept.training(["", "is red"]) == (" and is red", "Is red and ", "", "Is red")
    assert kept.evaluation(["", ". "]) == ""
    assert Wording().evaluation(["", "is red."]) == "Is red"


def test_raw_captions_are_texts_as_annotated() -> None:
    raw = Wording(raw=True)
    assert raw.evaluation(["Make it blue.  "]) == "Make it blue.  "
    assert raw.training(["make it blue."]) == ("make it blue.",) * 4
