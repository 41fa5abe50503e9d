"""No test waits for a model hub: what is not on this machine is missing at once, but on a hub that a test serves itself."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # huggingface_hub reads them when it is imported
