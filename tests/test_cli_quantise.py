"""The verb quantize, as a user types it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cli_fakes import CommandLine
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.progress import Progress
from hasten.engine.engine import Engine
from hasten.model.partial import partial_of
from hasten.train import quantise
from hasten.train.alone import alone
from hasten.train.quantise import FEWEST_PIECES, LENGTH, TOKENS, Outcome, _keep_text, _kept_text, pieces_of
from tiny import LetterTokenizer, tiny_engine


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    return CommandLine(monkeypatch, capsys, tmp_path)


def test_what_was_made_is_said(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Some text.")
    seen: list[tuple[EngineConfig, Sequence[str]]] = []

    def fake(config: EngineConfig, texts: Sequence[str], progress: Progress) -> Outcome:
        seen.append((config, texts))
        progress("rounding weights", 1, 2)
        return Outcome("tiny", tmp_path / "x.weights", 12_000_000, 4096, len(seen) > 1)

    monkeypatch.setattr(quantise, "quantise", fake)
    done = command_line("quantize", "tiny", "--text", str(tmp_path / "text"), "--threads", "2")
    assert done.status == 0
    assert done.out == f"tiny: 4,096 tokens read, 12 MB in {tmp_path / 'x.weights'}\n"
    assert (seen[0][0].model, seen[0][0].threads, seen[0][1]) == ("tiny", 2, ["Some text."])
    assert "went on from what was there" in command_line("quantize", "tiny").out


def test_what_was_made_of_a_draft_model_is_said(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[EngineConfig, Sequence[str]]] = []

    def fake(config: EngineConfig, texts: Sequence[str], progress: Progress) -> Outcome:
        seen.append((config, texts))
        return Outcome("small", tmp_path / "x.weights", 12_000_000, 4096, False)

    monkeypatch.setattr(quantise, "quantise_draft", fake)
    done = command_line("draft", "quantize", "-m", "large", "--draft-model", "small", "--draft", "suffix", "--precision", "int4")
    assert done.status == 0
    assert done.out == f"small: 4,096 tokens read, 12 MB in {tmp_path / 'x.weights'}\n"
    assert (seen[0][0].model, seen[0][0].draft_model, seen[0][0].precision, seen[0][1]) == ("large", "small", "int4", [])


@pytest.mark.parametrize(
    ("asked", "made", "again"),
    [
        (("quantize", "tiny"), "quantise", "hasten quantize tiny"),
        (("draft", "quantize", "-m", "large"), "quantise_draft", "hasten draft quantize -m large"),
        (("draft", "quantize", "-m", "large", "--draft-model", "small"), "quantise_draft", "-m large --draft-model small"),
    ],
)
def test_an_interrupt_says_that_it_can_go_on(
    asked: tuple[str, ...], made: str, again: str, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(config: EngineConfig, texts: Sequence[str], progress: Progress) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantise, made, fake)
    done = command_line(*asked)
    assert done.status == 130
    assert f"{again}' goes on from there" in done.err.replace("\n", " ")


def test_a_draft_model_must_be_known(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "kernels", lambda: None)
    with pytest.raises(ConfigError, match="No draft model is known"):
        quantise.quantise_draft(EngineConfig(model=str(tiny_model)))


def test_wrong_use_is_one_sentence(command_line: CommandLine, tmp_path: Path) -> None:
    assert command_line("quantize").status == 2
    assert "cannot be read" in command_line("quantize", "tiny", "--text", str(tmp_path / "none")).err
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in command_line("quantize", "tiny", "--text", str(tmp_path / "binary")).err
    assert "'quantize'" in command_line("quantise", "tiny").err


def test_one_process_at_a_time_and_only_where_it_may_write(tmp_path: Path) -> None:
    path, model = tmp_path / "converted" / "x.weights", tmp_path / "model.gguf"
    with alone(path, model, "quantised"):
        assert model.name in path.with_suffix(".json").read_text()
        with pytest.raises(quantise.ModelError, match="another process"), alone(path, model, "quantised"):
            raise AssertionError
    with alone(path, model, "quantised"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(quantise.ModelError, match="cannot be written"), alone(tmp_path / "file" / "x.weights", model, "quantised"):
        raise AssertionError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """Settings of every engine that was loaded; each is a tiny one."""
    found: list[EngineConfig] = []

    def load(config: EngineConfig, progress: Progress) -> Engine:
        found.append(config)
        return tiny_engine("llama", num_blocks=40, max_sequences=8)

    monkeypatch.setattr("hasten.engine.llm.load_engine", load)
    return found


@pytest.mark.parametrize("prefix", [(), (3,)])
def test_the_model_writes_its_own_text(asked: list[EngineConfig], monkeypatch: pytest.MonkeyPatch, prefix: tuple[int, ...]) -> None:
    monkeypatch.setattr(LetterTokenizer, "prefix_ids", prefix)
    monkeypatch.setattr(quantise, "BEGINNINGS", ("Once upon", "def main", "a", "b", "c"))
    monkeypatch.setattr(quantise, "LENGTH", 100)
    monkeypatch.setattr(quantise, "PASSAGE", 25)
    monkeypatch.setattr(quantise, "TOKENS", 1200)
    monkeypatch.setattr(quantise, "TOGETHER", 8)
    seen: list[tuple[int, int]] = []
    texts = quantise.sample_text(
        EngineConfig(model="tiny", precision="int4"), lambda label, done, total: seen.append((done, total))
    )
    tokenizer = LetterTokenizer()
    lead, end = list(tokenizer.prefix_ids), tokenizer.encode("\n\n", add_bos=False)
    size = (100 - len(lead)) // 4
    assert [len(text) for text in texts] == [len(lead) + 4 * size] * 12
    assert all(text[: len(lead)] == lead for text in texts)
    passages = [text[len(lead) + place * size :][:size] for text in texts for place in range(4)]
    assert [tokenizer.decode(passage)[0] for passage in passages] == (list("Odabc") * 10)[:48]
    assert tokenizer.decode(passages[0]).startswith("Once upon")
    assert all(passage[-len(end) :] == end for passage in passages)
    assert len({tuple(passage) for passage in passages}) == 48
    assert (asked[0].precision, asked[0].draft, asked[0].cache_tokens, asked[0].max_sequences) == ("int8", "none", 200, 8)
    assert seen == sorted(seen)
    assert seen[-1] == (48, 48)
    assert texts == quantise.sample_text(EngineConfig(model="tiny"), lambda label, done, total: None)


def test_a_model_of_little_context_writes_fewer_passages(asked: list[EngineConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "BEGINNINGS", ("Once upon a time there was", "def main"))
    monkeypatch.setattr(quantise, "LENGTH", 20)
    monkeypatch.setattr(quantise, "TOKENS", 200)
    texts = quantise.sample_text(EngineConfig(model="tiny"), lambda label, done, total: None)
    assert [len(text) for text in texts] == [20] * 10
    assert all(len({*text}) > 1 for text in texts)


class OtherTokenizer(LetterTokenizer):
    vocabulary_fingerprint = "other"


def test_a_draft_model_reads_what_its_target_says(asked: list[EngineConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "TALKS", 32)
    monkeypatch.setattr(quantise, "LENGTH", 60)
    config = EngineConfig(model="tiny", precision="int4", draft="suffix")
    pieces = quantise.target_text(config, LetterTokenizer(), lambda label, done, total: None)  # type: ignore[arg-type]
    assert len(pieces) >= FEWEST_PIECES
    assert {len(piece) for piece in pieces} == {60}
    assert len({tuple(piece) for piece in pieces}) == len(pieces)
    assert pieces[0][0] == LetterTokenizer().encode("\n")[0], "prompts are read, too"
    assert (asked[0].precision, asked[0].draft) == ("int4", "none")
    other = quantise.target_text(config, OtherTokenizer(), lambda label, done, total: None)  # type: ignore[arg-type]
    assert {len(piece) for piece in other} == {60}
    assert len(other) < len(pieces), "answers alone"


def test_text_is_kept_for_a_call_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "x.text"
    assert _kept_text(path) == []
    _keep_text(path, [[1, 2, 3], [4]])
    assert _kept_text(path) == [[1, 2, 3], [4]]
    path.write_text("[[1, 2")
    assert _kept_text(path) == []
    with pytest.raises(quantise.ModelError, match="cannot be written"):
        _keep_text(tmp_path / "none" / "x.text", [[1]])


@pytest.mark.parametrize(
    ("first", "second", "goes_on"), [("a", "", True), ("a", "a", True), ("a", "b", False), ("", "b", False), ("", "", True)]
)
def test_layers_that_were_rounded_for_another_text_are_not_kept(
    first: str, second: str, goes_on: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []

    def interrupted(source: object, path: Path, pieces: list[list[int]], precision: object, progress: object) -> bool:
        found.append(partial_of(path).exists())
        partial_of(path).touch()
        raise KeyboardInterrupt

    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    monkeypatch.setattr(quantise, "round_weights", interrupted)
    monkeypatch.setattr(quantise, "pieces_of", lambda tokenizer, texts: [[ord(text) for text in texts]])
    monkeypatch.setattr(quantise, "sample_text", lambda config, progress: [[7]])
    monkeypatch.setattr(quantise, "kernels", lambda: None)
    for text in (first, second):
        with pytest.raises(KeyboardInterrupt):
            quantise.quantise(EngineConfig(model=str(tiny_model)), [text] if text else [])
    assert found == [False, goes_on]


class Led(LetterTokenizer):
    prefix_ids = (7,)


def test_pieces_come_from_all_over_the_text() -> None:
    tokenizer = Led()
    text = "".join("abcdefghij"[at // 40_000 % 10] for at in range(400_000))
    pieces = pieces_of(tokenizer, [text])  # type: ignore[arg-type]
    assert len(pieces) == TOKENS // LENGTH
    assert all(len(piece) == LENGTH and piece[0] == 7 for piece in pieces)
    assert {piece[1] for piece in pieces} == set(range(10))
    short = "a" * (FEWEST_PIECES * (LENGTH - 1))
    assert len(pieces_of(tokenizer, [short])) == FEWEST_PIECES  # type: ignore[arg-type]
    with pytest.raises(quantise.InvalidRequest, match="give more with --text"):
        pieces_of(tokenizer, [short[1:]])  # type: ignore[arg-type]
