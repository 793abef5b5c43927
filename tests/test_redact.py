import pytest

from raycd.redact import without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:secret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql+psycopg://ann:p@ss@host:5432/db", "postgresql+psycopg://ann:***@host:5432/db"),
        ("uri: http://:token@host\nnext: a@b", "uri: http://:***@host\nnext: a@b"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("s3://bucket/a:b/c@d", "s3://bucket/a:b/c@d"),
        ("sqlite:////home/ann/mlflow.db", "sqlite:////home/ann/mlflow.db"),
    ],
)
def test_only_the_password_goes(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
