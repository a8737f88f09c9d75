"""`rerank serve`: what it refuses before anything is loaded, and a service in its own process, on a small model."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import httpx
import pytest
from command import Cli, assert_error
from service import QUERY, body
from serving import ended, serving

import rerank
from rerank.cli.serve import aliases
from rerank.cli.serve_file import ServeFile


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--host", "0.0.0.0"], "there are no keys; give --keys FILE or RERANK_API_KEYS, or say --without-keys"),
        (["--host", "example.invalid"], "there are no keys"),
        (["--host", "no such host", "--without-keys"], "cannot listen on 'no such host'"),
        (["--limit", "documents=0"], "--limit documents: Input should be greater than or equal to 1"),
        (["--limit", "docs=3"], "limits are body_bytes, documents"),
        (["--scores", "softmax"], "--scores: Input should be 'exp', 'sigmoid' or 'min-max'"),
        (["--served-name", "a b"], "--served-name"),
        (["--strategy", "listwse"], "did you mean 'listwise'?"),
        (["--keys", "no-such-file"], "no-such-file"),
        (["--config", "no-such.yaml"], "cannot read no-such.yaml"),
        (["--config", "no-such.yaml", "--model", "x"], "--model is given beside --config"),
        (["--served-name", "a", "--served-name", "a", "--port", "70000"], "65535"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(cli: Cli, flags: list[str], text: str) -> None:
    assert_error(cli("serve", *flags), text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("rankers: []", "rankers: List should have at least 1 item"),
        ("rankers: [{name: a, stratgy: b}]", "rankers.0.stratgy: Extra inputs are not permitted"),
        ("rankers: [{name: a}, {name: b, aliases: [a]}]", "two rankers would be served as 'a'"),
        ("rankers: [{name: a}]\nlimits: {timeout_s: 0}", "limits.timeout_s: Input should be greater than 0"),
        ("rankers: [{name: a, options: {window: 3}}]", "unknown pointwise option 'window'"),
        ("rankers: {", "is no YAML"),
        ("- a", "the file"),
        ("rankers: [{name: a}]\nkeys: k.txt", "k.txt"),
    ],
)
def test_a_file_that_is_wrong_is_refused(cli: Cli, tmp_path: Path, content: str, text: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(content)
    assert_error(cli("serve", "--config", file, "--port", 0), text)


def test_keys_and_none_are_one_too_many(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_API_KEYS", "0123456789abcdef")
    assert_error(cli("serve", "--without-keys"), "leave out one of them")


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_error(cli("serve", "--port", port, "--model", "no-such-model"), f"port {port}: Address already in use")


def test_an_adapter_is_a_name_where_one_ranker_alone_has_it() -> None:
    parts = [{"name": "a"}, {"name": "b", "strategy": "first"}, {"name": "c", "strategy": "pointwise % 5 >> first"}]
    for chosen, expected in (
        (parts[:2], [["smollm2-135m-pointwise"], ["smollm2-135m-first"]]),
        ([parts[0], parts[2]], [[], []]),
        ([{"name": "smollm2-135m-first", "strategy": "first"}], [[]]),
    ):
        told = ServeFile.model_validate({"rankers": chosen})
        assert aliases(told, told.plans()) == expected


def test_one_ranker_is_served_and_ctrl_c_ends_it(model: list[str], tiny_model: Path) -> None:
    flags = [*model, "--served-name", "small", "--served-name", "rerank-v3.5", "--prompt", "pointwise-yes-no"]
    flags.append("--no-page")
    with serving(*flags) as (process, url, line):
        assert line == f"rerank serves small (pointwise) at {url}; Ctrl-C ends it\n"
        answer = httpx.post(f"{url}/v2/rerank", json=body(model="rerank-v3.5"), timeout=60).json()
        assert httpx.get(url).status_code == 404
        status, out, log = ended(process, signal.SIGINT)
    assert (status, out) == (0, "")
    # a request's line is written after its answer is sent, so the last one's may come after the signal's
    assert sorted(entry["event"] for entry in log) == ["ending", "request", "request"], log
    assert QUERY not in str(log)
    ranker = rerank.load("pointwise", model=str(tiny_model), dtype="float32", device="cpu", prompt="pointwise-yes-no")
    expected = ranker.rank(QUERY, body()["documents"])
    assert [str(result["index"]) for result in answer["results"]] == expected.doc_ids
    scores = [result["rerank"]["score"] for result in answer["results"]]
    assert scores == pytest.approx([hit.score for hit in expected], abs=1e-4)


def test_a_file_serves_several_that_share_a_model_under_keys(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        f"""
model: {tiny_model}
device: cpu
dtype: float32
limits: {{documents: 5}}
rankers:
  - {{name: fast, strategy: pointwise, prompt: pointwise-yes-no, options: {{passage_tokens: 20}}}}
  - name: best
    strategy: pointwise(prompt=pointwise-yes-no) % 3 >> first(window=4, step=2)
    aliases: [rerank-v3.5]
"""
    )
    key = "0123456789abcdef"
    with serving("--config", file, RERANK_API_KEYS=key) as (process, url, line):
        assert "fast (pointwise), best (pointwise % 3 >> first)" in line
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(url).headers["content-type"] == "text/html; charset=utf-8"
        client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        cards = client.get("/v1/models").json()["data"]
        assert [(card["id"], card["scores"]) for card in cards] == [("fast", "sigmoid"), ("best", "min-max")]
        for name in ("fast", "best", "rerank-v3.5"):
            answer = client.post("/v1/rerank", json=body(model=name)).json()
            assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3]
        assert client.post("/v1/rerank", json=body(documents=["a"] * 6)).status_code == 413
        client.close()
        assert ended(process, signal.SIGTERM)[0] == 0
