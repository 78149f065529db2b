"""Beside speeds of engines their perplexity: who rounds harder may be faster."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.bench.peers.process import Peer
from hasten.bench.perplexity import chunks_of, perplexity
from hasten.bench.session import ContestantFailed, ResultFile
from hasten.bench.workloads import data_file
from hasten.engine.engine import Engine

CHUNK = 512


def add_perplexities(engine: Engine, own: Sequence[str], peers: Sequence[Peer], results: ResultFile, chunks: int) -> None:
    """One ``perplexity`` row for Hasten's modes ``own`` together and one for each plain mode of another engine, with the modes that
    share its weights. What is in the file already is not computed again; an engine that cannot tell has a row that says why.
    Every engine's process is ended, and one at a time is started again: whole texts take more memory than answers do.
    """
    for peer in peers:
        peer.close()
    known = {mode for row in results.rows if row["kind"] == "perplexity" for mode in row["modes"]}
    failed = {row["mode"] for row in results.rows if row["kind"] == "failed"}
    pieces = chunks_of(engine.tokenizer, data_file("wikitext2_test_part.txt").read_text(encoding="utf-8"), CHUNK, chunks)
    tokens = sum(len(piece) for piece in pieces)
    if own and own[0] not in known:
        value = perplexity(engine.executor, pieces)
        results.add({"kind": "perplexity", "modes": list(own), "value": value, "tokens": tokens})
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
