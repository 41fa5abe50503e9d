"""What holds for all tests: none waits for a model hub, drawn inputs are the same each time, the longest files begin first.

What is not on this machine is missing at once, except on a hub that a test serves itself. `HYPOTHESIS_PROFILE=default`
draws other inputs in each run.
"""

import gc
import os

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # huggingface_hub reads them when it is imported

if "PYTEST_XDIST_WORKER" in os.environ:  # about a core for each worker: more threads of torch would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(  # without limits of time, since CI may be slow
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

LONGEST = ("test_quickstart.py", "test_executors.py", "test_faults.py", "test_kills.py")


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish(session):
    """Have the garbage collector omit modules and tests, half a million objects that stay, and begin less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
