"""Other engines as contestants: processes that crash, raise, fall short or say something else; environments that do not install."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import hasten.bench.peers.environment as environment
from hasten.bench.peer_quality import add_perplexities
from hasten.bench.peers import check_names, dense_type, engines, llama_arguments, llama_variables, make_peers
from hasten.bench.peers.environment import Recipe, python_of, versions_of
from hasten.bench.peers.process import Peer, Worker
from hasten.bench.perplexity import chunks_of, perplexity
from hasten.bench.session import ContestantFailed, ResultFile, Session, read_rows
from hasten.bench.tables import Comparison
from hasten.bench.words import notes, speed_table
from hasten.bench.workloads import Load, Question
from hasten.core.errors import ConfigError
from hasten.core.types import Batch, SamplingParams, Segment
from hasten.model.precision import INT8
from test_bench import Stub
from tiny import tiny_engine

WORKER = Path(__file__).parent / "peer_worker.py"
PARAMS = SamplingParams(max_tokens=11, ignore_eos=True)


def peer(how: str, name: str = "") -> Peer:
    settings = {"name": name or how, "how": how, "threads": 1}
    return Peer(name or how, "plain", Worker(Path(sys.executable), WORKER, settings))


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_peer_answers_and_is_timed(closing: ExitStack) -> None:
    good = peer("plain")
    closing.callback(good.close)
    (sample,) = good.answer([[5, 6]], PARAMS, 0)
    assert sample.tokens == [5] * 11
    assert sample.rounds == 5, "two at a time after the first"
    assert 0.002 <= sample.first_s < 1.0
    assert 0.010 <= sample.decode_s < 2.0
    assert good.perplexity([[1, 2, 3], [4, 5]]) == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("crashes", "ended with signal SIGSEGV"),
        ("raises", "ValueError: no"),
        ("short", "gave 10 tokens where 11"),
        ("does not load", "status 1: no such model"),
        ("unheard", "0 of 11 tokens were heard of"),
    ],
)
def test_a_peer_that_fails_says_how(how: str, sentence: str, closing: ExitStack) -> None:
    bad = peer(how)
    closing.callback(bad.close)
    with pytest.raises(ContestantFailed, match=sentence):
        bad.answer([[5, 6]], PARAMS, 0)


def test_modes_share_a_process_that_is_started_again_after_a_crash(closing: ExitStack) -> None:
    first = peer("crashes")
    second = Peer("other mode", "lookup", first.worker)
    closing.callback(first.close)
    brief = SamplingParams(max_tokens=8, ignore_eos=True)
    first.answer([[5]], brief, 0)
    process = first.worker.process
    second.answer([[5]], brief, 0)
    assert first.worker.process is process
    with pytest.raises(ContestantFailed, match="SIGSEGV"):
        first.answer([[5]], PARAMS, 0)
    assert len(second.answer([[5]], brief, 0)[0].tokens) == 8
    assert first.worker.process is not process


def test_workers_see_no_packages_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("KEPT", "yes")
    assert "PYTHONPATH" not in environment.own_variables()
    assert environment.own_variables()["KEPT"] == "yes"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ContestantFailed, match="temperature 0 only"):
        peer("plain").answer([[5]], SamplingParams(temperature=0.5), 0)
    with pytest.raises(ContestantFailed, match="one request"):
        peer("plain").answer([[5], [6]], PARAMS, 0)


def test_a_whole_comparison_flags_other_text_and_goes_on_after_a_crash(tmp_path: Path, closing: ExitStack) -> None:
    peers = [peer("plain", "peer"), peer("other text"), peer("crashes"), peer("no logits")]
    for each in peers:
        closing.callback(each.close)
    names = ["plain", *(each.name for each in peers)]
    settings = {"modes": names, "other_engines": names[1:]}
    results = ResultFile.open(tmp_path / "results.jsonl", settings, {"commit": "abc"})
    load = Load("one", [Question(str(at), [at, 7]) for at in range(3)], PARAMS)
    assert Session([load], [Stub("plain"), *peers], results, lambda: 1e10).run()
    found = Comparison(read_rows(results.path))
    texts = {row[1]: row[2] for row in speed_table(found).rows}
    assert texts == {"plain": "", "peer": "same", "other text": "3 other", "no logits": "same", "crashes": ""}
    assert speed_table(found).rows[-1][1:4] == ["crashes", "", "failed"]
    assert "SIGSEGV" in found.failures["crashes"]
    assert any("crashes is left out" in line for line in notes(found))


def test_perplexity_stands_beside_and_says_where_it_is_unknown(
    tmp_path: Path, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wikitext2_test_part.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    monkeypatch.setenv("HASTEN_SHARED_DATA", str(tmp_path))
    engine = tiny_engine()
    engine.tokenizer.prefix_ids = ()  # type: ignore[misc]
    peers = [peer("plain", "peer")]
    for each in peers:
        closing.callback(each.close)
        each.worker.started()
    results = ResultFile.open(tmp_path / "results.jsonl", {"modes": []}, {})
    broken = Peer("broken", "plain", Worker(None, WORKER, {"name": "broken"}, "it could not be installed"))
    add_perplexities({"plain": engine, "auto": engine, "int8 plain": tiny_engine(precision=INT8)}, [peers[0], broken], results, 2)
    found = Comparison(results.rows).perplexities
    assert peers[0].worker.process is None, "processes that are not needed hold no memory"
    assert found["plain"] == found["auto"]
    assert found["int8 plain"] == pytest.approx(found["plain"], rel=0.2)
    assert found["int8 plain"] != found["plain"]
    assert found["peer"] == pytest.approx(math.exp(0.5))
    assert found["broken"] is None
    assert any("No perplexity of broken: it could not be installed" in line for line in notes(Comparison(results.rows)))
    count = len(results.rows)
    add_perplexities({"plain": engine, "auto": engine}, [peers[0]], results, 2)
    assert len(results.rows) == count


def test_perplexity_is_that_of_token_by_token_decoding() -> None:
    engine = tiny_engine()
    chunk = [3, 1, 4, 1, 5, 9, 2, 6]
    losses = []
    for at in range(1, len(chunk)):
        logits = engine.executor.forward(Batch([Segment([0], 0, chunk[:at], first_logit=at - 1)]))[0]
        losses.append(-float(logits.log_softmax(-1)[chunk[at]]))
    assert perplexity(engine.executor, [chunk]) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-9)
    engine.tokenizer.prefix_ids = (7,)  # type: ignore[misc]
    assert chunks_of(engine.tokenizer, "abcdefgh", 3, 9) == [[7, 0, 1], [7, 3, 4], [7, 6, 7]]


def test_environments_are_made_once_and_failures_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    ran: list[list[str]] = []

    def fake(recipe: Recipe, command: list[str], variables: dict[str, str]) -> str:
        ran.append(command)
        if "venv" in command:
            python = tmp_path / "peers" / recipe.name / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        return "first==1.0\n" if "list" in command else ""

    monkeypatch.setattr(environment, "_run", fake)
    recipe = Recipe("some", (("first",), ("second", "third")))
    said: list[str] = []
    python = python_of(recipe, said.append)
    assert [command[-2:] for command in ran[1:3]] == [["install", "first"], ["second", "third"]]
    assert versions_of(recipe) == ["first==1.0"]
    assert python_of(recipe, said.append) == python
    assert len(ran) == 4, "the second time nothing is run: it works offline"
    (tmp_path / "peers" / "some" / "models").mkdir()
    python_of(Recipe("some", (("other",),)), said.append)
    assert len(ran) == 7, "another recipe makes another environment"
    assert sorted(path.name for path in (tmp_path / "peers" / "some").iterdir()) == ["bin", "models", "ready.json"]


def test_a_pip_that_fails_is_told() -> None:
    with pytest.raises(ContestantFailed, match="ERROR: nothing like that"):
        environment._run(Recipe("x", ()), [sys.executable, "-c", "import sys; sys.exit('a\\nERROR: nothing like that\\nb')"], {})


def test_engines_and_their_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closing: ExitStack) -> None:
    assert all(engine.script.is_file() for engine in engines().values())
    with pytest.raises(ConfigError, match=r"did you mean 'llama\.cpp'"):
        check_names("lama.cpp")
    (missing,) = make_peers(check_names("vllm"), tmp_path / "m.gguf", None, 2, 4096, print, closing)
    with pytest.raises(ContestantFailed, match="for CUDA"):
        missing.answer([[1]], PARAMS, 0)
    assert check_names("openvino, transformers") == ["openvino", "transformers"]

    def fails(recipe: Recipe, say: object) -> Path:
        raise ContestantFailed("no index")

    monkeypatch.setattr("hasten.bench.peers.python_of", fails)
    peers = make_peers(["llama.cpp"], tmp_path / "m.gguf", None, 2, 4096, print, closing)
    assert [each.name for each in peers] == ["llama.cpp", "llama.cpp prompt lookup"]
    with pytest.raises(ContestantFailed, match="no index"):
        peers[0].answer([[1]], PARAMS, 0)
    assert json.dumps(peers[0].worker.settings)
    assert peers[0].worker is not peers[1].worker
    dense = make_peers(["transformers"], tmp_path / "m.gguf", tmp_path / "d.gguf", 2, 4096, print, closing)
    kind = dense[0].worker.settings["precision"]
    assert [each.name for each in dense] == [f"transformers {kind}{way}" for way in ("", " prompt lookup", " draft model")]
    assert len({id(each.worker) for each in dense}) == 1, "one copy of the weights for all its modes"


@pytest.mark.skipif(not llama_arguments({"avx"}), reason="the flags are those of x86")
def test_build_flags_fit_the_processor() -> None:
    assert llama_arguments({"avx", "avx2", "sse"}) == "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON"
    assert "AVX512" not in llama_arguments({"avx2", "fma"})
    assert llama_arguments({"amx_tile", "amx_int8"}) == "-DGGML_NATIVE=OFF -DGGML_AMX_TILE=ON -DGGML_AMX_INT8=ON"
    assert llama_arguments(set()) == ""
    assert llama_variables({"avx2"}, "-DA=OFF") == {"CMAKE_ARGS": "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DA=OFF"}
    assert "dse" in llama_variables({"avx2", "amx_int8"})["CXXFLAGS"]
    assert (dense_type({"avx2"}), dense_type({"avx2", "avx512f"}), dense_type(set())) == ("fp32", "bf16", "bf16")
