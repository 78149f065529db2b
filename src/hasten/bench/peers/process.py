"""Another engine as a contestant: a process in its own environment that answers JSON lines."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hasten.bench.peers.environment import own_variables
from hasten.bench.samples import Sample
from hasten.bench.session import ContestantFailed
from hasten.core.types import SamplingParams

WORKERS = Path(__file__).parent / "workers"
LOAD_SECONDS, ANSWER_SECONDS = 3600.0, 1200.0


class PeerProcess:
    """A worker that has loaded its engine. Raises ContestantFailed wherever it does not answer."""

    def __init__(self, python: Path, worker: Path, settings: dict[str, Any]) -> None:
        self.name = str(settings["name"])
        threads = str(settings["threads"])
        variables = own_variables() | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [str(python), "-u", str(worker), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=variables,
            start_new_session=True,  # Ctrl-C is for us; a worker ends with its standard input
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.about = self._next(LOAD_SECONDS)
        except ContestantFailed:
            self.close()
            raise

    def ask(self, question: dict[str, Any], seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Send one line and wait for one."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError as problem:
            raise self._failed() from problem
        return self._next(seconds)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _listen(self) -> None:
        """Only lines that begin with the worker's mark are meant for us; libraries print what they like."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@@"):
                self._lines.put(line[2:])
        self._lines.put("")

    def _next(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty as problem:
            raise ContestantFailed(f"{self.name} did not answer within {seconds:.0f} s.") from problem
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContestantFailed(f"{self.name}: {answer['error'][:300]}")
        return answer

    def _failed(self) -> ContestantFailed:
        status = self._process.wait(timeout=30)
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return ContestantFailed(f"{self.name} ended with {how}: {lines[-1][:300] if lines else 'it said nothing'}")


@dataclass(slots=True)
class Worker:
    """A process that is started when it is first asked, kept, and started again after a crash. Several modes may share it."""

    python: Path | None
    script: Path
    settings: dict[str, Any]
    failure: str | None = None  # why it cannot run at all
    process: PeerProcess | None = None

    def started(self) -> PeerProcess:
        """Raises ContestantFailed when it cannot run."""
        if self.failure is not None or self.python is None:
            raise ContestantFailed(self.failure or f"{self.settings['name']} has no environment.")
        if self.process is None or self.process.ended:
            self.close()
            self.process = PeerProcess(self.python, self.script, self.settings)
        return self.process

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None


@dataclass(frozen=True, slots=True)
class Peer:
    """One mode of another engine, as a contestant."""

    name: str
    mode: str
    worker: Worker

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> list[Sample]:
        if params.temperature:
            raise ContestantFailed(f"{self.name} is compared at temperature 0 only: other engines draw other random numbers.")
        if len(prompts) > 1:
            raise ContestantFailed(f"{self.name} is compared one request at a time only.")
        question = {"mode": self.mode, "prompt": prompts[0], "max_tokens": params.max_tokens}
        answer = self.worker.started().ask(question)
        tokens = list(answer["tokens"])
        if len(tokens) != params.max_tokens:
            raise ContestantFailed(f"{self.name} gave {len(tokens)} tokens where {params.max_tokens} were asked for.")
        rounds = int(answer.get("rounds", 0))
        return [Sample(tokens, len(prompts[0]), float(answer["first_s"]), float(answer["decode_s"]), rounds)]

    def perplexity(self, chunks: list[list[int]]) -> float:
        """exp of the mean loss of the tokens 1.. of each chunk, each by itself."""
        return float(self.worker.started().ask({"chunks": chunks})["perplexity"])

    def close(self) -> None:
        self.worker.close()
