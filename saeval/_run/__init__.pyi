from saeval._run.cautions import over_limits as over_limits
from saeval._run.preview import preview_prompts as preview_prompts
from saeval._run.run_dir import SharedLimit as SharedLimit
from saeval._run.typed_text import TypedText as TypedText
