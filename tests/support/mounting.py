"""Whether a test may mount what only its own processes see; and why a test that must is left out."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def _why_not() -> str:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "mounting needs root, and unshare"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else f"no mount namespace can be had: {done.stderr.strip()}"


WHY_NOT = _why_not()
CAN_MOUNT = not WHY_NOT
mounting = pytest.mark.skipif(not CAN_MOUNT, reason=WHY_NOT or "it can")
