"""Finding a wheel on the Python package index: pip's own settings, the simple API (PEP 503 pages, PEP 691 JSON). No torch.

Nothing is ever installed, unpacked to a path of its own choosing, or run.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import platformdirs
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from hasten.core.errors import DownloadError
from hasten.model.transfer import Address, Client, NotOnServer, Unreachable, address

PAGE_LIMIT = 32 << 20
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Which indexes to ask, in order, and the certificate authorities to trust (None: the system's)."""

    urls: tuple[str, ...]
    certificate: Path | None = None


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel on an index: where it is and, where the index says so, the SHA-256 of its bytes."""

    filename: str
    where: Address
    sha256: str | None


def pip_settings() -> IndexSettings:
    """Index addresses and certificate as pip would take them: environment variables before configuration files, of which
    later ones (machine, user, environment, PIP_CONFIG_FILE) win."""
    merged: dict[str, str] = {}
    for path in _configuration_files():
        merged.update(_read_configuration(path))
    for name in ("index-url", "extra-index-url", "cert"):
        value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        if value is not None:
            merged[name] = value
    urls = [merged.get("index-url", "").strip() or _default_index(), *merged.get("extra-index-url", "").split()]
    certificate = merged.get("cert", "").strip()
    return IndexSettings(tuple(dict.fromkeys(urls)), Path(certificate).expanduser() if certificate else None)


def _default_index() -> str:
    """The index that pip asks where nobody has named one. Raises DownloadError where there is no pip to know it."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError as problem:
        raise DownloadError(
            "No package index is known here, because pip is not installed; set PIP_INDEX_URL to the address of one."
        ) from problem
    return str(PyPI.simple_url)


def _configuration_files() -> Iterator[Path]:
    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    machine = platformdirs.site_config_dir("pip", appauthor=False, multipath=True).split(os.pathsep)
    yield from (Path(path) / name for path in reversed(machine))
    if sys.platform != "win32":
        yield Path("/etc") / name
    yield Path.home() / ("pip" if sys.platform == "win32" else ".pip") / name
    yield platformdirs.user_config_path("pip", appauthor=False, roaming=True) / name
    if sys.platform == "darwin":
        yield Path.home() / ".config" / "pip" / name
    yield Path(sys.prefix) / name
    if chosen:
        yield Path(chosen)


def _read_configuration(path: Path) -> Mapping[str, str]:
    """The [global] section with its keys in pip's spelling; empty where the file cannot be read, as pip has it."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
        return {key.replace("_", "-"): value for key, value in parser.items("global")}
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}


def find_wheel(client: Client, settings: IndexSettings, requirement: str) -> Wheel:
    """The wheel of ``requirement`` ("name==version") on the first index that has it.

    Indexes that cannot be reached are passed over as long as another one has the wheel. Raises Unreachable when one of them
    might have had it, else NotOnServer.
    """
    name, _, version = requirement.partition("==")
    unreachable: DownloadError | None = None
    for url in settings.urls:
        try:
            wheel = _on_index(client, url, name, Version(version))
        except NotOnServer:
            continue
        except Unreachable as problem:
            unreachable = unreachable or problem
            continue
        if wheel is not None:
            return wheel
    if unreachable is not None:
        raise unreachable
    hosts = ", ".join(address(url).host for url in settings.urls)
    raise NotOnServer(f"The Python package index ({hosts}) has no wheel of {requirement}; check pip's index-url setting.")


def _on_index(client: Client, url: str, name: str, version: Version) -> Wheel | None:
    project = address(f"{url.rstrip('/')}/{canonicalize_name(name)}/")
    local = urlsplit(project.url).scheme == "file"
    asked = Address(project.url + "index.html") if local else project
    body, kind, final = client.read(asked, {"Accept": _ACCEPT}, PAGE_LIMIT)
    links = _json_links(body) if kind.endswith("+json") else _html_links(body)
    for href, filename, sha256 in links:
        if not _is_wheel_of(filename, name, version):
            continue
        target = address(urljoin(final, href))
        scheme = urlsplit(target.url).scheme
        if scheme not in ("http", "https") and not (local and scheme == "file"):
            continue
        if target.authorization is None and target.host == project.host:
            target = Address(target.url, project.authorization)
        return Wheel(filename, target, sha256)
    return None


def _is_wheel_of(filename: str, name: str, version: Version) -> bool:
    try:
        found_name, found_version, _, _ = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        return False
    return "/" not in filename and "\\" not in filename and found_name == canonicalize_name(name) and found_version == version


def _json_links(body: bytes) -> Iterator[tuple[str, str, str | None]]:
    """URL, file name and SHA-256 of every file of a PEP 691 answer; entries of another shape are passed over."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return
    files = content.get("files") if isinstance(content, dict) else None
    for entry in files if isinstance(files, list) else []:
        if not isinstance(entry, dict):
            continue
        url, filename, hashes = entry.get("url"), entry.get("filename"), entry.get("hashes")
        if isinstance(url, str) and isinstance(filename, str):
            yield url, filename, _sha256(hashes.get("sha256") if isinstance(hashes, dict) else None)


def _html_links(body: bytes) -> Iterator[tuple[str, str, str | None]]:
    """The same of a PEP 503 page, whose links carry the hash as a fragment."""
    collector = _Anchors()
    collector.feed(body.decode("utf-8", "replace"))
    for href in collector.targets:
        url, fragment = urldefrag(href)
        filename = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        yield url, filename, _sha256(fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None)


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for key, value in attrs if key == "href" and value]


def _sha256(text: object) -> str | None:
    return text.lower() if isinstance(text, str) and re.fullmatch(r"[0-9a-fA-F]{64}", text) else None
