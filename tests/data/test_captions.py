import pytest

from raycd.data.captions import evaluation_text, training_texts


@pytest.mark.parametrize(
    ("captions", "text"),
    [
        (["is solid black", "has long sleeves"], "Is solid black and has long sleeves"),
        ([" yello and more flowing.", "?short, and black,"], "Yello and more flowing and short, and black"),
        (["", "is blue"], "Is blue"),
        (["is blue", " . "], "Is blue"),
        (["", ""], ""),
        ([], ""),
        (["Has a V-neck", "ABC print"], "Has a V-neck and ABC print"),
        (["a", "b", "c"], "A and b and c"),
    ],
)
def test_evaluation_joins_the_captions_in_their_annotated_order(captions: list[str], text: str) -> None:
    assert evaluation_text(captions) == text


@pytest.mark.parametrize(
    ("captions", "texts"),
    [
        (["is red", "has dots."], ("Is red and has dots", "Has dots and is red", "Is red", "Has dots")),
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
    assert training_texts(captions)[0] == evaluation_text(captions)
