"""Further real clients against a running server: OpenAI's for JavaScript, LangChain, and curl. OpenAI's and Anthropic's for Python
are in test_serve_openai.py, test_serve_forms.py and test_serve_interfaces.py."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from serving import Running

SCRIPT = Path(__file__).with_name("clients") / "openai_client.mjs"
NPM_PACKAGE = "openai@7"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
    "title": "Place",
    "description": "A place.",
}
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "def fibonacci(number):"}],
    "max_tokens": 30,
    "seed": 5,
}


@pytest.fixture(scope="module")
def node_folder() -> Path:
    """A folder where node finds OpenAI's package; it is installed once for all runs."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = Path(platformdirs.user_cache_dir("hasten")) / "test-clients" / NPM_PACKAGE.replace("@", "-")
    if not (folder / "node_modules" / "openai" / "package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), NPM_PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install {NPM_PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def test_openais_client_for_javascript(server: Running, node_folder: Path) -> None:
    script = shutil.copy(SCRIPT, node_folder / SCRIPT.name)  # node looks for packages beside the script
    command = ["node", str(script), server.url + "/v1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    same = server.post("/v1/chat/completions", ASK).json()
    assert seen["text"] == seen["streamed"] == same["choices"][0]["message"]["content"]
    assert seen["usage"]["completion_tokens"] == same["usage"]["completion_tokens"] == len(seen["logprobs"])
    assert seen["streamedUsage"]["completion_tokens"] == same["usage"]["completion_tokens"]
    assert {count for _, count in seen["logprobs"]} == {2}
    assert json.loads(seen["formed"])["city"] in ("Oslo", "Rome")
    assert seen["finish"] == "tool_calls"
    for call in (seen["call"], seen["streamedCall"]):
        assert call["name"] == "weather"
        assert json.loads(call["arguments"])["city"] in ("Oslo", "Rome")
    assert seen["response"]
    assert seen["embedding"] > 8
    assert seen["models"] == ["tiny"]
    assert seen["errors"] == [
        ["BadRequestError", 400, "temperature"],
        ["NotFoundError", 404, "model"],
        ["BadRequestError", 400, "messages"],
    ]


def test_langchain(server: Running) -> None:
    langchain = pytest.importorskip("langchain_openai")
    options: dict[str, Any] = {"base_url": server.url + "/v1", "api_key": "none", "model": "tiny", "seed": 5, "max_retries": 0}
    model = langchain.ChatOpenAI(max_tokens=30, temperature=0.7, stream_usage=True, **options)
    ask = ASK["messages"][0]["content"]
    whole = model.invoke(ask)
    assert (
        whole.content == server.post("/v1/chat/completions", {**ASK, "temperature": 0.7}).json()["choices"][0]["message"]["content"]
    )
    chunks = list(model.stream(ask))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata] == [
        whole.usage_metadata["output_tokens"]
    ]
    longer = langchain.ChatOpenAI(max_tokens=300, **options)
    formed = longer.with_structured_output(SCHEMA, method="json_schema").invoke(ask)
    assert formed["city"] in ("Oslo", "Rome")
    tool = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": SCHEMA}}
    called = longer.bind_tools([tool], tool_choice="weather").invoke(ask)
    assert called.tool_calls[0]["name"] == "weather"
    assert called.tool_calls[0]["args"]["city"] in ("Oslo", "Rome")
    logprobs = model.bind(logprobs=True, top_logprobs=2).invoke(ask).response_metadata["logprobs"]["content"]
    assert len(logprobs) == whole.usage_metadata["output_tokens"]
    with pytest.raises(Exception, match="temperature"):
        langchain.ChatOpenAI(temperature=-1, **options).invoke(ask)


def curl(server: Running, body: Any, *options: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--max-time", "120", *options, "-H", "Content-Type: application/json"]
    command += ["--data-binary", "@-", server.url + "/v1/chat/completions"]
    return subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, timeout=150, check=True).stdout


def test_curl(server: Running) -> None:
    whole = json.loads(curl(server, ASK))["choices"][0]
    lines = curl(server, {**ASK, "stream": True}, "--no-buffer").splitlines()
    events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or "" for line in events[:-1]]
    assert "".join(parts) == whole["message"]["content"]
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    formed = json.loads(curl(server, {**ASK, "max_tokens": 300, "response_format": form}))
    assert json.loads(formed["choices"][0]["message"]["content"])["city"] in ("Oslo", "Rome")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    called = json.loads(curl(server, {**ASK, "max_tokens": 300, "tools": tools, "tool_choice": "required"}))
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"
    entries = json.loads(curl(server, {**ASK, "logprobs": True, "top_logprobs": 1}))["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries).startswith(whole["message"]["content"][:10])
    refused = curl(server, {**ASK, "temperature": -1}, "--write-out", "\n%{http_code}")
    body, status = refused.rsplit("\n", 1)
    assert status == "400"
    assert json.loads(body)["error"]["param"] == "temperature"
