"""One PyTorch thread for all tests: their tensors are tiny, and two threads that wait for each other on a busy machine take a
hundred times as long. Set OMP_NUM_THREADS to choose otherwise. The native kernels have threads of their own: as many as ever, but
one only where the tests themselves are shared among processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from chromium import Visit, chromium, visit
from hasten.model.storage import gguf_directory
from hasten.native.loader import NativeLibrary, load, status
from serving import Running, running, write_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from fake_chat_server import FakeChat

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a shell: children would inherit deaf ears
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ and (library := load()) is not None:
    library.set_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are processors, as some tests wait: for a browser, for a server, for a clock."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors + 1


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests keep goes to a folder of their own, and nothing that a user's runs have learnt reaches them: only the catalogue
    models are the user's."""
    models = gguf_directory()
    if os.environ.get("HASTEN_TEST_FETCH") == "1":
        models.mkdir(parents=True, exist_ok=True)
    home = tmp_path_factory.mktemp("hasten-home")
    if models.is_dir():
        (home / models.name).symlink_to(models, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTEN_HOME", str(home))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    """A server over the tiny model, without keys, shared by all tests of a run."""
    with running(home=tmp_path_factory.mktemp("home"), models=(f"tiny={tiny_model}",)) as found:
        yield found


@pytest.fixture(scope="module")
def native() -> Iterator[NativeLibrary]:
    """The kernels, put back as they were when a file is done."""
    library = load()
    if library is None:
        pytest.skip(f"native kernels: {status()['reason']}")
    best, threads = library.best_isa, library.threads
    yield library
    library.set_isa(best)
    library.set_threads(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def chat() -> Iterator[FakeChat]:
    """A server of the chat page whose answers the test writes."""
    pytest.importorskip("uvicorn", reason="needs the server's packages (pip install 'hasten[serve]')")
    import fake_chat_server

    with fake_chat_server.running(fake_chat_server.FakeChat()) as chat:
        yield chat


@pytest.fixture
def visited(browser: Browser, chat: FakeChat) -> Iterator[Visit]:
    """The page of that server, open; at the end everything that went wrong on it fails the test."""
    with visit(browser, chat.address) as visited:
        visited.open()
        yield visited
