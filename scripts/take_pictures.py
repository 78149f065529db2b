"""Takes the pictures of the chat page that README and docs show: a real model, a real server, light and dark.

    python scripts/take_pictures.py qwen2.5-coder-0.5b

Needs Playwright and a Chromium (the machine's own, or the one that HASTEN_CHROMIUM names). The speeds in the pictures are those
of the machine at that moment; no page quotes them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
QUESTIONS = (
    "Write a Python class Stack with push, pop, peek and is_empty. Short docstrings, no explanation.",
    "Now the same class again, with type hints on every method.",
)
PATIENCE_MS = 300_000


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server of that model. Raises RuntimeError when it does not start."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hasten", "serve", "-m", model, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            found = re.search(r"at (http://\S+:\d+)", line)
            if found:
                yield found[1]
                return
        raise RuntimeError(f"the server of {model} did not start")
    finally:
        process.terminate()
        process.wait(timeout=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--folder", type=Path, default=PICTURES)
    args = parser.parse_args()
    chromium = os.environ.get("HASTEN_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with served(args.model) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light", device_scale_factor=1.25)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        page.wait_for_selector("#model:not([disabled])")
        for count, question in enumerate(QUESTIONS, start=1):
            page.fill("#question", question)
            page.press("#question", "Enter")
            page.wait_for_selector("#send:not([hidden])")
            page.locator(".turn .foot .account").nth(count - 1).wait_for(state="attached")
        for scheme, name in (("light", "chat-page.png"), ("dark", "chat-page-dark.png")):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            page.wait_for_timeout(600)
            page.screenshot(path=args.folder / name)
        browser.close()


if __name__ == "__main__":
    main()
