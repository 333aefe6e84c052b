"""What is around: the words of the terminal, and the hub. In: nothing. Out: findings."""

import locale
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

from bigqa.doctor.finding import Finding
from bigqa.language import put, tr

WAIT_S = 5.0
HUB = "https://huggingface.co"


def findings() -> Iterator[Finding]:
    """Look at all of it."""
    yield letters(getattr(sys.stdout, "encoding", None) or locale.getpreferredencoding(False))
    yield hub()


def letters(encoding: str) -> Finding:
    """Say whether Hangul can be shown and read."""
    if encoding.lower().replace("-", "") in ("utf8", "utf8sig"):
        return Finding(tr("locale"), "UTF-8")
    return Finding(tr("locale"), encoding, tr("Hangul is shown as codes"), put("export LANG=C.UTF-8"))


def hub() -> Finding:
    """Say whether models and data can be had by their ids."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        found = tr("not asked, since HF_HUB_OFFLINE is set: what was fetched before is used")
        return Finding(tr("hub"), found)
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=WAIT_S):
            return Finding(tr("hub"), tr("can be reached"))
    except urllib.error.HTTPError:
        return Finding(tr("hub"), tr("can be reached"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or type(reason).__name__
        return Finding(
            tr("hub"),
            tr("cannot be reached ({why})", why=why),
            tr("models and data by their ids cannot be had, unless fetched before"),
            tr("check the network and HTTPS_PROXY; HF_ENDPOINT names a mirror; folders and presets do without"),
        )
