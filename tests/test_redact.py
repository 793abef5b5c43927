import pytest
from sqlalchemy import make_url

from raycd.redact import (
    has_password,
    json_without_passwords,
    logins,
    without_passwords,
    without_paths,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:secret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql+psycopg://ann:p@ss@host:5432/db", "postgresql+psycopg://ann:***@host:5432/db"),
        ("uri: http://:token@host\nnext: a@b", "uri: http://:***@host\nnext: a@b"),
        ("http://host:5000/path", "http://host:5000/path"),
        (
            "'https://b.s3/a.png?X-Amz-Credential=A%2F&X-Amz-Expires=9&X-Amz-Signature=0f': 403",
            "'https://b.s3/a.png?X-Amz-Credential=***&X-Amz-Expires=9&X-Amz-Signature=***': 403",
        ),
        ("https://c.net/a?sv=2024&sig=a%3D b", "https://c.net/a?sv=2024&sig=*** b"),
        ("postgresql://host/db?user=a&password=b", "postgresql://host/db?user=a&password=***"),
        ("postgresql://ann@corp:secret@host/db", "postgresql://ann@corp:***@host/db"),
        ("postgresql+psycopg://ann:s/cret@h/db x@y", "postgresql+psycopg://ann:***@h/db x@y"),
        ("http://ann@shop.com:secret@h/a@b", "http://ann@shop.com:***@h/a@b"),
        ("postgresql://ann:s/e#x@h/db", "postgresql://ann:***@h/db"),
        ("mysql+pymysql://ann:s/e?x@h/db?ssl=a", "mysql+pymysql://ann:***@h/db?ssl=a"),
        ("milvus://root:p@s/e@host:1", "milvus://root:***@host:1"),
        ("postgresql://host:5432/db?options=a%40b", "postgresql://host:5432/db?options=a%40b"),
        ("https://h/a?api_key=b&access_token=c", "https://h/a?api_key=***&access_token=***"),
        ("s3://bucket/a:b/c@d", "s3://bucket/a:b/c@d"),
        ("sqlite:////home/ann/mlflow.db", "sqlite:////home/ann/mlflow.db"),
    ],
)
def test_only_the_password_goes(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize("password", ["secret", "s/e", "s/e#x", "s/e?x", "p@ss"])
def test_what_sqlalchemy_reads_as_a_password_goes(password: str) -> None:
    url = f"postgresql://ann:{password}@h/db"
    assert make_url(url).password in (password, "p")
    assert has_password(url)
    assert without_passwords(url) == "postgresql://ann:***@h/db"


def test_passwords_in_settings_go_and_all_else_stays() -> None:
    given = {"data": {"root": "https://ann:p@host", "n": 1}, "from": ("a", None, "s3://k:s@b/c")}
    shown = {
        "data": {"root": "https://ann:***@host", "n": 1},
        "from": ["a", None, "s3://k:***@b/c"],
    }
    assert json_without_passwords(given) == shown


def test_passwords_are_put_back_where_they_were() -> None:
    found = logins("zip://a::https://ann:p@ss@host:1/b.zip", "http://host/a:b@c", "")
    assert found == {"://ann:***@host:1": "://ann:p@ss@host:1"}
    assert logins("mysql://ann:s/e#x@h/db") == {"mysql://ann:***@h": "mysql://ann:s/e#x@h"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("there is no bundle at /home/ann/runs/demo/bundle", "there is no bundle at bundle"),
        ("writing failed: ~/gallery/gallery.sqlite: full", "writing failed: gallery.sqlite: full"),
        ("'/data/a.parquet' and (/data/b.parquet)", "'a.parquet' and (b.parquet)"),
        ("sqlite:////home/ann/gallery.sqlite", "sqlite:///gallery.sqlite"),
        (
            "postgresql://ann@host/db at https://host/a/b",
            "postgresql://ann@host/db at https://host/a/b",
        ),
        (
            "s3://bucket/a/b, head/head.json, 1/2 and /",
            "s3://bucket/a/b, head/head.json, 1/2 and /",
        ),
    ],
)
def test_folders_of_this_machine_go(text: str, shown: str) -> None:
    assert without_paths(text) == shown
