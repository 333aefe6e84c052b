"""A browser without a screen. In: a page. Out: the page as it is once its scripts ran."""

import shutil
from pathlib import Path

from commands import run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def shown(page: Path, text: str, script: str, width: int = 1400) -> str:
    """Write a page with a script at its end, and return what the browser makes of it."""
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    window = [f"--window-size={width},3000", f"--user-data-dir={page.parent / 'profile'}"]
    done = run([str(BROWSER), *FLAGS, *window, "--dump-dom", page.as_uri()])
    assert done.returncode == 0, done.stderr
    return done.stdout
