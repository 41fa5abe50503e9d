"""Fresh Python environments, as users make them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from root import ROOT

EXAMPLES = ("saeval-acme", "saeval-lexicon", "saeval-wordvec")


def sh(*command, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def new_environment(place, *install):
    """Return the Python of a fresh environment; heavy dependencies come from the one that runs the tests."""
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    own = Path(sh(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    # The other environment's folder comes after this one's own, so that the saeval in it is not seen; the name sorts
    # last, so that it also comes after what an editable install adds.
    (own / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed")
    sh(*pip, "--no-build-isolation", *install, cwd=place, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return python


def build_wheels(folder):
    """Build the wheels of saeval and of the example packages into a folder."""
    for project in (ROOT, *(ROOT / "examples" / name for name in EXAMPLES)):
        sh(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project, cwd=folder)
