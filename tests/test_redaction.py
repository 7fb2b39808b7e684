"""No secret of a location is shown or stored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.errors import LmlabError, UserError
from lmlab.redaction import redact, redact_all

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfi"
URLS = [
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/folder/a.jsonl.gz",
    f"https://user:{SECRET}@host.org/a.jsonl?download=1",
    f"https://{SECRET.replace('/', '')}@github.com/x/y",
    f"simplecache::s3://key:{SECRET}@bucket/*.parquet",
    f"zip://a.csv::https://u:{SECRET}@host:8080/x.zip",
    f"https://b.s3.amazonaws.com/k?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}&X-Amz-Expires=60",
    f"https://acc.blob.core.windows.net/c/b.jsonl?sv=2022&sig={SECRET}",
    f"https://host/x?a=1&access_token={SECRET}#part",
    f"https://host/x?token={SECRET}",
    f"abfs://key:{SECRET}@account.dfs.core.windows.net/x",
    f"The file system failed: {{'key': 'name', 'secret': '{SECRET}'}}",
    f"Authorization: Bearer {SECRET.replace('/', '_')}abc",
    f'aws_secret_access_key="{SECRET}"',
]
HARMLESS = [
    "s3://bucket/folder/*.jsonl.zst",
    "hf://datasets/user/name@main/data/train.parquet",
    "http://localhost:8080/v1/files@2",
    "abfs://container@account.dfs.core.windows.net/x",
    "books/**/*.txt",
    "https://host/x?versionId=3&download=true",
    "C:/a@b/c",
    "mail me@example.org, or see https://example.org: thanks @all",
    "a line: b, 3.5 s",
]


@pytest.mark.parametrize("text", URLS)
def test_no_part_of_a_secret_is_left(text):
    shown = redact(text)
    assert "***" in shown and redact(shown) == shown
    assert not any(part in shown for part in SECRET.split("/"))
    assert str(UserError(f"'{text}' is not there.", f"Check {text}.")).count("***") >= 2
    assert all(part not in repr(LmlabError(text)) for part in SECRET.split("/"))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_a_whole_value_is_redacted():
    found = redact_all({"sources": [{"path": URLS[0], "n": 3}], URLS[1]: (URLS[2], None)})
    assert SECRET not in repr(found) and found["sources"][0]["n"] == 3


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="@/?#'\"<>:", exclude_categories=["Z", "C"]), min_size=1)
)
def test_any_password_is_hidden(password):
    assert redact(f"see 's3://name:x{password}@bucket/key', please") == "see 's3://***@bucket/key', please"


@pytest.mark.parametrize(
    "text",
    [
        "https://user:a@SECRET@host/x",
        "//user:SECRET@host/x",
        "https%3A%2F%2Fuser%3ASECRET%40host%2Fx",
        "https://h/x?subscription-key=SECRET",
        "https://h/x?auth_key=SECRET&passphrase=SECRET&hdnts=SECRET",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=SECRET==;EndpointSuffix=x",
        "aws_secret_access_key = SECRET",
        "HF_TOKEN=SECRET lmlab run",
        "Authorization: Token SECRETSECRET",
        "glpat-SECRETSECRETSECRET",
        "xoxb-123-SECRETSECRET",
    ],
)
def test_secrets_in_other_clothes_are_hidden(text):
    assert "SECRET" not in redact(text) and redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b/c",
        "a // b: c@d",
        "abfss://container@acct.dfs.core.windows.net/x",
        "max_tokens=5, tokens=500",
        "def f(password=None): pass",
        "authorization is needed: ask",
        "s3://bucket/x@y",
    ],
)
def test_what_only_looks_like_one_stays(text):
    assert redact(text) == text
