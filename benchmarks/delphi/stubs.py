"""Empty modules in place of what eai-delphi imports but the measured paths do not use; import before delphi."""

import sys
from unittest.mock import MagicMock

for name in (
    "bitsandbytes",
    "sparsify",
    "sparsify.data",
    "sparsify.sparse_coder",
    "vllm",
    "vllm.distributed",
    "vllm.distributed.parallel_state",
    "vllm.sampling_params",
):
    sys.modules[name] = MagicMock()
