"""What a browser makes of a page."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")


def drawn(page: Path, script: str = "", width: int = 800) -> str:
    """The document as text once its scripts have run.

    Arguments:
        script: what a person does, run after the page's own scripts; its policy, which would refuse a script that it
            does not know, is taken out of the copy that is shown.
        width: of the window, in pixels.
    """
    text = page.read_text()
    if script:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        text = text.replace("</body>", f"<script>{script}</script></body>")
    shown = page.with_name("shown.html")
    shown.write_text(text)
    flags = "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update"
    command = ["chromium", *(f"--{each}" for each in flags.split()), "--virtual-time-budget=3000"]
    command += ["--dump-dom", f"--window-size={width},600"]
    done = subprocess.run(
        [*command, f"--user-data-dir={page.parent / 'profile'}", shown.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout
