"""A real server in a process of its own, over a tiny model on disk, for real clients."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np

from loader_files import add_value, metadata, tensor_shapes
from vocabularies import byte_level

TEMPLATE = (
    "{% if tools %}<|begin|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Call as <tool_call>{...}</tool_call><|im_end|>\n{% endif %}"
    "{% for message in messages %}<|begin|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
LISTENING = re.compile(r"at (http://\S+:\d+)")


def write_model(
    path: Path, seed: int = 0, context: int = 2048, template: str | None = TEMPLATE, marks: tuple[str, ...] = ()
) -> Path:
    """A tiny Llama over a byte-level vocabulary. Bytes that are no ASCII text are unlikely, so answers are mostly text. ``marks``
    are further tokens, user-defined ones."""
    words = byte_level() | ({"tokenizer.chat_template": template} if template else {})
    tokens = words["tokenizer.ggml.tokens"] = [*words["tokenizer.ggml.tokens"], *marks]
    words["tokenizer.ggml.token_type"] = [*words["tokenizer.ggml.token_type"], *[4] * len(marks)]
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**metadata("llama", 2), "llama.context_length": context, **words}.items():
        if key != "general.architecture":
            add_value(writer, key, value)
    random = np.random.default_rng(seed)
    for name, shape in tensor_shapes("llama", 2, tied=False).items():
        sized = (len(tokens), shape[1]) if name in ("token_embd.weight", "output.weight") else shape
        tensor = (
            np.ones(sized)
            if len(sized) == 1
            else random.standard_normal(sized) * (1.5 if len(sized) > 1 else 1) * shape[-1] ** -0.5
        )
        if name == "token_embd.weight":
            tensor = random.standard_normal(sized)
        if name == "output.weight":
            tensor *= 3.0
            tensor[[at for at, text in enumerate(tokens) if not text.replace("Ġ", " ").replace("Ċ", "\n").isascii()]] = 0.0
        writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@dataclass
class Running:
    """A server that listens. ``log`` are the lines it wrote so far."""

    url: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    # One client for all requests: a new one each time costs more than most requests do.
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=120, verify=False))

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.client.post(self.url + path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(self.url + path, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of /metrics; 0 where it is not there."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            found = re.fullmatch(r"([a-z0-9_:]+)(?:\{(.*)\})? ([0-9.e+-]+|NaN)", line)
            if found and found[1] == name and all(f'{key}="{value}"' in (found[2] or "") for key, value in labels.items()):
                total += float(found[3])
        return total

    def access(self) -> list[dict[str, Any]]:
        """The lines of the access log."""
        return [json.loads(line.split("hasten.access: ", 1)[1]) for line in self.log if "hasten.access: " in line]

    def wait_idle(self, seconds: float = 20.0) -> None:
        """Until nothing runs and all blocks are free."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.metric("hasten:num_requests_running") + self.metric("hasten:num_requests_waiting"):
                assert self.metric("hasten:kv_cache_usage_perc") == 0.0, "blocks leak"
                return
            time.sleep(0.05)
        raise AssertionError("the server does not become idle")


@contextmanager
def running(
    *arguments: str,
    home: Path,
    models: tuple[str, ...],
    environment: dict[str, str] | None = None,
    before: tuple[str, ...] = (),
    seconds: float = 400,
) -> Iterator[Running]:
    """``hasten serve`` with these arguments, stopped at the end; it has to start within ``seconds`` and to end well. ``before``: a
    command to run it by, which has to become the server itself."""
    command = [*before, sys.executable, "-m", "hasten", "serve", "--port", "0", *arguments]
    for model in models:
        command += ["-m", model]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HASTEN_")}
    variables = {**kept, "HASTEN_HOME": str(home), "OMP_NUM_THREADS": "1", **(environment or {})}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=variables)
    server = Running("", process)
    ready = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.log.append(line.rstrip("\n"))
            found = LISTENING.search(line)
            if found and not server.url:
                server.url = found[1]
                ready.set()
        ready.set()

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        assert ready.wait(seconds), "the server does not start"
        assert server.url, "the server ended: " + "\n".join(server.log[-20:])
        yield server
    finally:
        server.client.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        reader.join(5)
        if process.stderr is not None:
            process.stderr.close()
    assert status == 0, f"the server ended with {status}: " + "\n".join(server.log[-20:])
