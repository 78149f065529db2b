"""Beside speeds of engines their perplexity: who rounds harder may be faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hasten.bench.peers.process import Peer
from hasten.bench.perplexity import chunks_of, perplexity
from hasten.bench.session import ContestantFailed, ResultFile
from hasten.bench.workloads import TEXT_FILE, data_file
from hasten.engine.engine import Engine

CHUNK = 512


def add_perplexities(own: Mapping[str, Engine], peers: Sequence[Peer], results: ResultFile, chunks: int) -> None:
    """One ``perplexity`` row for each of Hasten's engines, with the names that ``own`` has for its modes, and one for each plain
    mode of another engine, with the modes that share its weights. What is in the file already is not computed again; an engine that
    cannot tell has a row that says why. Every other engine's process is ended, and one at a time is started again: whole texts take
    more memory than answers do.
    """
    for peer in peers:
        peer.close()
    known = {mode for row in results.rows if row["kind"] == "perplexity" for mode in row["modes"]}
    failed = {row["mode"] for row in results.rows if row["kind"] == "failed"}
    tokenizer = next(iter(own.values())).tokenizer
    pieces = chunks_of(tokenizer, data_file(TEXT_FILE).read_text(encoding="utf-8"), CHUNK, chunks)
    tokens = sum(len(piece) for piece in pieces)
    for engine in {id(engine): engine for engine in own.values()}.values():
        modes = [name for name, other in own.items() if other is engine]
        if modes[0] not in known:
            results.add({"kind": "perplexity", "modes": modes, "value": perplexity(engine.executor, pieces), "tokens": tokens})
    for peer in peers:
        if peer.mode != "plain" or peer.name in known or peer.name in failed:
            continue
        modes = [other.name for other in peers if other.name.startswith(peer.name)]
        try:
            results.add({"kind": "perplexity", "modes": modes, "value": peer.perplexity(pieces), "tokens": tokens})
        except ContestantFailed as problem:
            results.add({"kind": "perplexity", "modes": modes, "value": None, "why": str(problem)})
        finally:
            peer.close()
