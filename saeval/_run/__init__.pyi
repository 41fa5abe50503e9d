from saeval._run.aggregate import over_max_failed as over_max_failed
from saeval._run.preview import preview_prompts as preview_prompts
