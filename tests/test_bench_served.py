"""``hasten bench --server``: servers that refuse, break, fall short or do not start; our own; and what every one is given."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

import hasten.bench.peers.servers as servers
from hasten.bench.own_server import options_of, own_contestants
from hasten.bench.peers.servers import LLAMA, Batches, Room, llama_recipe, served_peers
from hasten.bench.samples import UNSENT, first_difference
from hasten.bench.served import Absent, ServedContestant, Server, total_positions
from hasten.bench.session import ContestantFailed, ResultFile, Session, read_rows
from hasten.bench.tables import Comparison
from hasten.bench.words import FAILED, notes, speed_table
from hasten.bench.workloads import Load, Question
from hasten.cli.bench import bench
from hasten.cli.serve import serve
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.types import SamplingParams

STUB = Path(__file__).parent / "server_stub.py"
PARAMS = SamplingParams(max_tokens=11, ignore_eos=True)
PROMPTS = [[5, 6], [7], [9, 9, 9]]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def stub(how: str, stack: ExitStack, name: str = "") -> ServedContestant:
    server = Server(name or how, lambda port: [sys.executable, str(STUB), str(port), how], dict(os.environ))
    stack.callback(server.close)
    return ServedContestant(name or how, server, LLAMA)


def test_prompts_run_at_once_and_each_is_timed(stack: ExitStack) -> None:
    one = stub("in parallel", stack)
    samples = one.answer(PROMPTS, PARAMS, 0)
    assert [sample.tokens for sample in samples] == [[5] * 11, [7] * 11, [9] * 11]
    assert [sample.prompt_tokens for sample in samples] == [2, 1, 3]
    for sample in samples:
        assert sample.rounds == 0, "not known"
        assert 0.004 < sample.first_s < 10.0
        assert 0.020 < sample.decode_s < 10.0


def test_llama_is_asked_for_the_same_work(stack: ExitStack) -> None:
    one = stub("plain", stack)
    one.answer([[5, 6]], PARAMS, 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{one.server.port}/asked") as found:
        (asked,) = json.load(found)
    assert asked["path"] == "/completion"
    assert asked["prompt"] == [5, 6]
    assert (asked["n_predict"], asked["temperature"], asked["ignore_eos"]) == (11, 0.0, True)
    assert asked["cache_prompt"] is False
    with pytest.raises(ContestantFailed, match="temperature 0 only"):
        one.answer([[5]], SamplingParams(temperature=0.5), 0)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("refuses", "status 503"),
        ("short", "gave 10 tokens where 11"),
        ("breaks", "the replica has ended"),
        ("does not start", "ended with status 1: no such model"),
    ],
)
def test_a_server_that_fails_says_how(how: str, sentence: str, stack: ExitStack) -> None:
    with pytest.raises(ContestantFailed, match=sentence):
        stub(how, stack).answer(PROMPTS, PARAMS, 0)


def test_a_last_token_inside_a_character_is_counted_and_differs_from_nothing(stack: ExitStack) -> None:
    """llama.cpp's server makes it and never sends it; that is no failure, and no other text."""
    sample = stub("inside a character", stack).answer(PROMPTS, PARAMS, 0)[0]
    assert sample.tokens == [*[5] * 10, UNSENT]
    assert first_difference(sample.tokens, [5] * 11) is None
    assert first_difference(sample.tokens, [*[5] * 9, 6, 5]) == 9


def test_one_that_ends_in_between_says_so(stack: ExitStack) -> None:
    one = stub("plain", stack)
    one.answer(PROMPTS, PARAMS, 0)
    assert one.server.process is not None
    one.server.process.kill()
    one.server.process.wait()
    with pytest.raises(ContestantFailed, match="ended with status -9"):
        one.answer(PROMPTS, PARAMS, 0)


def test_a_whole_comparison_with_one_that_cannot(tmp_path: Path, stack: ExitStack) -> None:
    contestants = [
        stub("plain", stack),
        stub("in parallel", stack, "peer"),
        stub("short", stack),
        Absent("absent", "it has no server."),
    ]
    names = [one.name for one in contestants]
    results = ResultFile.open(tmp_path / "results.jsonl", {"modes": names, "other_engines": names[1:]}, {})
    load = Load("chats, 3 at once", [Question(str(at), [at, 7]) for at in range(6)], PARAMS, 3)
    assert Session([load], contestants, results, lambda: 1e10).run()
    found = Comparison(read_rows(results.path))
    rows = {row[1]: row for row in speed_table(found).rows}
    assert set(rows) == set(names) == {"plain", "peer", "short", "absent"}
    assert rows["peer"][2] == "same"
    assert rows["short"][3] == rows["absent"][3] == FAILED
    wall = [row["wall_s"] for row in results.rows if row["kind"] == "run" and row["mode"] == "plain"]
    low, high = 33 / max(wall), 33 / min(wall)
    assert low <= float(rows["plain"][3].split()[0]) * 1.01
    assert float(rows["plain"][3].split()[0]) <= high * 1.01
    said = notes(found)
    assert "absent is left out: it has no server." in said
    assert any("short is left out: short gave 10 tokens" in line for line in said)


def test_our_own_server_answers_by_tenants(
    tiny_model: Path, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    config = EngineConfig(model=str(tiny_model), threads=1, cache_tokens=4096)
    plain, auto = own_contestants(config, ["plain", "auto"], 2, stack)
    prompts = [[70 + at % 9 for at in range(150)], [80] * 20]
    first = plain.answer(prompts, PARAMS, 0)
    assert [len(sample.tokens) for sample in first] == [11, 11]
    for one, repeat in ((plain, 0), (auto, 0), (auto, 1)):
        assert [sample.tokens for sample in one.answer(prompts, PARAMS, repeat)] == [sample.tokens for sample in first]

    def cached(contestant: ServedContestant, repeat: int) -> int:
        assert contestant.key_of is not None
        headers = {"Authorization": f"Bearer {contestant.key_of(repeat)}", "Content-Type": "application/json"}
        body = json.dumps({"prompt": prompts[0], "max_tokens": 1}).encode()
        address = f"http://127.0.0.1:{contestant.server.port}/v1/completions"
        with urllib.request.urlopen(urllib.request.Request(address, body, headers)) as found:
            return int(json.load(found)["usage"]["prompt_tokens_details"]["cached_tokens"])

    asked = [cached(one, repeat) for one, repeat in ((plain, 0), (auto, 0), (auto, 1))]
    assert asked == [128] * 3, "who has asked before finds it again"
    assert [cached(one, repeat) for one, repeat in ((plain, 1), (plain, -1), (auto, -1))] == [0] * 3, (
        "modes and repetitions are tenants of their own"
    )
    with pytest.raises(ConfigError, match="plain and auto"):
        own_contestants(config, ["suffix"], 1, stack)


def test_options_are_those_of_the_server() -> None:
    config = EngineConfig(model="x", threads=3, prefix_cache=False, precision="int8", draft="suffix", explain=True)
    options = options_of(config)
    assert options == ["--draft", "suffix", "--precision", "int8", "--threads", "3", "--no-prefix-cache"]
    known = {name for parameter in serve.params for name in (*parameter.opts, *parameter.secondary_opts)}
    every = EngineConfig(
        model="x", draft="suffix", draft_model="y", precision="int8", kv_cache_dtype="int8", device="cpu", threads=1,
        context_length=64, cache_tokens=64, max_rows=64, max_sequences=2, prefix_cache=False, verify="block", control="fixed(2)",
    )  # fmt: skip
    assert {option for option in options_of(every) if option.startswith("--")} <= known


def test_every_engine_is_given_the_same_room(tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "python_of", lambda recipe, say: Path(sys.executable))
    monkeypatch.setattr(servers, "_llama_program", lambda say: Path("/opt/llama-server"))
    assert total_positions([[1] * 10, [1] * 100], 64, 8) == 8 * (100 + 64 + 64)
    room = Room(tmp_path / "m.gguf", 2, 8, 1824)
    llama, int8, int4, absent = served_peers(["llama.cpp", "openvino", "transformers"], room, print, stack)
    assert isinstance(llama, ServedContestant)
    command = llama.server.command(4321)
    pairs = dict(zip(command[1::2], command[2::2], strict=True))
    assert pairs == {"--host": "127.0.0.1", "-m": str(room.gguf), "-t": "2", "-np": "8", "-c": "1824", "--port": "4321"}
    assert isinstance(int8, Batches)
    assert (int8.settings["threads"], int8.settings["parallel"], int8.settings["precision"]) == (2, 8, "int8")
    assert int8.worker.is_file()
    assert int4.name == "openvino int4"
    with pytest.raises(ContestantFailed, match="transformers has no server"):
        absent.answer([[1]], PARAMS, 0)
    assert "LLAMA_USE_PREBUILT_UI=OFF" in llama_recipe().variables["CMAKE_ARGS"]


def test_what_does_not_install_is_told(tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(recipe: object, say: object) -> Path:
        raise ContestantFailed("no index")

    monkeypatch.setattr(servers, "python_of", fails)
    for one in served_peers(["llama.cpp", "openvino"], Room(tmp_path / "m.gguf", 2, 8, 512), print, stack):
        with pytest.raises(ContestantFailed, match="no index"):
            one.answer([[1]], PARAMS, 0)


BATCHES = """
import json, sys
sys.path.insert(0, {workers!r})
from talk import say, settings
assert settings()["parallel"] == 2
say({{"about": {{}}}})
for line in sys.stdin:
    asked = json.loads(line)
    counts = [asked["max_tokens"] - (prompt[0] == 13) for prompt in asked["prompts"]]
    times = {{"first_s": 0.1, "decode_s": 0.5}}
    say({{"samples": [{{"tokens": [p[0]] * n, **times}} for p, n in zip(asked["prompts"], counts)]}})
"""


def test_a_worker_of_batches(tmp_path: Path, stack: ExitStack) -> None:
    script = tmp_path / "worker.py"
    script.write_text(BATCHES.format(workers=str(servers.WORKERS)))
    one = Batches("batches", Path(sys.executable), {"name": "batches", "threads": 1, "parallel": 2}, worker=script)
    stack.callback(one.close)
    assert [(sample.tokens, sample.first_s) for sample in one.answer([[3], [4]], PARAMS, 0)] == [([3] * 11, 0.1), ([4] * 11, 0.1)]
    with pytest.raises(ContestantFailed, match="gave 10 tokens where 11"):
        one.answer([[3], [13]], PARAMS, 0)
    with pytest.raises(ContestantFailed, match="temperature 0 only"):
        one.answer([[3]], SamplingParams(temperature=1.0), 0)


def test_what_does_not_go_together_is_refused() -> None:
    done = CliRunner().invoke(bench, ["--server", "--never-slower"])
    assert done.exit_code != 0
    assert "--server compares plain, auto and other engines" in str(done.exception) + done.output
